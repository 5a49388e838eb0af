#include "weights/packed_buffer.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "errors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bitqwen {
namespace {

constexpr int64_t kPage = 4096;

#if defined(__linux__)

constexpr int64_t kHugePage = int64_t{2} << 20;
// Mapped at once for small buffers; pages that nobody touches cost nothing.
constexpr int64_t kMappedAtOnce = int64_t{64} << 20;

// Huge pages need their own alignment, so a large buffer is mapped with room to spare and trimmed.
std::shared_ptr<uint8_t> map_pages(int64_t bytes) {
  const bool huge = bytes >= 2 * kHugePage;
  const int64_t mapped = bytes + (huge ? kHugePage : 0);
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* begin = static_cast<uint8_t*>(raw);
  if (huge) {
    const int64_t head =
        (kHugePage - static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin) % kHugePage)) % kHugePage;
    if (head > 0) munmap(begin, head);
    if (kHugePage - head > 0) munmap(begin + head + bytes, kHugePage - head);
    begin += head;
    madvise(begin, bytes, MADV_HUGEPAGE);  // advice: a kernel without huge pages may refuse it
  }
  return {begin, [bytes](uint8_t* data) { munmap(data, bytes); }};
}

// A matrix of two bits a weight is a page or two long, and would leave most of its last one unfilled. Parts
// are given out one after the other and never again, so all are zero; the whole goes with its last part.
std::shared_ptr<uint8_t> share_pages(int64_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<uint8_t> current;
  static int64_t used = 0;
  if (bytes > kMappedAtOnce / 2) return map_pages(bytes);
  const std::lock_guard lock(mutex);
  std::shared_ptr<uint8_t> whole = current.lock();
  if (!whole || used + bytes > kMappedAtOnce) {
    whole = map_pages(kMappedAtOnce);
    if (!whole) return map_pages(bytes);
    current = whole;
    used = 0;
  }
  uint8_t* part = whole.get() + used;
  used += bytes;
  return {std::move(whole), part};
}

#else

std::shared_ptr<uint8_t> map_pages(int64_t bytes) {
  auto* data = static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{kPage}, std::nothrow));
  if (!data) return nullptr;
  std::fill(data, data + bytes, uint8_t{0});
  return {data, [](uint8_t* begin) { ::operator delete(begin, std::align_val_t{kPage}); }};
}

std::shared_ptr<uint8_t> share_pages(int64_t bytes) { return map_pages(bytes); }

#endif

}  // namespace

PackedBuffer::PackedBuffer(int64_t bytes, Pages pages) : bytes_((bytes + kPage - 1) / kPage * kPage) {
  if (bytes_ == 0) return;
  data_ = pages == Pages::kShared ? share_pages(bytes_) : map_pages(bytes_);
  if (!data_) {
    throw Error(ErrorKind::kResource, "no memory for " + std::to_string(bytes_) + " bytes of packed weights",
                "close other programs, or convert the model to fewer bits per weight");
  }
}

PackedBuffer::PackedBuffer(PackedBuffer&& other) noexcept
    : data_(std::move(other.data_)), bytes_(std::exchange(other.bytes_, 0)) {}

PackedBuffer& PackedBuffer::operator=(PackedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace bitqwen
