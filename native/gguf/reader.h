// A GGUF file, mapped read-only. Nothing of it is believed before it is checked: every count, length,
// offset and product of dimensions is compared with the file's size first.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf/tensor.h"
#include "gguf/value.h"

namespace bitqwen::gguf {

/// A tensor as the header describes it; its type may be one that this build does not read.
struct TensorInfo {
  std::string_view name;
  uint32_t type_id = 0;
  std::vector<int64_t> dimensions;  // innermost first, as in the file: 1 to 4
  uint64_t offset = 0;              // from the file's beginning
  uint64_t bytes = 0;               // of a type that this build does not read: the room up to the next tensor
  bool rotated = false;             // gguf/rotation.h
};

class File {
 public:
  /// Maps and checks the header. Throws Error(kFile) when the file cannot be read, Error(kFormat) when
  /// it is not what GGUF says, Error(kUnsupported) for a version this build does not read.
  /// Tensors of types that this build does not read are listed, and refused by view().
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  /// The path as text: bytes of it that are not UTF-8 are replaced by '?'.
  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  uint64_t data_offset() const { return data_offset_; }

  /// Keys and values in the file's order.
  const std::vector<std::pair<std::string_view, Value>>& metadata() const { return metadata_; }
  /// The value of a key, or nullptr.
  const Value* find(std::string_view key) const;
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// The tensor of that name, or nullptr.
  const TensorInfo* find_tensor(std::string_view name) const;
  /// Of the widest rotated tensor; empty if there is none.
  std::span<const int8_t> rotation_signs() const { return rotation_signs_; }
  /// The tensor's bytes. Throws Error(kUnsupported) when its type is not one this build reads,
  /// Error(kFormat) when its codebook is missing or damaged.
  TensorView view(const TensorInfo& tensor) const;
  /// The same without the codebook.
  TensorView raw_view(const TensorInfo& tensor) const;

  /// Throws Error(kFile) when the file has another size or modification time than when it was opened.
  /// To be called before bytes are read: reading what was cut off since ends the process (SIGBUS).
  void check_unchanged() const;
  /// A readable name for a tensor type, known or not, as the file's own writer meant it.
  std::string type_name(uint32_t id) const;
  /// Tells the system that these bytes will not be needed again soon.
  void release(const TensorView& tensor) const;

 private:
  void read_header();
  void read_alignment(const Cursor& in);
  void place_tensors(const Cursor& in);
  void read_rotation(const Cursor& in);
  std::string origin() const;
  std::span<const int8_t> codebook_of(const TensorInfo& tensor, const TypeInfo& type) const;

  std::string path_;
  int descriptor_ = -1;
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
  int64_t modified_ns_ = 0;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  uint64_t data_offset_ = 0;
  std::vector<std::pair<std::string_view, Value>> metadata_;
  std::vector<uint32_t> metadata_by_key_;  // positions in metadata_
  std::vector<TensorInfo> tensors_;
  std::vector<uint32_t> tensors_by_name_;  // positions in tensors_
  std::span<const int8_t> rotation_signs_;
};

}  // namespace bitqwen::gguf
