#include "gguf/reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "errors.h"
#include "gguf/codebook.h"
#include "gguf/rotation.h"
#include "gguf/utf8.h"

namespace bitqwen::gguf {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr int kMaxDimensions = 4;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint64_t kMaxKeyBytes = 65535;  // the specification's limit
constexpr uint64_t kMaxNameBytes = 1024;  // the specification says 64; some writers exceed it
// Far beyond any model; what a hostile file makes us remember stays small.
constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 20;

// bitnet.cpp wrote these ids before the mainline gave one of them to another type.
constexpr uint32_t kBitnetCppTL2 = 39;
// Prism's first ternary files hold blocks of 128 under the id of the mainline's blocks of 64.
constexpr uint64_t kLegacyBlockSize = 128, kLegacyBlockBytes = 34;

Value read_entry(Cursor& in, std::string_view& key) {
  key = in.string(kMaxKeyBytes, "a metadata key");
  if (key.empty() || !is_utf8(key)) {
    in.fail("is damaged: metadata key " + quoted(key) + " is empty or not UTF-8");
  }
  const auto type = static_cast<ValueType>(in.number<uint32_t>(key));
  return read_value(in, type, key);
}

TensorInfo read_tensor_info(Cursor& in) {
  TensorInfo tensor;
  tensor.name = in.string(kMaxNameBytes, "a tensor's name");
  if (!is_utf8(tensor.name)) in.fail("is damaged: tensor name " + quoted(tensor.name) + " is not UTF-8");
  const auto impossible = [&] {
    in.fail("is damaged: tensor " + quoted(tensor.name) + " has an impossible shape");
  };
  const auto dimensions = in.number<uint32_t>(tensor.name);
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    in.fail("is damaged: tensor " + quoted(tensor.name) + " has " + std::to_string(dimensions) +
            " dimensions; 1 to 4 are allowed");
  }
  uint64_t elements = 1;
  for (uint32_t d = 0; d < dimensions; ++d) {
    const auto size = in.number<uint64_t>(tensor.name);
    if (size == 0 || size > INT64_MAX || elements > INT64_MAX / size) impossible();
    elements *= size;
    tensor.dimensions.push_back(static_cast<int64_t>(size));
  }
  tensor.type_id = in.number<uint32_t>(tensor.name);
  tensor.offset = in.number<uint64_t>(tensor.name);
  if (const TypeInfo* info = find_type(tensor.type_id)) {
    if (tensor.dimensions[0] % info->block_size != 0) {
      in.fail("is damaged: tensor " + quoted(tensor.name) + " has rows of " +
              std::to_string(tensor.dimensions[0]) + " values; " + std::string(info->name) +
              " needs a multiple of " + std::to_string(info->block_size));
    }
    const uint64_t blocks = elements / info->block_size;
    if (blocks > INT64_MAX / info->block_bytes) impossible();
    tensor.bytes = blocks * info->block_bytes;
  }
  return tensor;
}

// Would the tensor fill `room` if its blocks were Prism's older ones?
bool is_legacy_q2_0(const TensorInfo& tensor, uint64_t room, uint64_t alignment) {
  if (tensor.type_id != static_cast<uint32_t>(TensorType::kQ2_0)) return false;
  if (tensor.dimensions[0] % kLegacyBlockSize != 0) return false;
  const TypeInfo& info = type_info(TensorType::kQ2_0);
  const uint64_t values = tensor.bytes / info.block_bytes * info.block_size;
  const uint64_t bytes = values / kLegacyBlockSize * kLegacyBlockBytes;
  return bytes <= room && room - bytes < alignment;
}

[[noreturn]] void refuse_legacy_q2_0(const std::string& path, const TensorInfo& tensor) {
  throw Error(ErrorKind::kUnsupported,
              path + ": tensor " + quoted(tensor.name) +
                  " says type Q2_0 (42) and has the size of blocks of 128, which an older fork wrote; "
                  "Q2_0 has blocks of 64",
              "Use the model's file with blocks of 64 (often named Q2_0_g64), or convert the checkpoint.");
}

// Positions of `items` in the order of their names; two of one name are refused.
template <class Items, class NameOf>
std::vector<uint32_t> sorted_by_name(const Items& items, NameOf name, const char* kind, const Cursor& in) {
  std::vector<uint32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::sort(order, {}, [&](uint32_t i) { return name(items[i]); });
  const auto twin = std::ranges::adjacent_find(
      order, [&](uint32_t a, uint32_t b) { return name(items[a]) == name(items[b]); });
  if (twin != order.end()) {
    in.fail("is damaged: it has the " + std::string(kind) + " " + quoted(name(items[*twin])) + " twice");
  }
  return order;
}

template <class Items, class NameOf>
auto find_named(const Items& items, const std::vector<uint32_t>& order, NameOf name, std::string_view wanted)
    -> decltype(items.data()) {
  const auto found = std::ranges::lower_bound(order, wanted, {}, [&](uint32_t i) { return name(items[i]); });
  if (found == order.end() || name(items[*found]) != wanted) return nullptr;
  return &items[*found];
}

std::string_view key_of(const std::pair<std::string_view, Value>& entry) { return entry.first; }
std::string_view name_of(const TensorInfo& tensor) { return tensor.name; }

int64_t modified_ns(const struct stat& status) {
#if defined(__APPLE__)
  return status.st_mtimespec.tv_sec * 1'000'000'000LL + status.st_mtimespec.tv_nsec;
#else
  return status.st_mtim.tv_sec * 1'000'000'000LL + status.st_mtim.tv_nsec;
#endif
}

}  // namespace

File::File(const std::string& path) : path_(readable_utf8(path)) {
  // Without O_NONBLOCK a pipe without a writer would be waited for, before it could be refused.
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) {
    throw Error(ErrorKind::kFile, "cannot open " + path_ + ": " + std::strerror(errno),
                "Check the path and its permissions.");
  }
  try {
    struct stat status;
    if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
      throw Error(ErrorKind::kFile, path_ + " is not a regular file", "Give the path of a .gguf file.");
    }
    size_ = static_cast<uint64_t>(status.st_size);
    modified_ns_ = modified_ns(status);
    if (size_ < 24) {
      throw Error(ErrorKind::kFormat,
                  path_ + " is not a GGUF file: it has " + std::to_string(size_) +
                      " bytes; the header alone takes 24",
                  "Fetch or convert the file again.");
    }
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (mapped == MAP_FAILED) {
      throw Error(ErrorKind::kFile, "cannot map " + path_ + ": " + std::strerror(errno));
    }
    data_ = static_cast<const uint8_t*>(mapped);
    read_header();
  } catch (...) {
    if (data_) munmap(const_cast<uint8_t*>(data_), size_);
    close(descriptor_);
    throw;
  }
}

File::~File() {
  munmap(const_cast<uint8_t*>(data_), size_);
  close(descriptor_);
}

void File::read_header() {
  Cursor in({data_, size_}, path_);
  if (in.number<uint32_t>("the magic") != kMagic) {
    throw Error(ErrorKind::kFormat, path_ + " is not a GGUF file: it does not begin with 'GGUF'",
                "bitqwen reads GGUF files and Hugging Face checkpoint folders.");
  }
  version_ = in.number<uint32_t>("the version");
  if (version_ != 2 && version_ != 3) {
    const bool swapped = (version_ & 0xffff) == 0 && version_ != 0;
    throw Error(
        ErrorKind::kUnsupported,
        path_ + (swapped ? " is a big-endian GGUF file" : " is GGUF version " + std::to_string(version_)) +
            "; little-endian versions 2 and 3 are supported",
        "Convert the original checkpoint again.");
  }
  const auto tensors = in.number<uint64_t>("the number of tensors");
  const auto keys = in.number<uint64_t>("the number of metadata keys");
  // A key takes at least 8 + 1 + 4 + 1 bytes, a tensor 8 + 4 + 8 + 4 + 8. The vectors grow with what is
  // really there, never to what is claimed.
  const uint64_t most_keys = std::min(kMaxKeys, in.left() / 14);
  const uint64_t most_tensors = std::min(kMaxTensors, in.left() / 32);
  if (keys > most_keys || tensors > most_tensors) {
    in.fail("is damaged: it claims " + std::to_string(tensors) + " tensors and " + std::to_string(keys) +
            " metadata keys; in its " + std::to_string(size_) + " bytes at most " +
            std::to_string(most_tensors) + " and " + std::to_string(most_keys) + " are possible");
  }
  for (uint64_t i = 0; i < keys; ++i) {
    std::string_view key;
    const Value value = read_entry(in, key);
    metadata_.emplace_back(key, value);
  }
  metadata_by_key_ = sorted_by_name(metadata_, key_of, "metadata key", in);
  read_alignment(in);
  for (uint64_t i = 0; i < tensors; ++i) tensors_.push_back(read_tensor_info(in));
  tensors_by_name_ = sorted_by_name(tensors_, name_of, "tensor", in);
  data_offset_ = (in.position() + alignment_ - 1) / alignment_ * alignment_;
  place_tensors(in);
  read_rotation(in);
}

void File::read_alignment(const Cursor& in) {
  const Value* value = find("general.alignment");
  if (!value) return;
  alignment_ = value->as_unsigned();
  if (alignment_ > kMaxAlignment || !std::has_single_bit(alignment_)) {
    in.fail("is damaged: general.alignment is " + std::to_string(alignment_) +
            "; a power of two up to 1048576 is allowed");
  }
}

void File::place_tensors(const Cursor& in) {
  std::vector<TensorInfo*> in_order;
  for (TensorInfo& tensor : tensors_) {
    if (tensor.offset % alignment_ != 0) {
      in.fail("is damaged: tensor " + quoted(tensor.name) + " lies at offset " +
              std::to_string(tensor.offset) + ", not a multiple of the alignment " +
              std::to_string(alignment_));
    }
    if (data_offset_ > size_ || tensor.offset > size_ - data_offset_) {
      in.fail("is cut off: tensor " + quoted(tensor.name) + " begins beyond the file's " +
              std::to_string(size_) + " bytes");
    }
    tensor.offset += data_offset_;
    in_order.push_back(&tensor);
  }
  std::ranges::sort(in_order, {}, &TensorInfo::offset);
  for (size_t i = 0; i < in_order.size(); ++i) {
    TensorInfo& tensor = *in_order[i];
    const bool last = i + 1 == in_order.size();
    const uint64_t room = (last ? size_ : in_order[i + 1]->offset) - tensor.offset;
    if (!find_type(tensor.type_id)) tensor.bytes = room;
    if (tensor.bytes <= room) continue;
    if (is_legacy_q2_0(tensor, room, alignment_)) refuse_legacy_q2_0(path_, tensor);
    if (last) {
      in.fail("is cut off: tensor " + quoted(tensor.name) + " of " + std::to_string(tensor.bytes) +
              " bytes ends beyond the file's " + std::to_string(size_) + " bytes");
    }
    in.fail("is damaged: tensors " + quoted(tensor.name) + " and " + quoted(in_order[i + 1]->name) +
            " overlap");
  }
}

void File::read_rotation(const Cursor& in) {
  const Value* value = find(kRotatedKey);
  if (!value) return;
  const TensorInfo* signs = find_tensor(kSignsTensor);
  if (!signs || signs->type_id != static_cast<uint32_t>(TensorType::kI8) || signs->dimensions.size() != 1) {
    in.fail("is damaged: it has rotated tensors, and no tensor " + quoted(kSignsTensor) +
            " of one dimension and type I8");
  }
  rotation_signs_ = std::span(reinterpret_cast<const int8_t*>(data_ + signs->offset), signs->bytes);
  const auto wrong =
      std::ranges::find_if(rotation_signs_, [](int8_t sign) { return sign != 1 && sign != -1; });
  if (wrong != rotation_signs_.end()) {
    in.fail("is damaged: tensor " + quoted(kSignsTensor) + " holds " + std::to_string(*wrong) +
            "; 1 and -1 are allowed");
  }
  for (const std::string_view name : value->as_strings()) {
    const TensorInfo* found = find_tensor(name);
    if (!found) in.fail("is damaged: it has no tensor " + quoted(name) + ", which it calls rotated");
    if (found->dimensions.size() < 2)
      in.fail("is damaged: it calls " + quoted(name) + ", no matrix, rotated");
    const int64_t cols = found->dimensions[0];
    if (cols % kRotationBlock != 0 || static_cast<uint64_t>(cols) > signs->bytes) {
      in.fail("is damaged: tensor " + quoted(name) + ", which it calls rotated, has rows of " +
              std::to_string(cols) + " values; a multiple of " + std::to_string(kRotationBlock) + " up to " +
              std::to_string(signs->bytes) + ", the number of signs, is allowed");
    }
    tensors_[static_cast<size_t>(found - tensors_.data())].rotated = true;
  }
}

const Value* File::find(std::string_view key) const {
  const auto* entry = find_named(metadata_, metadata_by_key_, key_of, key);
  return entry ? &entry->second : nullptr;
}

const TensorInfo* File::find_tensor(std::string_view name) const {
  return find_named(tensors_, tensors_by_name_, name_of, name);
}

std::string File::type_name(uint32_t id) const {
  const Value* architecture = find("general.architecture");
  if (id == kBitnetCppTL2 && architecture && architecture->type == ValueType::kString &&
      architecture->as_string().starts_with("bitnet")) {
    return "TL2 (bitnet.cpp)";
  }
  return std::string(known_type_name(id));
}

// What the metadata tells of the program that made the file.
std::string File::origin() const {
  std::string text;
  for (const char* key : {"general.architecture", "general.quantized_by", "bitqwen.version"}) {
    const Value* value = find(key);
    if (!value || value->type != ValueType::kString) continue;
    text += (text.empty() ? " (the file says: " : ", ") + std::string(key) + " " + quoted(value->as_string());
  }
  return text.empty() ? text : text + ")";
}

TensorView File::raw_view(const TensorInfo& tensor) const {
  const TypeInfo* info = find_type(tensor.type_id);
  if (!info) {
    throw Error(ErrorKind::kUnsupported,
                path_ + ": tensor " + quoted(tensor.name) + " has type " + type_name(tensor.type_id) + " (" +
                    std::to_string(tensor.type_id) + "), which this version does not read" + origin(),
                "Supported: F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 Q2_0 "
                "(42) V2 V2_5 V3 (20200 to 20300). Convert the original checkpoint with `bitqwen convert`.");
  }
  TensorView view;
  view.name = tensor.name;
  view.type = info->type;
  view.cols = tensor.dimensions[0];
  for (size_t d = 1; d < tensor.dimensions.size(); ++d) view.rows *= tensor.dimensions[d];
  view.bytes = std::span(data_ + tensor.offset, tensor.bytes);
  if (tensor.rotated) view.signs = rotation_signs_.first(static_cast<size_t>(view.cols));
  return view;
}

TensorView File::view(const TensorInfo& tensor) const {
  TensorView view = raw_view(tensor);
  const TypeInfo& info = type_info(view.type);
  if (info.codebook.entries > 0) view.codebook = codebook_of(tensor, info);
  return view;
}

std::span<const int8_t> File::codebook_of(const TensorInfo& tensor, const TypeInfo& type) const {
  const std::string name = codebook_name(tensor.name);
  const TensorInfo* codebook = find_tensor(name);
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::kFormat,
                path_ + ": tensor " + quoted(tensor.name) + " of type " + std::string(type.name) + " needs " +
                    std::to_string(type.codebook.entries) + " x " + std::to_string(type.codebook.dims) +
                    " I8 values in tensor " + quoted(name) + ", which " + what,
                "The file is damaged or was cut by a program that does not know the type: convert it again.");
  };
  if (!codebook) fail("is missing");
  if (codebook->type_id != static_cast<uint32_t>(TensorType::kI8)) {
    fail("is of type " + type_name(codebook->type_id));
  }
  if (codebook->dimensions != std::vector<int64_t>{type.codebook.dims, type.codebook.entries}) {
    fail("has another shape");
  }
  const std::span points(reinterpret_cast<const int8_t*>(data_ + codebook->offset), codebook->bytes);
  check_codebook(type, points, std::string(tensor.name));
  return points;
}

void File::check_unchanged() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0 || static_cast<uint64_t>(status.st_size) != size_ ||
      modified_ns(status) != modified_ns_) {
    throw Error(ErrorKind::kFile, path_ + " was changed or cut while it was in use",
                "Open it again when nothing writes to it.");
  }
}

void File::release(const TensorView& tensor) const {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(tensor.bytes.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(tensor.bytes.data() + tensor.bytes.size()) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace bitqwen::gguf
