// One metadata value, still inside the mapped file: nothing is copied until it is asked for.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/cursor.h"

namespace bitqwen::gguf {

enum class ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

/// Bytes of one value of a fixed-size type; 0 for strings, arrays and unknown ids.
int value_bytes(ValueType type);

struct Value {
  ValueType type = ValueType::kUint8;
  ValueType element = ValueType::kUint8;  // of an array
  uint64_t count = 1;                     // elements of an array
  std::span<const uint8_t> bytes;         // the value, or the array's elements, as they lie in the file
  std::string_view key;                   // whose value it is, for messages

  bool is_number() const;
  bool is_integer() const;
  /// Each throws Error(kFormat) when the value is of another kind or out of the result's range.
  int64_t as_integer() const;
  uint64_t as_unsigned() const;
  double as_float() const;
  bool as_bool() const;
  std::string_view as_string() const;
  /// The elements of an array of strings, as views into the file.
  std::vector<std::string_view> as_strings() const;
  /// The elements of an array of arrays.
  std::vector<Value> as_arrays() const;
  /// Element `index` of an array of numbers, as a value of its own.
  Value at(uint64_t index) const;

 private:
  [[noreturn]] void wrong_kind(const char* wanted) const;
  std::string subject() const;
};

/// Reads the value that follows, checked to its end; throws Error(kFormat).
Value read_value(Cursor& in, ValueType type, std::string_view key);

}  // namespace bitqwen::gguf
