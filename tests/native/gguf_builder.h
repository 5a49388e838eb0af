// GGUF files made by hand, byte by byte: also those that no writer would make.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/types.h"
#include "gguf/value.h"

namespace bitqwen::test {

class Bytes {
 public:
  template <class T>
  Bytes& number(T value) {
    // Not insert(): gcc 12 for ARM takes its growing for a write out of bounds.
    const size_t end = data.size();
    data.resize(end + sizeof value);
    std::memcpy(data.data() + end, &value, sizeof value);
    return *this;
  }
  Bytes& string(std::string_view text) {
    number<uint64_t>(text.size());
    data.insert(data.end(), text.begin(), text.end());
    return *this;
  }
  Bytes& type(gguf::ValueType type) { return number(static_cast<uint32_t>(type)); }
  Bytes& array(gguf::ValueType element, uint64_t count) { return type(element).number(count); }
  Bytes& pad(size_t alignment) {
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    return *this;
  }

  std::vector<uint8_t> data;
};

inline Bytes header(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
  Bytes out;
  out.number<uint32_t>(0x46554747).number(version).number(tensors).number(keys);
  return out;
}

inline void tensor_info(Bytes& out, std::string_view name, const std::vector<uint64_t>& dimensions,
                        uint32_t type, uint64_t offset) {
  out.string(name).number(static_cast<uint32_t>(dimensions.size()));
  for (const uint64_t d : dimensions) out.number(d);
  out.number(type).number(offset);
}

/// A file in the temporary directory that goes with its object.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view name, const std::vector<uint8_t>& bytes = {})
      : path_(std::filesystem::temp_directory_path() /
              ("bitqwen-" + std::string(name) + "-" + std::to_string(getpid()) + ".gguf")) {
    write(bytes);
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void write(const std::vector<uint8_t>& bytes) {
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

/// A small well-formed file with every type of value, arrays of arrays, and tensors of several types.
inline std::vector<uint8_t> sample_file() {
  using gguf::ValueType;
  Bytes out = header(5, 17);
  out.string("general.architecture").type(ValueType::kString).string("qwen2");
  out.string("general.alignment").type(ValueType::kUint32).number<uint32_t>(64);
  out.string("u8").type(ValueType::kUint8).number<uint8_t>(200);
  out.string("i8").type(ValueType::kInt8).number<int8_t>(-100);
  out.string("u16").type(ValueType::kUint16).number<uint16_t>(60000);
  out.string("i16").type(ValueType::kInt16).number<int16_t>(-30000);
  out.string("i32").type(ValueType::kInt32).number<int32_t>(-2000000000);
  out.string("u64").type(ValueType::kUint64).number<uint64_t>(1ull << 63 | 1);
  out.string("i64").type(ValueType::kInt64).number<int64_t>(-(1ll << 62));
  out.string("f32").type(ValueType::kFloat32).number(0.5f);
  out.string("f64").type(ValueType::kFloat64).number(0.1);
  out.string("bool").type(ValueType::kBool).number<uint8_t>(1);
  out.string("tokens").type(ValueType::kArray).array(ValueType::kString, 3);
  out.string("a").string("").string("\xc3\xa9");
  out.string("numbers").type(ValueType::kArray).array(ValueType::kInt16, 3);
  for (const int16_t n : {1, -2, 3}) out.number(n);
  out.string("nested").type(ValueType::kArray).array(ValueType::kArray, 2);
  out.array(ValueType::kUint8, 2).number<uint8_t>(1).number<uint8_t>(2);
  out.array(ValueType::kArray, 1).array(ValueType::kString, 1).string("deep");
  out.string("empty").type(ValueType::kArray).array(ValueType::kFloat32, 0);
  out.string("text").type(ValueType::kString).string("line\nline");

  tensor_info(out, "f32.weight", {3, 2}, 0, 0);
  tensor_info(out, "q4_0.weight", {32, 2}, 2, 64);
  tensor_info(out, "tq2_0.weight", {256}, 35, 128);
  tensor_info(out, "mxfp4.weight", {32, 1, 1, 1}, 39, 256);
  tensor_info(out, "q2_0.weight", {64, 1}, 42, 320);
  out.pad(64);
  for (int i = 0; i < 6; ++i) out.number(static_cast<float>(i));
  out.pad(64);
  while (out.data.size() % 64 != 36) out.number(static_cast<uint8_t>(out.data.size() * 7));
  out.pad(64);
  for (int i = 0; i < 66; ++i) out.number(static_cast<uint8_t>(i * 11));
  out.pad(64);
  for (int i = 0; i < 17; ++i) out.number(static_cast<uint8_t>(i));
  out.pad(64);
  out.number<uint16_t>(0x3c00);
  for (int i = 0; i < 16; ++i) out.number<uint8_t>(0b11100100);
  return out.data;
}

/// A well-formed file with a rotated matrix of 128 columns, and more signs than it needs.
inline std::vector<uint8_t> rotated_file() {
  using gguf::ValueType;
  Bytes out = header(2, 1);
  out.string("bitqwen.rotated").type(ValueType::kArray).array(ValueType::kString, 1).string("a.weight");
  tensor_info(out, "rotation.signs", {160}, 24, 0);
  tensor_info(out, "a.weight", {128, 1}, 1, 160);
  out.pad(32);
  for (int i = 0; i < 160; ++i) out.number<int8_t>(i % 3 == 0 ? -1 : 1);
  for (int i = 0; i < 128; ++i) out.number<uint16_t>(0x3c00);
  return out.data;
}

}  // namespace bitqwen::test
