// GgufFile: the native reader; dequantize: tensor bytes to float32.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "errors.h"
#include "gguf/dequantize.h"
#include "gguf/reader.h"
#include "threads/pool.h"

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
  return nb::steal(PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace"));
}

nb::object to_python(const Value& value) {
  switch (value.type) {
    case ValueType::kString: return text(value.as_string());
    case ValueType::kBool: return nb::bool_(value.as_bool());
    case ValueType::kFloat32:
    case ValueType::kFloat64: return nb::float_(value.as_float());
    case ValueType::kArray: break;
    default: return nb::int_(value.as_integer());
  }
  nb::list list;
  if (value.element == ValueType::kString) {
    for (const std::string_view item : value.as_strings()) list.append(text(item));
  } else if (value.element != ValueType::kArray) {
    for (uint64_t i = 0; i < value.count; ++i) list.append(to_python(value.at(i)));
  }
  return list;
}

const TensorInfo& tensor_named(const File& file, std::string_view name) {
  const TensorInfo* tensor = file.find_tensor(name);
  if (!tensor) throw Error(ErrorKind::kArgument, file.path() + " has no tensor '" + std::string(name) + "'");
  return *tensor;
}

using Floats = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Floats new_floats(int64_t rows, int64_t cols) {
  auto* data = new float[static_cast<size_t>(rows * cols)];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Floats(data, {static_cast<size_t>(rows), static_cast<size_t>(cols)}, owner);
}

Floats dequantize_view(const TensorView& view, int threads) {
  Floats out = new_floats(view.rows, view.cols);
  {
    nb::gil_scoped_release release;
    ThreadPool pool(threads);
    const int64_t grain = std::max<int64_t>(1, kValuesPerTask / view.cols);
    pool.parallel_for(view.rows, grain, [&](int64_t begin, int64_t end, int) {
      gguf::dequantize(view.type, view.row(begin), (end - begin) * view.cols, out.data() + begin * view.cols);
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
      .def(nb::init<const std::string&>(), "path"_a)
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
          "value",
          [](const File& file, std::string_view key) -> nb::object {
            const Value* value = file.find(key);
            if (!value) throw nb::key_error(std::string(key).c_str());
            return to_python(*value);
          },
          "key"_a, "The value of a metadata key; KeyError when the file has none.")
      .def(
          "value_type",
          [](const File& file, std::string_view key) -> nb::object {
            const Value* value = file.find(key);
            if (!value) throw nb::key_error(std::string(key).c_str());
            return nb::make_tuple(static_cast<uint32_t>(value->type), static_cast<uint32_t>(value->element),
                                  value->count);
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
            const TensorView view = file.view(tensor_named(file, name));
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
          [](const File& file, std::string_view name) { file.release(file.view(tensor_named(file, name))); },
          "name"_a, "Lets the system drop the tensor's pages from this process.")
      .def("check_unchanged", &File::check_unchanged);

  m.def(
      "dequantize",
      [](uint32_t type, const Bytes& bytes, int64_t rows, int64_t cols, int threads) {
        const gguf::TypeInfo* info = gguf::find_type(type);
        if (!info) throw Error(ErrorKind::kArgument, "tensor type " + std::to_string(type) + " is not known");
        if (rows < 0 || cols < 1 || cols % info->block_size ||
            static_cast<uint64_t>(rows) > bytes.size() / (cols / info->block_size * info->block_bytes) ||
            static_cast<uint64_t>(rows) * (cols / info->block_size * info->block_bytes) != bytes.size()) {
          throw Error(ErrorKind::kArgument, std::to_string(bytes.size()) + " bytes are not a " +
                                                std::string(info->name) + " matrix of " +
                                                std::to_string(rows) + " x " + std::to_string(cols));
        }
        TensorView view{"", info->type, rows, cols, {bytes.data(), bytes.size()}};
        return dequantize_view(view, threads);
      },
      "type"_a, "bytes"_a, "rows"_a, "cols"_a, "threads"_a = 0, "Tensor bytes as float32 [rows, cols].");
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
      "type_name", [](uint32_t type) { return text(gguf::known_type_name(type)); }, "type"_a,
      "A readable name for any type id.");
}

}  // namespace bitqwen
