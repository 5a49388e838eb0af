#include "gguf/reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "errors.h"

namespace bitqwen::gguf {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr int kMaxDimensions = 4;
constexpr int kMaxNesting = 4;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint64_t kMaxKeyBytes = 65535;  // the specification's limit
constexpr uint64_t kMaxNameBytes = 1024;  // the specification says 64; some writers exceed it

std::string quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text.substr(0, 80)) out += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  return out + "'";
}

// Reads forward through the header; every step is checked against what is left.
class Cursor {
 public:
  Cursor(const uint8_t* data, uint64_t size, const std::string& path)
      : data_(data), size_(size), path_(path) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return size_ - position_; }

  std::span<const uint8_t> take(uint64_t bytes, std::string_view what) {
    if (bytes > left()) {
      fail("is cut off or damaged: " + std::string(what) + " needs " + std::to_string(bytes) +
           " bytes at offset " + std::to_string(position_) + ", the file has " + std::to_string(left()));
    }
    const auto span = std::span(data_ + position_, bytes);
    position_ += bytes;
    return span;
  }

  template <class T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof value, what).data(), sizeof value);
    return value;
  }

  std::string_view string(uint64_t max_bytes, std::string_view what) {
    const uint64_t length = number<uint64_t>(what);
    if (length > max_bytes) {
      fail("is damaged: " + std::string(what) + " of " + std::to_string(length) + " bytes; at most " +
           std::to_string(max_bytes) + " are allowed");
    }
    const auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw Error(ErrorKind::kFormat, path_ + " " + message,
                "Fetch or convert the file again; its size should equal the original's.");
  }

 private:
  const uint8_t* data_;
  uint64_t size_;
  const std::string& path_;
  uint64_t position_ = 0;
};

Value read_value(Cursor& in, ValueType type, std::string_view key, int nesting) {
  if (type == ValueType::kString) {
    const std::string_view text = in.string(in.left(), key);
    return {type, type, 1, {reinterpret_cast<const uint8_t*>(text.data()), text.size()}};
  }
  if (type != ValueType::kArray) {
    const int bytes = value_bytes(type);
    if (bytes == 0) {
      in.fail("is damaged: key " + quoted(key) + " has value type " +
              std::to_string(static_cast<uint32_t>(type)) + "; 0 to 12 are known");
    }
    return {type, type, 1, in.take(static_cast<uint64_t>(bytes), key)};
  }
  if (nesting >= kMaxNesting) in.fail("is damaged: key " + quoted(key) + " nests arrays too deeply");
  const auto element = static_cast<ValueType>(in.number<uint32_t>(key));
  const auto count = in.number<uint64_t>(key);
  const int bytes = value_bytes(element);
  if (bytes == 0 && element != ValueType::kString && element != ValueType::kArray) {
    in.fail("is damaged: key " + quoted(key) + " is an array of value type " +
            std::to_string(static_cast<uint32_t>(element)) + "; 0 to 12 are known");
  }
  // The least that one element takes: a string's length, an inner array's type and count.
  const uint64_t least = bytes ? static_cast<uint64_t>(bytes) : element == ValueType::kString ? 8 : 12;
  if (count > in.left() / least) {
    in.fail("is cut off or damaged: key " + quoted(key) + " claims " + std::to_string(count) +
            " elements, more than the rest of the file can hold");
  }
  if (bytes) return {ValueType::kArray, element, count, in.take(count * least, key)};
  const uint64_t begin = in.position();
  const auto start = in.take(0, key);
  for (uint64_t i = 0; i < count; ++i) {
    if (element == ValueType::kString) {
      in.string(in.left(), key);
    } else {
      read_value(in, ValueType::kArray, key, nesting + 1);
    }
  }
  return {ValueType::kArray, element, count, {start.data(), in.position() - begin}};
}

TensorInfo read_tensor_info(Cursor& in) {
  TensorInfo tensor;
  tensor.name = in.string(kMaxNameBytes, "a tensor's name");
  const auto dimensions = in.number<uint32_t>("a tensor's dimensions");
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    in.fail("is damaged: tensor " + quoted(tensor.name) + " has " + std::to_string(dimensions) +
            " dimensions; 1 to 4 are allowed");
  }
  uint64_t elements = 1;
  for (uint32_t d = 0; d < dimensions; ++d) {
    const auto size = in.number<uint64_t>("a tensor's dimensions");
    if (size == 0 || size > INT64_MAX || elements > INT64_MAX / size) {
      in.fail("is damaged: tensor " + quoted(tensor.name) + " has an impossible shape");
    }
    elements *= size;
    tensor.dimensions.push_back(static_cast<int64_t>(size));
  }
  tensor.type_id = in.number<uint32_t>("a tensor's type");
  tensor.offset = in.number<uint64_t>("a tensor's offset");
  if (const TypeInfo* info = find_type(tensor.type_id)) {
    if (tensor.dimensions[0] % info->block_size != 0) {
      in.fail("is damaged: tensor " + quoted(tensor.name) + " has rows of " +
              std::to_string(tensor.dimensions[0]) + " values; " + std::string(info->name) +
              " needs a multiple of " + std::to_string(info->block_size));
    }
    const uint64_t blocks = elements / info->block_size;
    if (blocks > INT64_MAX / info->block_bytes) {
      in.fail("is damaged: tensor " + quoted(tensor.name) + " has an impossible shape");
    }
    tensor.bytes = blocks * info->block_bytes;
  }
  return tensor;
}

int64_t modified_ns(const struct stat& status) {
#if defined(__APPLE__)
  return status.st_mtimespec.tv_sec * 1'000'000'000LL + status.st_mtimespec.tv_nsec;
#else
  return status.st_mtim.tv_sec * 1'000'000'000LL + status.st_mtim.tv_nsec;
#endif
}

}  // namespace

File::File(const std::string& path) : path_(path) {
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) {
    throw Error(ErrorKind::kFile, "cannot open " + path + ": " + std::strerror(errno),
                "Check the path and its permissions.");
  }
  try {
    struct stat status;
    if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
      throw Error(ErrorKind::kFile, path + " is not a regular file", "Give the path of a .gguf file.");
    }
    size_ = static_cast<uint64_t>(status.st_size);
    modified_ns_ = modified_ns(status);
    if (size_ < 24) {
      throw Error(ErrorKind::kFormat,
                  path + " is not a GGUF file: it has " + std::to_string(size_) + " bytes, a header needs 24",
                  "Fetch or convert the file again.");
    }
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (mapped == MAP_FAILED) {
      throw Error(ErrorKind::kFile, "cannot map " + path + ": " + std::strerror(errno));
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
  Cursor in(data_, size_, path_);
  if (in.number<uint32_t>("the magic") != kMagic) {
    throw Error(ErrorKind::kFormat, path_ + " is not a GGUF file: it does not begin with 'GGUF'",
                "bitqwen reads GGUF files and Hugging Face checkpoint folders.");
  }
  version_ = in.number<uint32_t>("the version");
  if (version_ != 2 && version_ != 3) {
    const bool swapped = (version_ & 0xffff) == 0;
    throw Error(
        ErrorKind::kUnsupported,
        path_ + (swapped ? " is a big-endian GGUF file" : " is GGUF version " + std::to_string(version_)) +
            "; little-endian versions 2 and 3 are supported",
        "Convert the original checkpoint again.");
  }
  const auto tensors = in.number<uint64_t>("the number of tensors");
  const auto keys = in.number<uint64_t>("the number of keys");
  // A key takes at least 8 + 4 + 1 bytes, a tensor 8 + 4 + 8 + 4 + 8.
  if (keys > in.left() / 13 || tensors > in.left() / 32) {
    in.fail("is damaged: it claims " + std::to_string(tensors) + " tensors and " + std::to_string(keys) +
            " keys, more than its " + std::to_string(size_) + " bytes can hold");
  }
  metadata_.reserve(keys);
  keys_.reserve(keys);
  for (uint64_t i = 0; i < keys; ++i) {
    const std::string_view key = in.string(kMaxKeyBytes, "a key");
    const auto type = static_cast<ValueType>(in.number<uint32_t>(key));
    if (!keys_.emplace(key, metadata_.size()).second)
      in.fail("is damaged: it has the key " + quoted(key) + " twice");
    metadata_.emplace_back(key, read_value(in, type, key, 0));
  }
  if (const Value* value = find("general.alignment")) {
    const int64_t alignment = value->is_integer() ? value->as_integer() : 0;
    if (alignment < 1 || alignment > static_cast<int64_t>(kMaxAlignment) || (alignment & (alignment - 1))) {
      in.fail("is damaged: general.alignment is " + std::to_string(alignment) +
              "; a power of two up to 1048576 is allowed");
    }
    alignment_ = static_cast<uint64_t>(alignment);
  }
  tensors_.reserve(tensors);
  names_.reserve(tensors);
  for (uint64_t i = 0; i < tensors; ++i) {
    tensors_.push_back(read_tensor_info(in));
    if (!names_.emplace(tensors_.back().name, i).second) {
      in.fail("is damaged: it has the tensor " + quoted(tensors_.back().name) + " twice");
    }
  }
  data_offset_ = (in.position() + alignment_ - 1) / alignment_ * alignment_;

  std::vector<const TensorInfo*> in_order;
  for (TensorInfo& tensor : tensors_) {
    if (tensor.offset % alignment_ != 0) {
      in.fail("is damaged: tensor " + quoted(tensor.name) + " lies at offset " +
              std::to_string(tensor.offset) + ", not a multiple of the alignment " +
              std::to_string(alignment_));
    }
    if (data_offset_ > size_ || tensor.offset > size_ - data_offset_ ||
        tensor.bytes > size_ - data_offset_ - tensor.offset) {
      in.fail("is cut off: tensor " + quoted(tensor.name) + " of " + std::to_string(tensor.bytes) +
              " bytes ends beyond the file's " + std::to_string(size_) + " bytes");
    }
    tensor.offset += data_offset_;
    in_order.push_back(&tensor);
  }
  std::ranges::sort(in_order, {}, &TensorInfo::offset);
  for (size_t i = 1; i < in_order.size(); ++i) {
    if (in_order[i - 1]->offset + in_order[i - 1]->bytes > in_order[i]->offset) {
      in.fail("is damaged: tensors " + quoted(in_order[i - 1]->name) + " and " + quoted(in_order[i]->name) +
              " overlap");
    }
  }
}

const Value* File::find(std::string_view key) const {
  const auto found = keys_.find(key);
  return found == keys_.end() ? nullptr : &metadata_[found->second].second;
}

const TensorInfo* File::find_tensor(std::string_view name) const {
  const auto found = names_.find(name);
  return found == names_.end() ? nullptr : &tensors_[found->second];
}

TensorView File::view(const TensorInfo& tensor) const {
  const TypeInfo* info = find_type(tensor.type_id);
  if (!info) {
    throw Error(ErrorKind::kUnsupported,
                path_ + ": tensor " + quoted(tensor.name) + " has type " +
                    std::string(known_type_name(tensor.type_id)) + " (" + std::to_string(tensor.type_id) +
                    "), which this version does not read",
                "Supported: F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 Q2_0 "
                "(42). Convert the original checkpoint with `bitqwen convert`.");
  }
  TensorView view;
  view.name = tensor.name;
  view.type = info->type;
  view.cols = tensor.dimensions[0];
  for (size_t d = 1; d < tensor.dimensions.size(); ++d) view.rows *= tensor.dimensions[d];
  view.bytes = std::span(data_ + tensor.offset, tensor.bytes);
  return view;
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
