#include <doctest/doctest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "errors.h"
#include "kernels_support.h"
#include "threads/pool.h"
#include "weights/layout.h"
#include "weights/packed_matrix.h"

using namespace bitqwen;
using namespace bitqwen::testing;

TEST_CASE("buffers of shared pages are apart, zero, aligned, and outlive each other") {
  const auto filled = [](const PackedBuffer& buffer, uint8_t value) {
    return std::all_of(buffer.data(), buffer.data() + buffer.bytes(), [&](uint8_t x) { return x == value; });
  };
  std::vector<PackedBuffer> buffers;
  // Together more than are mapped at once, and one that is mapped alone.
  for (int i = 0; i < 12; ++i) buffers.emplace_back((int64_t{7} << 20) + i, Pages::kShared);
  buffers.emplace_back(int64_t{40} << 20, Pages::kShared);
  for (size_t i = 0; i < buffers.size(); ++i) {
    CHECK(buffers[i].bytes() % 4096 == 0);
    CHECK(reinterpret_cast<uintptr_t>(buffers[i].data()) % 4096 == 0);
    REQUIRE(filled(buffers[i], 0));
    std::fill_n(buffers[i].data(), buffers[i].bytes(), static_cast<uint8_t>(i + 1));
  }
  for (size_t i = 0; i + 1 < buffers.size(); i += 2) buffers[i] = PackedBuffer();
  for (size_t i = 1; i < buffers.size(); i += 2) REQUIRE(filled(buffers[i], static_cast<uint8_t>(i + 1)));
  const PackedBuffer another(int64_t{5} << 20, Pages::kShared);
  CHECK(filled(another, 0));
}

TEST_CASE("threads take shared pages at once") {
  std::vector<std::thread> threads;
  std::vector<PackedBuffer> buffers(64);
  for (size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (size_t i = thread; i < buffers.size(); i += 4) {
        buffers[i] = PackedBuffer(int64_t{3} << 20, Pages::kShared);
        std::fill_n(buffers[i].data(), buffers[i].bytes(), static_cast<uint8_t>(i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < buffers.size(); ++i) {
    REQUIRE(std::all_of(buffers[i].data(), buffers[i].data() + buffers[i].bytes(),
                        [&](uint8_t x) { return x == static_cast<uint8_t>(i); }));
  }
}

TEST_CASE("rows read back are the values that the tensor's bytes mean, to the last bit") {
  Random random(1);
  ThreadPool pool(2);
  for (const gguf::TensorType type : kAllTypes) {
    CAPTURE(std::string(gguf::type_info(type).name));
    const int64_t block = gguf::type_info(type).block_size;
    for (const int64_t rows : {1, 15, 16, 17, 50}) {
      const int64_t cols = block == 1 ? 77 : block * 3;
      const Tensor tensor = random_tensor(type, rows, cols, random);
      const PackedMatrix w = PackedMatrix::pack(tensor.view, pool);
      CHECK(w.rows() == rows);
      CHECK(w.cols() == cols);
      const std::vector<float> expected = tensor.values();
      std::vector<float> read(rows * cols);
      for (int64_t r = 0; r < rows; ++r) w.dequantize_row(r, read.data() + r * cols);
      for (size_t i = 0; i < read.size(); ++i) REQUIRE(read[i] == expected[i]);
    }
  }
}

TEST_CASE("ternary rows read back alike from both layouts, and a code that is no trit keeps two bits") {
  Random random(5);
  ThreadPool pool(2);
  for (const int64_t rows : {1, 16, 79, 150}) {
    for (const int64_t cols : {256, 1024, 2816}) {
      Tensor tensor = random_tensor(gguf::TensorType::kTQ1_0, rows, cols, random);
      const PackedMatrix w = PackedMatrix::pack(tensor.view, pool, TernaryLayout::kFiveInByte);
      REQUIRE(w.layout().format == Format::kTernary5);
      const std::vector<float> expected = tensor.values();
      std::vector<float> read(cols);
      for (int64_t r = 0; r < rows; ++r) {
        w.dequantize_row(r, read.data());
        for (int64_t c = 0; c < cols; ++c) REQUIRE(read[c] == expected[r * cols + c]);
      }
    }
  }
  Tensor tensor = random_tensor(gguf::TensorType::kTQ2_0, 40, 512, random);  // has all four codes
  CHECK(PackedMatrix::pack(tensor.view, pool, TernaryLayout::kFiveInByte).layout().format ==
        Format::kTernary);
  for (uint8_t& byte : tensor.bytes) byte &= static_cast<uint8_t>(~(byte >> 1 & 0x55));
  const PackedMatrix w = PackedMatrix::pack(tensor.view, pool, TernaryLayout::kFiveInByte);
  CHECK(w.layout().format == Format::kTernary5);
  const std::vector<float> expected = tensor.values();
  std::vector<float> read(512);
  w.dequantize_row(39, read.data());
  for (int64_t c = 0; c < 512; ++c) CHECK(read[c] == expected[39 * 512 + c]);
}

TEST_CASE("packed weights take the file's bytes") {
  Random random(2);
  ThreadPool pool(1);
  for (const gguf::TensorType type : kAllTypes) {
    CAPTURE(std::string(gguf::type_info(type).name));
    const Tensor tensor = random_tensor(type, 160, 1024, random);
    const PackedMatrix w = PackedMatrix::pack(tensor.view, pool);
    const auto file_bytes = static_cast<int64_t>(tensor.bytes.size());
    const int64_t packed = w.layout().block_bytes * 10;
    if (type == gguf::TensorType::kTQ1_0) {
      CHECK(packed == 160 * 1024 / 256 * 66);  // five trits a byte become four two-bit codes
      const PackedMatrix five = PackedMatrix::pack(tensor.view, pool, TernaryLayout::kFiveInByte);
      CHECK(five.layout().block_bytes * 10 == file_bytes);
    } else {
      CHECK(packed == file_bytes);
    }
    CHECK(w.bytes() >= packed);
    CHECK(w.bytes() < packed + 4096);
    CHECK(reinterpret_cast<uintptr_t>(w.layout().buffer.data()) % 64 == 0);
  }
}

TEST_CASE("the thread count changes nothing in the packed bytes") {
  Random random(3);
  ThreadPool one(1), three(3);
  const Tensor tensor = random_tensor(gguf::TensorType::kQ6_K, 4000, 512, random);
  const PackedMatrix a = PackedMatrix::pack(tensor.view, one);
  const PackedMatrix b = PackedMatrix::pack(tensor.view, three);
  REQUIRE(a.bytes() == b.bytes());
  CHECK(std::memcmp(a.layout().buffer.data(), b.layout().buffer.data(), a.bytes()) == 0);
}

TEST_CASE("half precision: every bit pattern converts as the format defines") {
  constexpr int64_t kPatterns = 0x10000;
  Tensor tensor;  // a pattern a row
  for (int64_t bits = 0; bits < kPatterns; ++bits) {
    tensor.bytes.push_back(static_cast<uint8_t>(bits));
    tensor.bytes.push_back(static_cast<uint8_t>(bits >> 8));
  }
  tensor.view = {
      .name = "h", .type = gguf::TensorType::kF16, .rows = kPatterns, .cols = 1, .bytes = tensor.bytes};
  ThreadPool pool(1);
  const PackedMatrix w = PackedMatrix::pack(tensor.view, pool);
  for (int64_t bits = 0; bits < kPatterns; ++bits) {
    float value;
    w.dequantize_row(bits, &value);
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const auto mantissa = static_cast<float>(bits & 0x3ff);
    float expected = exponent == 0 ? mantissa * 0x1p-24f : std::ldexp(1.0f + mantissa / 1024, exponent - 15);
    if (bits & 0x8000) expected = -expected;
    if (exponent == 31) {
      REQUIRE((mantissa == 0 ? std::isinf(value) : std::isnan(value)));
      REQUIRE(std::signbit(value) == ((bits & 0x8000) != 0));
    } else {
      REQUIRE(value == expected);
    }
  }
}

TEST_CASE("shapes that the type cannot hold are refused") {
  Random random(4);
  ThreadPool pool(1);
  Tensor tensor = random_tensor(gguf::TensorType::kQ4_K, 4, 512, random);
  tensor.view.cols = 500;
  CHECK_THROWS_AS(PackedMatrix::pack(tensor.view, pool), Error);
  tensor.view.cols = 512;
  tensor.view.rows = 5;  // more rows than bytes
  CHECK_THROWS_AS(PackedMatrix::pack(tensor.view, pool), Error);
  tensor.view.rows = 0;
  CHECK_THROWS_AS(PackedMatrix::pack(tensor.view, pool), Error);
  tensor.view.rows = 4;
  tensor.view.type = static_cast<gguf::TensorType>(99);
  CHECK_THROWS_AS(PackedMatrix::pack(tensor.view, pool), Error);
}
