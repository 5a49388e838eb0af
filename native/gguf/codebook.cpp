#include "gguf/codebook.h"

#include "errors.h"

namespace bitqwen::gguf {

std::string codebook_name(std::string_view tensor) {
  constexpr std::string_view kSuffix = ".weight";
  if (tensor.ends_with(kSuffix)) tensor.remove_suffix(kSuffix.size());
  return std::string(tensor) + ".codebook";
}

void check_codebook(const TypeInfo& type, std::span<const int8_t> points, const std::string& tensor) {
  const CodebookShape& shape = type.codebook;
  if (points.size() != size_t{shape.entries} * shape.dims) {
    throw Error(ErrorKind::kFormat, "tensor '" + tensor + "' of type " + std::string(type.name) +
                                        " needs a codebook of " + std::to_string(shape.entries) + " x " +
                                        std::to_string(shape.dims) + " values, not of " +
                                        std::to_string(points.size()));
  }
  for (const int8_t point : points) {
    const bool allowed = shape.mirrored
                             ? point % 2 != 0 && point >= -kLargestMirrored && point <= kLargestMirrored
                             : point >= kLeastFree && point <= kLargestFree;
    if (allowed) continue;
    throw Error(
        ErrorKind::kFormat,
        "the codebook of tensor '" + tensor + "' holds " + std::to_string(point) + "; " +
            (shape.mirrored ? "odd numbers from -63 to 63" : "numbers from -32 to 31") + " are allowed",
        "The file is damaged, or a program wrote it that does not follow the format: convert it again.");
  }
}

}  // namespace bitqwen::gguf
