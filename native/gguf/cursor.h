// Reads forward through bytes that nobody has checked: each step is compared with what is left.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace bitqwen::gguf {

/// Text of a damaged file for a message: short, and without what a terminal would obey.
std::string quoted(std::string_view text);

class Cursor {
 public:
  /// `subject` begins every message: the file's path, or the name of a value. It must outlive the cursor.
  Cursor(std::span<const uint8_t> bytes, const std::string& subject) : bytes_(bytes), subject_(subject) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  std::span<const uint8_t> take(uint64_t bytes, std::string_view what) {
    if (bytes > left()) {
      fail("is cut off or damaged: " + quoted(what) + " needs " + std::to_string(bytes) +
           " bytes at offset " + std::to_string(position_) + " and " + std::to_string(left()) + " follow");
    }
    const auto taken = bytes_.subspan(position_, bytes);
    position_ += bytes;
    return taken;
  }

  template <class T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof value, what).data(), sizeof value);
    return value;
  }

  /// A length of 64 bits, then that many bytes.
  std::string_view string(uint64_t max_bytes, std::string_view what) {
    const uint64_t length = number<uint64_t>(what);
    if (length > max_bytes) {
      fail("is damaged: " + quoted(what) + " has " + std::to_string(length) + " bytes; at most " +
           std::to_string(max_bytes) + " are allowed");
    }
    const auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  /// Throws Error(kFormat).
  [[noreturn]] void fail(const std::string& message) const;

 private:
  std::span<const uint8_t> bytes_;
  const std::string& subject_;
  uint64_t position_ = 0;
};

}  // namespace bitqwen::gguf
