// GgufFile: the native reader; dequantize: tensor bytes to float32.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <optional>
#include <vector>

#include "bindings/bindings.h"
#include "errors.h"
#include "gguf/codebook.h"
#include "gguf/dequantize.h"
#include "gguf/reader.h"
#include "gguf/rotation.h"
#include "ops/ops.h"
#include "threads/pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace bitqwen {
namespace {

using gguf::File;
using gguf::TensorInfo;
using gguf::TensorView;
using gguf::Value;
using gguf::ValueType;

constexpr int64_t kValuesPerTask = 1 << 16;

nb::object text(std::string_view bytes) {
  // Metadata is UTF-8 by specification; a damaged string must not keep the file from being inspected.
  PyObject* object = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace");
  if (!object) nb::raise_python_error();
  return nb::steal(object);
}

nb::object to_python(const Value& value) {
  switch (value.type) {
    case ValueType::kString: return text(value.as_string());
    case ValueType::kBool: return nb::bool_(value.as_bool());
    case ValueType::kFloat32:
    case ValueType::kFloat64: return nb::float_(value.as_float());
    case ValueType::kArray: break;
    case ValueType::kUint64: return nb::int_(value.as_unsigned());
    default: return nb::int_(value.as_integer());
  }
  nb::list list;
  if (value.element == ValueType::kString) {
    for (const std::string_view item : value.as_strings()) list.append(text(item));
  } else if (value.element == ValueType::kArray) {
    for (const Value& item : value.as_arrays()) list.append(to_python(item));
  } else {
    for (uint64_t i = 0; i < value.count; ++i) list.append(to_python(value.at(i)));
  }
  return list;
}

const Value& value_of(const File& file, std::string_view key) {
  file.check_unchanged();
  const Value* value = file.find(key);
  if (!value) throw nb::key_error(std::string(key).c_str());
  return *value;
}

// A file's name need not be UTF-8: Python holds the other bytes as surrogates.
std::string path_bytes(nb::handle path) {
  PyObject* bytes = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &bytes)) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError)) nb::raise_python_error();
    PyErr_Clear();
    throw Error(ErrorKind::kArgument, "a path cannot have a zero byte in it", "Check the path.");
  }
  const auto owner = nb::steal<nb::bytes>(bytes);
  return {owner.c_str(), owner.size()};
}

const TensorInfo& tensor_named(const File& file, std::string_view name) {
  const TensorInfo* tensor = file.find_tensor(name);
  if (!tensor) throw Error(ErrorKind::kArgument, file.path() + " has no tensor '" + std::string(name) + "'");
  return *tensor;
}

using Floats = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using Points = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Signs = nb::ndarray<const int8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A large array that is written once and soon freed costs more for its pages, if they are small, than for
// what is written; numpy advises the same for its own.
void use_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr size_t kPage = 4096, kLarge = 4 << 20;
  if (bytes < kLarge) return;
  const size_t head = (kPage - reinterpret_cast<uintptr_t>(data) % kPage) % kPage;
  madvise(static_cast<char*>(data) + head, (bytes - head) / kPage * kPage, MADV_HUGEPAGE);  // may be refused
#endif
}

Floats new_floats(int64_t rows, int64_t cols) {
  const auto values = static_cast<size_t>(rows) * static_cast<size_t>(cols);
  float* data = new (std::nothrow) float[values];
  if (!data) {
    throw Error(ErrorKind::kResource,
                "too little memory for " + std::to_string(rows) + " x " + std::to_string(cols) +
                    " float32 values (" + std::to_string(values / 250'000'000) + " GB)",
                "Read fewer rows at a time.");
  }
  use_huge_pages(data, values * sizeof(float));
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Floats(data, {static_cast<size_t>(rows), static_cast<size_t>(cols)}, owner);
}

template <class Task>
void for_each_rows(int64_t rows, int64_t cols, int threads, const Task& task) {
  const int64_t grain = std::max<int64_t>(1, kValuesPerTask / std::max<int64_t>(cols, 1));
  const int64_t tasks = (rows + grain - 1) / grain;
  // A thread costs more than a small tensor takes.
  ThreadPool pool(static_cast<int>(
      std::clamp<int64_t>(threads > 0 ? threads : available_cores(), 1, std::max<int64_t>(1, tasks))));
  pool.parallel_for(rows, grain, [&](int64_t begin, int64_t end, int) { task(begin, end); });
}

void check_rotation(int64_t cols, const Signs& signs) {
  const auto count = static_cast<int64_t>(signs.size());
  if (cols < 1 || cols % gguf::kRotationBlock != 0 || cols > count) {
    throw Error(ErrorKind::kArgument, "rows of " + std::to_string(cols) + " values and " +
                                          std::to_string(count) + " signs; a multiple of " +
                                          std::to_string(gguf::kRotationBlock) +
                                          " and at least as many signs are allowed");
  }
}

// In its own columns, where the tensor is rotated.
Floats dequantize_view(const TensorView& view, int threads) {
  Floats out = new_floats(view.rows, view.cols);
  const std::vector<float> signs(view.signs.begin(), view.signs.end());
  {
    nb::gil_scoped_release release;
    for_each_rows(view.rows, view.cols, threads, [&](int64_t begin, int64_t end) {
      gguf::dequantize(view.type, view.row(begin), (end - begin) * view.cols, out.data() + begin * view.cols,
                       view.codebook.data());
      for (int64_t row = begin; !signs.empty() && row < end; ++row) {
        float* values = out.data() + row * view.cols;
        current_ops().hadamard_back(values, signs.data(), view.cols, values);
      }
    });
  }
  return out;
}

nb::tuple tensor_tuple(const TensorInfo& tensor) {
  nb::list shape;  // numpy's order: rows first
  for (auto d = tensor.dimensions.rbegin(); d != tensor.dimensions.rend(); ++d) shape.append(*d);
  return nb::make_tuple(text(tensor.name), tensor.type_id, nb::tuple(shape), tensor.offset, tensor.bytes);
}

}  // namespace

void bind_gguf(nb::module_& m) {
  nb::class_<File>(m, "GgufFile",
                   "A GGUF file, mapped read-only; every count and offset is checked when it is opened.")
      .def(
          "__init__",
          [](File* self, nb::handle path) {
            const std::string name = path_bytes(path);
            nb::gil_scoped_release release;
            new (self) File(name);
          },
          "path"_a)
      .def_prop_ro("path", &File::path)
      .def_prop_ro("size", &File::size)
      .def_prop_ro("version", &File::version)
      .def_prop_ro("alignment", &File::alignment)
      .def_prop_ro("data_offset", &File::data_offset)
      .def("keys",
           [](const File& file) {
             nb::list keys;
             for (const auto& [key, value] : file.metadata()) keys.append(text(key));
             return keys;
           })
      .def(
          "value", [](const File& file, std::string_view key) { return to_python(value_of(file, key)); },
          "key"_a, "The value of a metadata key; KeyError when the file has none.")
      .def(
          "value_type",
          [](const File& file, std::string_view key) {
            const Value& value = value_of(file, key);
            return nb::make_tuple(static_cast<uint32_t>(value.type), static_cast<uint32_t>(value.element),
                                  value.count);
          },
          "key"_a, "(value type, element type, count) of a metadata key, without reading it.")
      .def(
          "tensors",
          [](const File& file) {
            nb::list tensors;
            for (const TensorInfo& tensor : file.tensors()) tensors.append(tensor_tuple(tensor));
            return tensors;
          },
          "(name, type id, shape, offset, bytes) of every tensor; shape in numpy's order.")
      .def(
          "raw",
          [](nb::handle self, std::string_view name) {
            const File& file = nb::cast<const File&>(self);
            file.check_unchanged();
            const TensorView view = file.raw_view(tensor_named(file, name));
            return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(view.bytes.data(), {view.bytes.size()},
                                                                      self);
          },
          "name"_a, "The tensor's bytes as they lie in the file, not copied.")
      .def(
          "read",
          [](const File& file, std::string_view name, int threads, int64_t begin, int64_t end) {
            file.check_unchanged();
            TensorView view = file.view(tensor_named(file, name));
            if (end < 0) end = view.rows;
            if (begin < 0 || begin > end || end > view.rows) {
              throw Error(ErrorKind::kArgument, "rows " + std::to_string(begin) + " to " +
                                                    std::to_string(end) + " of a tensor of " +
                                                    std::to_string(view.rows));
            }
            view.bytes = view.bytes.subspan(begin * view.row_bytes(), (end - begin) * view.row_bytes());
            view.rows = end - begin;
            return dequantize_view(view, threads);
          },
          "name"_a, "threads"_a = 0, "begin"_a = 0, "end"_a = -1,
          "Rows [begin, end) as float32 [rows, columns].")
      .def(
          "release",
          [](const File& file, std::string_view name) {
            file.release(file.raw_view(tensor_named(file, name)));
          },
          "name"_a, "Lets the system drop the tensor's pages from this process.")
      .def("type_name", &File::type_name, "type"_a, "A readable name for a tensor type of this file.")
      .def("check_unchanged", &File::check_unchanged);

  m.def(
      "dequantize",
      [](uint32_t type, const Bytes& bytes, int64_t rows, int64_t cols, int threads,
         const std::optional<Points>& codebook) {
        const gguf::TypeInfo* info = gguf::find_type(type);
        if (!info) throw Error(ErrorKind::kArgument, "tensor type " + std::to_string(type) + " is not known");
        const uint64_t blocks = bytes.size() / info->block_bytes;  // rows * (cols / block size), if they fit
        const bool whole = cols > 0 && cols % info->block_size == 0 && bytes.size() % info->block_bytes == 0;
        const uint64_t row_blocks = whole ? static_cast<uint64_t>(cols) / info->block_size : 1;
        if (!whole || rows < 0 || blocks % row_blocks || blocks / row_blocks != static_cast<uint64_t>(rows)) {
          throw Error(ErrorKind::kArgument, std::to_string(bytes.size()) + " bytes are not a " +
                                                std::string(info->name) + " matrix of " +
                                                std::to_string(rows) + " x " + std::to_string(cols));
        }
        TensorView view{"", info->type, rows, cols, {bytes.data(), bytes.size()}};
        if (codebook) view.codebook = {codebook->data(), codebook->size()};
        if (info->codebook.entries > 0) gguf::check_codebook(*info, view.codebook, "bytes");
        return dequantize_view(view, threads);
      },
      "type"_a, "bytes"_a, "rows"_a, "cols"_a, "threads"_a = 0, "codebook"_a.none() = nb::none(),
      "Tensor bytes as float32 [rows, cols].");
  m.def(
      "rotate",
      [](const Matrix& matrix, const Signs& first, bool back, int threads) {
        const auto rows = static_cast<int64_t>(matrix.shape(0)), cols = static_cast<int64_t>(matrix.shape(1));
        check_rotation(cols, first);
        const std::vector<float> signs(first.data(), first.data() + cols);
        Floats out = new_floats(rows, cols);
        nb::gil_scoped_release release;
        const auto turn = back ? current_ops().hadamard_back : current_ops().hadamard;
        for_each_rows(rows, cols, threads, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            turn(matrix.data() + row * cols, signs.data(), cols, out.data() + row * cols);
          }
        });
        return out;
      },
      "matrix"_a, "signs"_a, "back"_a = false, "threads"_a = 0,
      "Rows [rows, cols] rotated, or turned back, by the first signs int8; cols is a multiple of 128.");
  m.def(
      "type_info",
      [](uint32_t type) -> nb::object {
        const gguf::TypeInfo* info = gguf::find_type(type);
        if (!info) return nb::none();
        return nb::make_tuple(text(info->name), info->block_size, info->block_bytes);
      },
      "type"_a, nb::sig("def type_info(type: int) -> tuple[str, int, int] | None"),
      "(name, values in a block, bytes of a block), or None for a type that this build does not read.");
  m.def(
      "codebook_shape",
      [](uint32_t type) -> nb::object {
        const gguf::TypeInfo* info = gguf::find_type(type);
        if (!info || info->codebook.entries == 0) return nb::none();
        return nb::make_tuple(info->codebook.entries, info->codebook.dims);
      },
      "type"_a, nb::sig("def codebook_shape(type: int) -> tuple[int, int] | None"),
      "(points, weights in a vector) that a tensor of the type has in its codebook, or None.");
  m.def(
      "codebook_name", [](std::string_view tensor) { return gguf::codebook_name(tensor); }, "tensor"_a,
      "The name of the tensor that holds another one's codebook.");
  m.def(
      "type_name", [](uint32_t type) { return gguf::known_type_name(type); }, "type"_a,
      "A readable name for any type id.");
}

}  // namespace bitqwen
