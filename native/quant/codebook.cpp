#include "quant/codebook.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <string>

#include "errors.h"
#include "gguf/codebook.h"
#include "gguf/dequantize.h"
#include "half.h"
#include "quant/importance.h"
#include "quant/inner_loops.h"

namespace bitqwen {
namespace {

constexpr int64_t kSampledBlocks = 8192;  // for Lloyd's algorithm: a million values settle 128 coordinates
constexpr int kLloydRounds = 24;
constexpr int64_t kBlocksPerSum = 64;  // sums are added in this order, whoever made them
constexpr int64_t kScaleSamples = 512;
constexpr int64_t kGrain = 8;  // rows

const gguf::TypeInfo& codebook_type(gguf::TensorType type) {
  const gguf::TypeInfo& info = gguf::type_info(type);
  if (info.codebook.entries == 0) {
    throw Error(ErrorKind::kUnsupported, std::string(info.name) + " has no codebook");
  }
  return info;
}

void check_sizes(const gguf::TypeInfo& info, int64_t rows, int64_t cols) {
  if (rows >= 1 && cols >= 1 && cols % kCodebookBlock == 0) return;
  throw Error(ErrorKind::kArgument, std::to_string(rows) + " rows of " + std::to_string(cols) +
                                        " values do not fit " + std::string(info.name) + " blocks of " +
                                        std::to_string(kCodebookBlock));
}

// One column of each pair: see assign_codes().
constexpr int column_of(int pair, int dim) { return pair / 4 * 8 + pair % 4 + 4 * dim; }

class Blocks {
 public:
  Blocks(const gguf::TypeInfo& info, const WeightedMatrix& matrix)
      : matrix_(matrix), weights_(normalised_importance(matrix.importance, matrix.cols)) {
    check_sizes(info, matrix.rows, matrix.cols);
  }
  int64_t per_row() const { return matrix_.cols / kCodebookBlock; }
  int64_t count() const { return matrix_.rows * per_row(); }

  /// Root mean square of the block's values, weighted; not a number if one of them is not finite.
  float load(int64_t index, PairBlock& out) const {
    const int64_t column = index % per_row() * kCodebookBlock;
    const float* values = matrix_.values + index * kCodebookBlock;
    double energy = 0, total = 0;
    for (int dim = 0; dim < 2; ++dim) {
      for (int i = 0; i < kPairs; ++i) {
        const int at = column_of(i, dim);
        const float weight = weights_.empty() ? 1.0f : weights_[column + at];
        out.values[dim][i] = values[at];
        out.weights[dim][i] = weight;
        energy += static_cast<double>(weight) * values[at] * values[at];
        total += weight;
      }
    }
    const auto rms = static_cast<float>(std::sqrt(energy / total));
    // Squares of larger values overflow; smaller ones are zero as float16 scales.
    return rms < 1e12f ? (rms > 1e-12f ? rms : 0.0f) : std::numeric_limits<float>::quiet_NaN();
  }

 private:
  const WeightedMatrix& matrix_;
  std::vector<float> weights_;  // [cols] or empty
};

// Rings of points, for values of variance 1; of mirrored codebooks the half above the horizontal axis.
Points first_points(const gguf::CodebookShape& shape) {
  struct Ring {
    int points;
    double radius;
  };
  static constexpr std::array<Ring, 4> kRings16 = {{{5, 0.7}, {11, 1.8}, {0, 0}, {0, 0}}};
  static constexpr std::array<Ring, 4> kRings32 = {{{4, 0.5}, {12, 1.3}, {16, 2.3}, {0, 0}}};
  static constexpr std::array<Ring, 4> kRings64 = {{{4, 0.4}, {10, 0.9}, {20, 1.6}, {30, 2.5}}};
  const uint32_t all = shape.entries * (shape.mirrored ? 2 : 1);
  Points points{.entries = static_cast<int>(shape.entries), .mirrored = shape.mirrored};
  int entry = 0;
  for (const Ring& ring : all == 16 ? kRings16 : all == 32 ? kRings32 : kRings64) {
    for (int i = 0; i < (shape.mirrored ? ring.points / 2 : ring.points); ++i, ++entry) {
      const double angle = (i + 0.5) * 2 * std::numbers::pi / ring.points;
      points.at[0][entry] = static_cast<float>(ring.radius * std::cos(angle));
      points.at[1][entry] = static_cast<float>(ring.radius * std::sin(angle));
    }
  }
  return points;
}

// What moves the points: for each coordinate sum(w s x) and sum(w s s) over the vectors of its point.
struct Centres {
  double products[2][64] = {};
  double weights[2][64] = {};

  void add(const Points& points, const PairBlock& block, const BlockCodes& codes) {
    const double s = codes.scale;
    for (int i = 0; i < kPairs; ++i) {
      const int entry = codes.codes[i] % points.entries;
      const double sign = codes.codes[i] < points.entries ? s : -s;
      for (int dim = 0; dim < 2; ++dim) {
        products[dim][entry] += sign * block.weights[dim][i] * block.values[dim][i];
        weights[dim][entry] += s * s * block.weights[dim][i];
      }
    }
  }
  void add(const Centres& other) {
    for (int dim = 0; dim < 2; ++dim) {
      for (int e = 0; e < 64; ++e) {
        products[dim][e] += other.products[dim][e];
        weights[dim][e] += other.weights[dim][e];
      }
    }
  }
  void move(Points& points) const {
    for (int dim = 0; dim < 2; ++dim) {
      for (int e = 0; e < points.entries; ++e) {
        if (weights[dim][e] > 0) points.at[dim][e] = static_cast<float>(products[dim][e] / weights[dim][e]);
      }
    }
  }
};

int8_t rounded_coordinate(bool mirrored, double value) {
  if (mirrored) {
    const double odd = 2 * std::floor(value / 2) + 1;
    return static_cast<int8_t>(std::clamp<double>(odd, -gguf::kLargestMirrored, gguf::kLargestMirrored));
  }
  return static_cast<int8_t>(std::clamp<double>(std::nearbyint(value), gguf::kLeastFree, gguf::kLargestFree));
}

// The scales of blocks absorb any factor: take the one that rounding hurts least.
std::vector<int8_t> rounded_points(const Points& points, const Centres& centres) {
  double largest = 0;
  for (int dim = 0; dim < 2; ++dim) {
    for (int e = 0; e < points.entries; ++e) {
      largest = std::max(largest, std::abs(static_cast<double>(points.at[dim][e])));
    }
  }
  const double widest = (points.mirrored ? gguf::kLargestMirrored : gguf::kLargestFree) / largest;
  constexpr int kFactors = 128;
  double best = std::numeric_limits<double>::infinity(), factor = widest;
  for (int i = 0; i < kFactors; ++i) {
    const double f = widest * (1.0 - 0.4 * i / kFactors);
    double error = 0;
    for (int dim = 0; dim < 2; ++dim) {
      for (int e = 0; e < points.entries; ++e) {
        const double difference =
            points.at[dim][e] - rounded_coordinate(points.mirrored, f * points.at[dim][e]) / f;
        error += centres.weights[dim][e] * difference * difference;
      }
    }
    if (error < best) {
      best = error;
      factor = f;
    }
  }
  std::vector<int8_t> codebook(static_cast<size_t>(points.entries) * 2);
  for (int e = 0; e < points.entries; ++e) {
    for (int dim = 0; dim < 2; ++dim) {
      codebook[e * 2 + dim] = rounded_coordinate(points.mirrored, factor * points.at[dim][e]);
    }
  }
  return codebook;
}

uint64_t scrambled(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// One block out of each of `count` equal stretches.
std::vector<int64_t> sample(int64_t blocks, int64_t count, uint64_t seed) {
  count = std::min(count, blocks);
  std::vector<int64_t> chosen(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = i * blocks / count, end = (i + 1) * blocks / count;
    chosen[i] =
        begin + static_cast<int64_t>(scrambled(seed ^ scrambled(i)) % static_cast<uint64_t>(end - begin));
  }
  return chosen;
}

Points points_of(const gguf::CodebookShape& shape, std::span<const int8_t> codebook) {
  Points points{.entries = static_cast<int>(shape.entries), .mirrored = shape.mirrored};
  for (int e = 0; e < points.entries; ++e) {
    for (int dim = 0; dim < 2; ++dim) points.at[dim][e] = codebook[e * 2 + dim];
  }
  return points;
}

// The scale of a block over its root mean square that suits most: where the search of scales begins.
float usual_ratio(const Points& points, const Blocks& blocks, FitBlock fit_block) {
  double norm = 0;
  for (int e = 0; e < points.entries; ++e) {
    norm += points.at[0][e] * points.at[0][e] + points.at[1][e] * points.at[1][e];
  }
  const double outer = std::sqrt(norm / (2 * points.entries));  // root mean square coordinate
  constexpr int kRatios = 16;
  std::array<double, kRatios> gains = {};
  PairBlock block;
  BlockCodes codes;
  const auto ratio = [&](int i) { return static_cast<float>((0.5 + 0.1 * i) / std::max(outer, 1e-3)); };
  for (const int64_t index : sample(blocks.count(), kScaleSamples, 1)) {
    const float rms = blocks.load(index, block);
    if (!(rms > 0.0f)) continue;
    for (int i = 0; i < kRatios; ++i) {
      const float start = ratio(i) * rms;
      fit_block(points, block, {&start, 1}, 1, false, codes);
      gains[i] += codes.gain / (static_cast<double>(rms) * rms);
    }
  }
  return ratio(static_cast<int>(std::max_element(gains.begin(), gains.end()) - gains.begin()));
}

}  // namespace

std::vector<int8_t> fit_codebook(gguf::TensorType type, const WeightedMatrix& matrix, uint64_t seed,
                                 ThreadPool& pool) {
  const gguf::TypeInfo& info = codebook_type(type);
  const Blocks blocks(info, matrix);
  const FitBlock fit_block = current_loops().fit_block;
  const std::vector<int64_t> chosen = sample(blocks.count(), kSampledBlocks, seed);
  const auto count = std::ssize(chosen);
  std::vector<float> scales(chosen.size());  // of the round before; begins with the root mean square
  std::vector<Centres> parts(static_cast<size_t>((count + kBlocksPerSum - 1) / kBlocksPerSum));
  Points points = first_points(info.codebook);
  Centres total;
  for (int round = 0; round < kLloydRounds; ++round) {
    pool.parallel_for(std::ssize(parts), 1, [&](int64_t begin, int64_t end, int) {
      PairBlock block;
      BlockCodes codes;
      for (int64_t part = begin; part < end; ++part) {
        parts[part] = {};
        for (int64_t i = part * kBlocksPerSum; i < std::min(count, (part + 1) * kBlocksPerSum); ++i) {
          const float rms = blocks.load(chosen[i], block);
          if (!(rms > 0.0f)) continue;
          const float start = round == 0 ? rms : scales[i];
          if (!(start > 0.0f)) continue;
          fit_block(points, block, {&start, 1}, 2, false, codes);
          scales[i] = codes.scale;
          parts[part].add(points, block, codes);
        }
      }
    });
    total = {};
    for (const Centres& part : parts) total.add(part);
    total.move(points);
  }
  return rounded_points(points, total);
}

void assign_codes(gguf::TensorType type, std::span<const int8_t> codebook, const WeightedMatrix& matrix,
                  uint8_t* codes, float* scales, ThreadPool& pool) {
  const gguf::TypeInfo& info = codebook_type(type);
  gguf::check_codebook(info, codebook, "matrix");
  const Blocks blocks(info, matrix);
  const FitBlock fit_block = current_loops().fit_block;
  const Points points = points_of(info.codebook, codebook);
  const float ratio = usual_ratio(points, blocks, fit_block);
  pool.parallel_for(matrix.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    PairBlock block;
    BlockCodes found;
    for (int64_t i = begin * blocks.per_row(); i < end * blocks.per_row(); ++i) {
      const float rms = blocks.load(i, block);
      found = {};
      if (rms > 0.0f) {
        const float start = ratio * rms;
        const std::array<float, 3> starts = {0.85f * start, start, 1.18f * start};
        fit_block(points, block, starts, 3, true, found);
      } else if (std::isnan(rms)) {
        found.scale = rms;
      }
      scales[i] = found.scale;
      std::memcpy(codes + i * kPairs, found.codes, kPairs);
    }
  });
}

void pack_codes(gguf::TensorType type, const uint8_t* codes, const float* scales, int64_t rows, int64_t cols,
                uint8_t* out, ThreadPool& pool) {
  const gguf::TypeInfo& info = codebook_type(type);
  check_sizes(info, rows, cols);
  const uint32_t limit = info.codebook.entries * (info.codebook.mirrored ? 2 : 1);
  const int high_bits = limit == 64 ? 2 : limit == 32 ? 1 : 0;
  const int64_t per_row = cols / kCodebookBlock;
  std::atomic<bool> in_range{true};
  pool.parallel_for(rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin * per_row; block < end * per_row; ++block) {
      uint8_t* bytes = out + block * info.block_bytes;
      std::memset(bytes, 0, info.block_bytes);
      const uint16_t d = float_to_half(scales[block]);
      std::memcpy(bytes, &d, sizeof d);
      for (int i = 0; i < kPairs; ++i) {
        const uint32_t code = codes[block * kPairs + i];
        if (code >= limit) in_range = false;
        bytes[2 + i / 2] |= static_cast<uint8_t>((code & 15) << (i % 2 * 4));
        if (high_bits == 0) continue;
        const int at = i * high_bits;
        bytes[34 + at / 8] |= static_cast<uint8_t>((code >> 4 & ((1u << high_bits) - 1)) << at % 8);
      }
    }
  });
  if (!in_range) {
    throw Error(ErrorKind::kArgument, "a code is out of range: " + std::string(info.name) +
                                          " has codes from 0 to " + std::to_string(limit - 1));
  }
}

EncodeResult packed_error(gguf::TensorType type, std::span<const int8_t> codebook, const uint8_t* bytes,
                          const WeightedMatrix& matrix, ThreadPool& pool) {
  const gguf::TypeInfo& info = codebook_type(type);
  gguf::check_codebook(info, codebook, "matrix");
  check_sizes(info, matrix.rows, matrix.cols);
  const int64_t row_bytes = matrix.cols / info.block_size * info.block_bytes;
  std::vector<EncodeResult> results(static_cast<size_t>(matrix.rows));
  pool.parallel_for(matrix.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(static_cast<size_t>(matrix.cols));
    for (int64_t r = begin; r < end; ++r) {
      gguf::dequantize(type, bytes + r * row_bytes, matrix.cols, row.data(), codebook.data());
      for (int64_t i = 0; i < matrix.cols; ++i) {
        const double value = matrix.values[r * matrix.cols + i];
        results[r].energy += value * value;
        results[r].error += (value - row[i]) * (value - row[i]);
      }
    }
  });
  EncodeResult total;
  for (const EncodeResult& row : results) {
    total.error += row.error;
    total.energy += row.energy;
  }
  return total;
}

}  // namespace bitqwen
