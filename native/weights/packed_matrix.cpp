#include "weights/packed_matrix.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include "errors.h"
#include "gguf/codebook.h"
#include "weights/decode.h"
#include "weights/layout.h"
#include "weights/repack.h"

namespace bitqwen {

namespace {

CodePoints code_points(const gguf::CodebookShape& shape, std::span<const int8_t> codebook,
                       const FormatInfo& info) {
  CodePoints points;
  const uint32_t codes = 1u << info.bits();
  for (uint32_t dim = 0; dim < shape.dims; ++dim) {
    for (uint32_t i = 0; i < 64; ++i) {
      const int value = gguf::codebook_value(shape, codebook.data(), i % codes, dim);
      points.dims[dim][i] = static_cast<uint8_t>((value - info.point_offset) / info.point_scale);
    }
  }
  return points;
}

}  // namespace

PackedMatrix::PackedMatrix(std::unique_ptr<Layout> layout) : layout_(std::move(layout)) {}
PackedMatrix::PackedMatrix(PackedMatrix&&) noexcept = default;
PackedMatrix& PackedMatrix::operator=(PackedMatrix&&) noexcept = default;
PackedMatrix::~PackedMatrix() = default;

int64_t PackedMatrix::rows() const { return layout_->rows; }
int64_t PackedMatrix::cols() const { return layout_->cols; }
int64_t PackedMatrix::bytes() const { return layout_->buffer.bytes(); }
int PackedMatrix::activation_group() const { return layout_->info().group; }
bool PackedMatrix::rotated() const { return layout_->rotated; }

PackedMatrix PackedMatrix::pack(const gguf::TensorView& tensor, ThreadPool& pool, TernaryLayout ternary,
                                ThreadPool::Part part) {
  const Repacker repack = find_repacker(tensor.type, ternary);
  if (!repack.pack_block) {
    throw Error(ErrorKind::kUnsupported,
                "tensor \"" + tensor.name + "\" has type " +
                    std::string(gguf::known_type_name(static_cast<uint32_t>(tensor.type))) +
                    ", which has no kernels",
                "convert the model to one of the types that `bitqwen convert --list-schemes` shows");
  }
  const FormatInfo& info = format_info(repack.format);
  if (tensor.rows < 1 || tensor.cols < 1 || tensor.cols % info.unit != 0 ||
      static_cast<int64_t>(tensor.bytes.size()) != tensor.rows * tensor.row_bytes()) {
    throw Error(ErrorKind::kFormat,
                "tensor \"" + tensor.name + "\" has " + std::to_string(tensor.rows) + " x " +
                    std::to_string(tensor.cols) + " values in " + std::to_string(tensor.bytes.size()) +
                    " bytes: its type needs rows of a multiple of " + std::to_string(info.unit) + " values");
  }
  const gguf::TypeInfo& type = gguf::type_info(tensor.type);
  if (info.has_codebook()) gguf::check_codebook(type, tensor.codebook, tensor.name);
  PackedMatrix matrix = blank(repack.format, tensor.rows, tensor.cols, weight_pages(pool));
  Layout& target = matrix.layout();
  target.rotated = !tensor.signs.empty();
  if (info.has_codebook()) target.points = code_points(type.codebook, tensor.codebook, info);
  const int64_t blocks = (tensor.rows + kRowBlock - 1) / kRowBlock;

  // A piece of about a huge page, so that each is touched first by one thread.
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 20) / target.block_bytes);
  std::atomic<bool> fits{true};
  pool.first_touch(part, blocks, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) {
      const int rows = static_cast<int>(std::min<int64_t>(kRowBlock, tensor.rows - b * kRowBlock));
      const int64_t stripe = target.stripe_units();
      for (int64_t u = 0; u < target.units; u += stripe) {
        const uint8_t* source = tensor.row(b * kRowBlock) + tensor.row_bytes() / target.units * u;
        if (!repack.pack_block(source, tensor.row_bytes(), rows, std::min(stripe, target.units - u),
                               target.buffer.data() + target.unit_offset(b, u))) {
          fits.store(false, std::memory_order_relaxed);
          return;
        }
      }
    }
  });
  if (!fits) return pack(tensor, pool, TernaryLayout::kTwoBits, part);
  return matrix;
}

PackedMatrix PackedMatrix::blank(Format format, int64_t rows, int64_t cols, Pages pages) {
  const FormatInfo& info = format_info(format);
  auto layout = std::make_unique<Layout>();
  layout->format = format;
  layout->rows = rows;
  layout->cols = cols;
  layout->units = cols / info.unit;
  layout->block_bytes = layout->units * info.unit_bytes();
  layout->buffer = PackedBuffer(layout->blocks() * layout->block_bytes, pages);
  return PackedMatrix(std::move(layout));
}

PackedMatrix PackedMatrix::repeated(int64_t rows, ThreadPool& pool) const {
  PackedMatrix copy = blank(layout_->format, rows, layout_->cols);
  Layout& target = copy.layout();
  target.points = layout_->points;
  target.rotated = layout_->rotated;
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 20) / layout_->block_bytes);
  pool.parallel_for(target.blocks(), grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t u = 0; u < target.units; u += target.stripe_units()) {
        const int64_t together = std::min(target.stripe_units(), target.units - u);
        std::memcpy(target.buffer.data() + target.unit_offset(b, u), layout_->unit(b % layout_->blocks(), u),
                    static_cast<size_t>(together * target.info().unit_bytes()));
      }
    }
  });
  return copy;
}

void PackedMatrix::dequantize_row(int64_t row, float* out) const {
  const FormatInfo& info = layout_->info();
  const int in_block = static_cast<int>(row % kRowBlock);
  for (int64_t u = 0; u < layout_->units; ++u) {
    const uint8_t* unit = layout_->unit(row / kRowBlock, u);
    if (info.is_float()) {
      out[u] = packed_float(info.format, unit, in_block, 0);
      continue;
    }
    for (int cell = 0; cell < info.cells(); ++cell) {
      const CellScale scale = packed_scale(info, unit, in_block, cell);
      for (int i = 0; i < info.cell; ++i) {
        const int level = packed_level(info, layout_->points, unit, in_block, cell * info.cell + i);
        const float product = scale.scale * static_cast<float>(level);
        *out++ = info.has_minimum() ? product - scale.minimum : product;
      }
    }
  }
}

}  // namespace bitqwen
