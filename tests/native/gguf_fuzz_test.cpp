// Damaged files, tens of thousands of them, the same ones each time: opening one and reading all of it
// either works or throws bitqwen::Error, and takes no more memory than the file's size explains.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <new>
#include <random>

#include "doctest/doctest.h"
#include "errors.h"
#include "gguf/dequantize.h"
#include "gguf/reader.h"
#include "gguf_builder.h"

namespace {
size_t allocated = 0;  // bytes, since it was last set to 0

void* counted(size_t bytes) noexcept {
  allocated += bytes;
  return std::malloc(bytes ? bytes : 1);
}
}  // namespace

// Never inlined: gcc would warn of a pair of `new` and `free`.
[[gnu::noinline]] void* operator new(size_t bytes) {
  if (void* p = counted(bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new[](size_t bytes) { return operator new(bytes); }
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes); }
[[gnu::noinline]] void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return counted(bytes);
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }

namespace {

using namespace bitqwen;
using gguf::Value;
using gguf::ValueType;

constexpr size_t kBytesPerFileByte = 64;
constexpr size_t kFixedBytes = 32 << 10;  // messages, the vectors' first steps
constexpr int64_t kMaxBlock = 256;

double sum(const Value& value) {
  if (value.type == ValueType::kString) return static_cast<double>(value.as_string().size());
  if (value.type == ValueType::kBool) return value.as_bool();
  if (value.type != ValueType::kArray) {
    return value.type == ValueType::kUint64 ? static_cast<double>(value.as_unsigned()) : value.as_float();
  }
  double total = 0;
  if (value.element == ValueType::kString) {
    for (const std::string_view text : value.as_strings()) {
      for (const char c : text) total += c;
    }
  } else if (value.element == ValueType::kArray) {
    for (const Value& inner : value.as_arrays()) total += sum(inner);
  } else {
    for (uint64_t i = 0; i < value.count; ++i) total += sum(value.at(i));
  }
  return total;
}

// Touches every byte that a caller could reach.
double read_all(const gguf::File& file) {
  double total = 0;
  for (const auto& [key, value] : file.metadata()) {
    CHECK(file.find(key) == &value);
    total += sum(value);
  }
  std::array<float, kMaxBlock> values;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    CHECK(file.find_tensor(tensor.name) == &tensor);
    const gguf::TypeInfo* info = gguf::find_type(tensor.type_id);
    if (!info) {
      CHECK_THROWS_AS(file.view(tensor), Error);
      continue;
    }
    const gguf::TensorView view = file.view(tensor);
    for (const int8_t sign : view.signs) total += sign;
    CHECK((view.signs.empty() || view.signs.size() == static_cast<size_t>(view.cols)));
    CHECK(view.bytes.size() == static_cast<uint64_t>(view.rows * view.row_bytes()));
    for (size_t at = 0; at < view.bytes.size(); at += info->block_bytes) {
      gguf::dequantize(info->type, view.bytes.data() + at, info->block_size, values.data(),
                       view.codebook.data());
      total += static_cast<double>(values[0]);
    }
  }
  return total;
}

class Target {
 public:
  Target() : descriptor_(open(file_.path().c_str(), O_RDWR | O_CLOEXEC)) {}
  ~Target() { close(descriptor_); }

  /// True when the bytes make a file that can be opened.
  bool opens(const std::vector<uint8_t>& bytes) {
    const auto size = static_cast<ssize_t>(bytes.size());
    REQUIRE(ftruncate(descriptor_, size) == 0);
    REQUIRE(pwrite(descriptor_, bytes.data(), bytes.size(), 0) == size);
    ++files;
    const std::string path = file_.path();
    bool opened = false;
    allocated = 0;
    try {
      const gguf::File file(path);
      opened = true;
      volatile double sink = read_all(file);
      (void)sink;
    } catch (const Error& error) {
      CHECK_FALSE(std::string_view(error.what()).empty());
    }
    CHECK(allocated <= kBytesPerFileByte * bytes.size() + kFixedBytes);
    accepted += opened;
    return opened;
  }

  int files = 0, accepted = 0;

 private:
  test::TemporaryFile file_{"fuzz"};
  int descriptor_;
};

std::array<std::vector<uint8_t>, 2> samples() { return {test::sample_file(), test::rotated_file()}; }

constexpr std::array<uint64_t, 10> kEvil = {
    0,          1,          0x7fffffff, 0xffffffff,         0x100000000, 0x7fffffffffffffff,
    UINT64_MAX, 1ull << 63, 1ull << 61, UINT64_MAX / 18 + 1};

}  // namespace

TEST_CASE("the samples themselves are well-formed") {
  Target target;
  for (const std::vector<uint8_t>& sample : samples()) CHECK(target.opens(sample));
}

TEST_CASE("a file cut anywhere is refused") {
  Target target;
  for (const std::vector<uint8_t>& sample : samples()) {
    for (size_t length = 0; length < sample.size(); ++length) {
      CHECK_FALSE(target.opens({sample.begin(), sample.begin() + static_cast<ptrdiff_t>(length)}));
    }
  }
}

TEST_CASE("any byte may be any other") {
  Target target;
  for (const std::vector<uint8_t>& sample : samples()) {
    for (size_t at = 0; at < sample.size(); ++at) {
      for (const int value : {0x00, 0x01, 0x7f, 0x80, 0xff, sample[at] ^ 1, sample[at] ^ 0x20}) {
        std::vector<uint8_t> bytes = sample;
        bytes[at] = static_cast<uint8_t>(value);
        target.opens(bytes);
      }
    }
  }
  CHECK(target.accepted > 0);
  CHECK(target.accepted < target.files);
}

TEST_CASE("counts, lengths and offsets at the edges of their types") {
  Target target;
  for (const std::vector<uint8_t>& sample : samples()) {
    for (size_t at = 0; at + 8 <= sample.size(); ++at) {
      for (const uint64_t value : kEvil) {
        for (const size_t width : {4, 8}) {
          std::vector<uint8_t> bytes = sample;
          std::memcpy(bytes.data() + at, &value, width);
          target.opens(bytes);
        }
      }
    }
  }
  CHECK(target.accepted < target.files);
}

TEST_CASE("bytes flipped, put in, taken out and repeated, several at once") {
  Target target;
  const auto all = samples();
  std::mt19937_64 random(20);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  for (int round = 0; round < 20'000; ++round) {
    std::vector<uint8_t> bytes = all[static_cast<size_t>(round) % all.size()];
    for (size_t change = 0, changes = 1 + below(6); change < changes && !bytes.empty(); ++change) {
      const auto at = bytes.begin() + static_cast<ptrdiff_t>(below(bytes.size()));
      const auto run =
          static_cast<ptrdiff_t>(std::min<size_t>(below(24), static_cast<size_t>(bytes.end() - at)));
      switch (below(5)) {
        case 0: *at ^= static_cast<uint8_t>(1u << below(8)); break;
        case 1: bytes.insert(at, static_cast<uint8_t>(random())); break;
        case 2: bytes.erase(at, at + run); break;
        case 3: {
          const std::vector<uint8_t> copy(at, at + run);
          bytes.insert(at, copy.begin(), copy.end());
          break;
        }
        default: {
          const uint64_t value = kEvil[below(kEvil.size())];
          std::memcpy(&*at, &value, std::min<size_t>(8, static_cast<size_t>(bytes.end() - at)));
        }
      }
    }
    target.opens(bytes);
  }
  CHECK(target.accepted > 0);
  CHECK(target.accepted < target.files);
}

TEST_CASE("no value reads beyond its bytes") {
  // A mapped file ends in a page that may be read to its end. On the heap a sanitizer sees one byte too many.
  const std::vector<uint8_t> sample = test::sample_file();
  const auto first = sample.begin() + 24;
  const std::string subject = "the sample";
  int refused = 0;
  for (auto last = first; last != sample.end(); ++last) {
    const std::vector<uint8_t> bytes(first, last);
    gguf::Cursor in(bytes, subject);
    double total = 0;
    try {
      for (int key = 0; key < 17; ++key) {
        const std::string_view name = in.string(64, "a key");
        for (const char c : name) total += c;
        const auto type = static_cast<ValueType>(in.number<uint32_t>(name));
        total += sum(gguf::read_value(in, type, name));
      }
    } catch (const Error&) {
      ++refused;
    }
    CHECK(in.position() <= bytes.size());
    volatile double sink = total;
    (void)sink;
  }
  CHECK(refused > 400);  // every cut inside of the metadata
}

TEST_CASE("a large empty file that claims much costs nothing") {
  for (const test::Bytes& claims : {test::header(1 << 20, 0), test::header(0, 1 << 16)}) {
    const test::TemporaryFile file("claims", claims.data);
    std::filesystem::resize_file(file.path(), 512 << 20);  // sparse
    const std::string path = file.path();
    allocated = 0;
    CHECK_THROWS_AS(gguf::File{path}, Error);
    CHECK(allocated < kFixedBytes);
  }
}
