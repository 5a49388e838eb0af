#include "gguf/value.h"

#include <cstring>

#include "errors.h"

namespace bitqwen::gguf {
namespace {

template <class T>
T load(std::span<const uint8_t> bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

[[noreturn]] void wrong_kind(const char* wanted) {
  throw Error(ErrorKind::kFormat, std::string("metadata value is not ") + wanted);
}

}  // namespace

int value_bytes(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kBool: return 1;
    case ValueType::kUint16:
    case ValueType::kInt16: return 2;
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kFloat32: return 4;
    case ValueType::kUint64:
    case ValueType::kInt64:
    case ValueType::kFloat64: return 8;
    case ValueType::kString:
    case ValueType::kArray: return 0;
  }
  return 0;
}

bool Value::is_integer() const {
  return value_bytes(type) != 0 && type != ValueType::kBool && type != ValueType::kFloat32 &&
         type != ValueType::kFloat64;
}

bool Value::is_number() const {
  return is_integer() || type == ValueType::kFloat32 || type == ValueType::kFloat64;
}

int64_t Value::as_integer() const {
  switch (type) {
    case ValueType::kUint8: return load<uint8_t>(bytes);
    case ValueType::kInt8: return load<int8_t>(bytes);
    case ValueType::kUint16: return load<uint16_t>(bytes);
    case ValueType::kInt16: return load<int16_t>(bytes);
    case ValueType::kUint32: return load<uint32_t>(bytes);
    case ValueType::kInt32: return load<int32_t>(bytes);
    case ValueType::kInt64: return load<int64_t>(bytes);
    case ValueType::kUint64: {
      const uint64_t value = load<uint64_t>(bytes);
      if (value > INT64_MAX) wrong_kind("an integer below 2^63");
      return static_cast<int64_t>(value);
    }
    default: wrong_kind("an integer");
  }
}

double Value::as_float() const {
  if (type == ValueType::kFloat32) return load<float>(bytes);
  if (type == ValueType::kFloat64) return load<double>(bytes);
  if (is_integer()) return static_cast<double>(as_integer());
  wrong_kind("a number");
}

bool Value::as_bool() const {
  if (type != ValueType::kBool) wrong_kind("a boolean");
  return bytes[0] != 0;
}

std::string_view Value::as_string() const {
  if (type != ValueType::kString) wrong_kind("a string");
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::string_view> Value::as_strings() const {
  if (type != ValueType::kArray || element != ValueType::kString) wrong_kind("an array of strings");
  std::vector<std::string_view> strings;
  strings.reserve(count);  // at most bytes.size() / 8: checked when the file was opened
  const uint8_t* p = bytes.data();
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t length;
    std::memcpy(&length, p, sizeof length);
    strings.emplace_back(reinterpret_cast<const char*>(p + sizeof length), length);
    p += sizeof length + length;
  }
  return strings;
}

Value Value::at(uint64_t index) const {
  const size_t size = static_cast<size_t>(value_bytes(element));
  if (type != ValueType::kArray || size == 0) wrong_kind("an array of numbers");
  if (index >= count) wrong_kind("an array that long");
  return {element, ValueType::kUint8, 1, bytes.subspan(index * size, size)};
}

}  // namespace bitqwen::gguf
