// The reader's C++ face. What it says of damaged files is tested from Python, that it survives them in
// gguf_fuzz_test.cpp.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "doctest/doctest.h"
#include "errors.h"
#include "gguf/reader.h"
#include "gguf/utf8.h"
#include "gguf_builder.h"

using namespace bitqwen;
using namespace bitqwen::test;
using gguf::File;
using gguf::Value;
using gguf::ValueType;

namespace {

template <class Body>
ErrorKind kind_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.kind();
  }
  FAIL("nothing was thrown");
  return ErrorKind::kArgument;
}

}  // namespace

TEST_CASE("metadata of every type") {
  const TemporaryFile path("metadata", sample_file());
  const File file(path.path());
  CHECK(file.version() == 3);
  CHECK(file.alignment() == 64);
  CHECK(file.metadata().size() == 17);
  CHECK(file.metadata().front().first == "general.architecture");
  CHECK(file.find("general.architecture")->as_string() == "qwen2");
  CHECK(file.find("u8")->as_integer() == 200);
  CHECK(file.find("i8")->as_integer() == -100);
  CHECK(file.find("u16")->as_integer() == 60000);
  CHECK(file.find("i16")->as_integer() == -30000);
  CHECK(file.find("i32")->as_integer() == -2000000000);
  CHECK(file.find("i64")->as_integer() == -(1ll << 62));
  CHECK(file.find("u64")->as_unsigned() == (1ull << 63 | 1));
  CHECK(file.find("f32")->as_float() == 0.5);
  CHECK(file.find("f64")->as_float() == 0.1);
  CHECK(file.find("u8")->as_float() == 200.0);
  CHECK(file.find("bool")->as_bool());
  CHECK(file.find("missing") == nullptr);
}

TEST_CASE("arrays stay in the file until they are asked for") {
  const TemporaryFile path("arrays", sample_file());
  const File file(path.path());
  const Value* tokens = file.find("tokens");
  CHECK(tokens->count == 3);
  CHECK(tokens->as_strings() == std::vector<std::string_view>{"a", "", "\xc3\xa9"});
  const Value* numbers = file.find("numbers");
  CHECK(numbers->at(1).as_integer() == -2);
  CHECK(kind_of([&] { numbers->at(3); }) == ErrorKind::kFormat);
  CHECK(file.find("empty")->count == 0);
  const std::vector<Value> nested = file.find("nested")->as_arrays();
  REQUIRE(nested.size() == 2);
  CHECK(nested[0].at(1).as_integer() == 2);
  CHECK(nested[1].as_arrays()[0].as_strings()[0] == "deep");
}

TEST_CASE("a value of another kind is refused by its key's name") {
  const TemporaryFile path("kinds", sample_file());
  const File file(path.path());
  CHECK_THROWS_WITH_AS(file.find("f32")->as_integer(),
                       "metadata key 'f32' is of type float32; an integer is expected", Error);
  CHECK_THROWS_WITH_AS(file.find("tokens")->as_string(),
                       "metadata key 'tokens' is of type array of string; a string is expected", Error);
  for (const char* key : {"u8", "bool", "tokens"}) {
    CHECK(kind_of([&] { file.find(key)->as_string(); }) == ErrorKind::kFormat);
  }
  CHECK(kind_of([&] { file.find("u64")->as_integer(); }) == ErrorKind::kFormat);
  CHECK(kind_of([&] { file.find("i8")->as_unsigned(); }) == ErrorKind::kFormat);
  CHECK(kind_of([&] { file.find("numbers")->as_strings(); }) == ErrorKind::kFormat);
  CHECK(kind_of([&] { file.find("u8")->as_bool(); }) == ErrorKind::kFormat);
}

TEST_CASE("tensors: rows, columns and bytes") {
  const TemporaryFile path("tensors", sample_file());
  const File file(path.path());
  REQUIRE(file.tensors().size() == 5);
  const gguf::TensorView view = file.view(*file.find_tensor("f32.weight"));
  CHECK(view.rows == 2);
  CHECK(view.cols == 3);
  float last;
  std::memcpy(&last, view.row(1) + 8, sizeof last);
  CHECK(last == 5.0f);
  const gguf::TensorInfo* q4 = file.find_tensor("q4_0.weight");
  CHECK(q4->bytes == 36);
  CHECK(q4->offset == file.data_offset() + 64);
  CHECK(file.view(*q4).row_bytes() == 18);
  CHECK(file.find_tensor("output.weight") == nullptr);
  CHECK(file.find_tensor("f32") == nullptr);
}

TEST_CASE("a type that is not read is listed, and refused when it is used") {
  const TemporaryFile path("foreign", sample_file());
  const File file(path.path());
  const gguf::TensorInfo* tensor = file.find_tensor("mxfp4.weight");
  CHECK(tensor->bytes == 64);  // the room up to the next tensor
  CHECK(kind_of([&] { file.view(*tensor); }) == ErrorKind::kUnsupported);
}

TEST_CASE("a rotated matrix comes with the signs of its columns") {
  const TemporaryFile path("rotated", rotated_file());
  const File file(path.path());
  CHECK(file.rotation_signs().size() == 160);
  const gguf::TensorView view = file.view(*file.find_tensor("a.weight"));
  REQUIRE(view.signs.size() == 128);
  CHECK(view.signs[0] == -1);
  CHECK(view.signs[1] == 1);
  CHECK(file.view(*file.find_tensor("rotation.signs")).signs.empty());
}

TEST_CASE("only regular files that can be read are opened") {
  CHECK(kind_of([] { File("/nonexistent/model.gguf"); }) == ErrorKind::kFile);
  CHECK(kind_of([] { File(std::filesystem::temp_directory_path().string()); }) == ErrorKind::kFile);
  const std::string pipe = TemporaryFile("pipe").path();  // its name is free again
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(kind_of([&] { File{pipe}; }) == ErrorKind::kFile);  // and does not wait for a writer
  unlink(pipe.c_str());
}

TEST_CASE("a file that changes while it is mapped is noticed") {
  TemporaryFile path("changed", sample_file());
  const File file(path.path());
  file.check_unchanged();
  SUBCASE("cut") { std::filesystem::resize_file(path.path(), 100); }
  SUBCASE("longer") { std::filesystem::resize_file(path.path(), 100'000); }
  SUBCASE("written to") {
    path.write(sample_file());
    std::filesystem::last_write_time(path.path(),
                                     std::filesystem::file_time_type::clock::now() + std::chrono::seconds(5));
  }
  CHECK(kind_of([&] { file.check_unchanged(); }) == ErrorKind::kFile);
}

TEST_CASE("lengths that change under an open file stay inside of it") {
  std::vector<uint8_t> bytes = sample_file();
  TemporaryFile path("lengths", bytes);
  const File file(path.path());
  const auto at = std::search(bytes.begin(), bytes.end(), file.find("tokens")->bytes.begin(),
                              file.find("tokens")->bytes.end());
  REQUIRE(at != bytes.end());
  std::fill(at, at + 8, uint8_t{0x7f});
  path.write(bytes);
  CHECK(kind_of([&] { file.find("tokens")->as_strings(); }) == ErrorKind::kFormat);
}

TEST_CASE("release leaves the tensor readable") {
  const TemporaryFile path("release", sample_file());
  const File file(path.path());
  const gguf::TensorView view = file.view(*file.find_tensor("q4_0.weight"));
  const std::vector<uint8_t> before(view.bytes.begin(), view.bytes.end());
  file.release(view);
  CHECK(std::equal(before.begin(), before.end(), view.bytes.begin()));
}

TEST_CASE("UTF-8") {
  CHECK(gguf::is_utf8("blk.0.attn_q.weight"));
  CHECK(gguf::is_utf8("\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x90\xb4"));
  for (const std::string_view bad :
       {"\x80", "\xc3", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "a\xe4\xbd"}) {
    CHECK_FALSE(gguf::is_utf8(bad));
  }
  CHECK(gguf::readable_utf8("a\xff\xc3\xa9\xe4\xbd") == "a?\xc3\xa9??");
}
