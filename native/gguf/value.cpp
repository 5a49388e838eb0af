#include "gguf/value.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "errors.h"

namespace bitqwen::gguf {
namespace {

constexpr int kMaxNesting = 4;

constexpr std::array<const char*, 13> kTypeNames = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                                    "int32",  "float32", "bool",   "string", "array",
                                                    "uint64", "int64",   "float64"};

template <class T>
T load(std::span<const uint8_t> bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

[[noreturn]] void unknown_type(const Cursor& in, std::string_view key, ValueType type) {
  in.fail("is damaged: metadata key " + quoted(key) + " has value type " +
          std::to_string(static_cast<uint32_t>(type)) + "; 0 to 12 are known");
}

Value read_array(Cursor& in, std::string_view key, int nesting) {
  if (nesting >= kMaxNesting) {
    in.fail("is damaged: metadata key " + quoted(key) + " nests arrays more than " +
            std::to_string(kMaxNesting) + " deep");
  }
  const auto element = static_cast<ValueType>(in.number<uint32_t>(key));
  const auto count = in.number<uint64_t>(key);
  const int bytes = value_bytes(element);
  if (bytes == 0 && element != ValueType::kString && element != ValueType::kArray) {
    unknown_type(in, key, element);
  }
  // The least that one element takes: a string's length, an inner array's type and count.
  const uint64_t least = bytes ? static_cast<uint64_t>(bytes) : element == ValueType::kString ? 8 : 12;
  if (count > in.left() / least) {
    in.fail("is cut off or damaged: metadata key " + quoted(key) + " claims " + std::to_string(count) +
            " elements, and " + std::to_string(in.left()) + " bytes follow");
  }
  if (bytes) return {ValueType::kArray, element, count, in.take(count * least, key), key};
  Cursor whole = in;  // elements of different lengths: walk them first, then take them as one
  for (uint64_t i = 0; i < count; ++i) {
    if (element == ValueType::kString) {
      in.string(in.left(), key);
    } else {
      read_array(in, key, nesting + 1);
    }
  }
  return {ValueType::kArray, element, count, whole.take(in.position() - whole.position(), key), key};
}

}  // namespace

std::string quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text.substr(0, 80)) {
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte >= 0x7f ? '?' : c;
  }
  return out + (text.size() > 80 ? "...'" : "'");
}

void Cursor::fail(const std::string& message) const {
  throw Error(ErrorKind::kFormat, subject_ + " " + message,
              "Fetch or convert the file again; its size should equal the original's.");
}

Value read_value(Cursor& in, ValueType type, std::string_view key) {
  if (type == ValueType::kArray) return read_array(in, key, 0);
  if (type == ValueType::kString) {
    const std::string_view text = in.string(in.left(), key);
    return {type, type, 1, {reinterpret_cast<const uint8_t*>(text.data()), text.size()}, key};
  }
  const int bytes = value_bytes(type);
  if (bytes == 0) unknown_type(in, key, type);
  return {type, type, 1, in.take(static_cast<uint64_t>(bytes), key), key};
}

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

std::string Value::subject() const { return "metadata key " + quoted(key); }

void Value::wrong_kind(const char* wanted) const {
  std::string kind = kTypeNames.at(static_cast<size_t>(type));
  if (type == ValueType::kArray)
    kind = "array of " + std::string(kTypeNames.at(static_cast<size_t>(element)));
  throw Error(ErrorKind::kFormat,
              subject() + " is of type " + kind + "; " + std::string(wanted) + " is expected",
              "The file was damaged, or written by a faulty program: convert the checkpoint again.");
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

uint64_t Value::as_unsigned() const {
  if (type == ValueType::kUint64) return load<uint64_t>(bytes);
  const int64_t value = as_integer();
  if (value < 0) wrong_kind("an integer of 0 or more");
  return static_cast<uint64_t>(value);
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

// Lengths are checked again here: whoever writes to the file while it is mapped changes them under us.
std::vector<std::string_view> Value::as_strings() const {
  if (type != ValueType::kArray || element != ValueType::kString) wrong_kind("an array of strings");
  const std::string name = subject();
  Cursor in(bytes, name);
  std::vector<std::string_view> strings;
  strings.reserve(count);  // at most bytes.size() / 8: checked when the file was opened
  for (uint64_t i = 0; i < count; ++i) strings.push_back(in.string(in.left(), key));
  return strings;
}

std::vector<Value> Value::as_arrays() const {
  if (type != ValueType::kArray || element != ValueType::kArray) wrong_kind("an array of arrays");
  const std::string name = subject();
  Cursor in(bytes, name);
  std::vector<Value> arrays;
  arrays.reserve(count);  // at most bytes.size() / 12
  for (uint64_t i = 0; i < count; ++i) arrays.push_back(read_array(in, key, 1));
  return arrays;
}

Value Value::at(uint64_t index) const {
  const size_t size = static_cast<size_t>(value_bytes(element));
  if (type != ValueType::kArray || size == 0) wrong_kind("an array of numbers");
  if (index >= count) wrong_kind("a longer array");
  return {element, element, 1, bytes.subspan(index * size, size), key};
}

}  // namespace bitqwen::gguf
