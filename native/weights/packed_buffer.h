// Page-backed memory for packed weights and what is computed with them.
#pragma once

#include <cstdint>
#include <memory>

namespace bitqwen {

/// What a buffer's pages are shared with.
enum class Pages : uint8_t {
  kOwn,     // nothing: it may go alone, and each of its pages may lie on a memory node of its own
  kShared,  // buffers that stay as long: together they fill huge pages that each alone would leave unfilled
};

/// Memory of 64-byte alignment (huge pages where the system gives them), zeroed by the system on first touch.
class PackedBuffer {
 public:
  PackedBuffer() = default;
  /// Throws Error(kResource) when there is no memory. Any thread may call it.
  explicit PackedBuffer(int64_t bytes, Pages pages = Pages::kOwn);
  PackedBuffer(PackedBuffer&& other) noexcept;
  PackedBuffer& operator=(PackedBuffer&& other) noexcept;

  uint8_t* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<uint8_t> data_;  // of a shared mapping: keeps all of it
  int64_t bytes_ = 0;
};

}  // namespace bitqwen
