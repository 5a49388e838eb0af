// The encoders, written once over 16 floats at a time; no contraction, so that each instruction set
// makes the same bytes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"
#include "quant/fits.h"
#include "quant/k_quants.h"
#include "quant/row_encoder.h"

namespace bitqwen {
namespace {

using gguf::TensorType;

/// What the error of each value weighs: importance x sqrt(mean square of the row + value^2), the weighting of
/// llama.cpp's fits with an importance matrix. Errors of large weights then cost more than their share.
void error_weights(const RowTask& row) {
  Floats squares = {};
  for (int64_t i = 0; i < row.cols; i += kLanes) {
    const Floats x = load(row.values + i);
    squares += x * x;
  }
  const float mean = sum(squares) / static_cast<float>(row.cols);
  for (int64_t i = 0; i < row.cols; i += kLanes) {
    float all[kLanes];
    store(all, load(row.values + i));
    for (int j = 0; j < kLanes; ++j) all[j] = std::sqrt(mean + all[j] * all[j]);
    Floats w = load(all);
    if (row.importance) w = w * load(row.importance + i);
    store(row.weights + i, w);
  }
}

// ---------------------------------------------------------------------------------------- flat types

void q8_0(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 32) {
    const Floats first = load(row.values + i), second = load(row.values + i + kLanes);
    uint8_t* out = row.out + i / 32 * 34;
    const float d = maximum(maximum(absolute(first), absolute(second))) / 127.0f;
    const float inverse = d != 0.0f ? std::min(1.0f / d, 3e38f) : 0.0f;
    store_u16(out, float_to_half(d));
    float codes[32];
    store(codes, rounded_away(first * inverse));
    store(codes + kLanes, rounded_away(second * inverse));
    for (int j = 0; j < 32; ++j) out[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(codes[j]));
  }
}

void store_q4_0(const int32_t* codes, float d, uint8_t* out) {
  store_u16(out, float_to_half(d));
  for (int j = 0; j < 16; ++j) out[2 + j] = static_cast<uint8_t>((codes[j] + 8) | (codes[j + 16] + 8) << 4);
}

void q4_0_plain(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 32) {
    const float* x = row.values + i;
    float extreme = 0.0f;
    for (int j = 0; j < 32; ++j) {
      if (std::fabs(x[j]) > std::fabs(extreme)) extreme = x[j];
    }
    const float d = extreme / -8.0f;
    // Infinite for the smallest subnormal numbers, which float16 stores as zero.
    const float inverse = d != 0.0f && !std::isinf(1.0f / d) ? 1.0f / d : 0.0f;
    int32_t codes[32];
    for (int j = 0; j < 32; ++j) codes[j] = std::min(15, static_cast<int>(x[j] * inverse + 8.5f)) - 8;
    store_q4_0(codes, d, row.out + i / 32 * 18);
  }
}

void q4_0_fitted(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 32) {
    const float* x = row.values + i;
    const float d = through_half(fit_symmetric<32>(x, row.weights + i, 8, 0.2f, 0.96f));
    int32_t codes[32];
    symmetric_codes<32>(x, d, -8, 7, codes);
    store_q4_0(codes, d, row.out + i / 32 * 18);
  }
}

void store_q2_0(const int32_t* codes, float d, uint8_t* out) {
  store_u16(out, float_to_half(d));
  for (int j = 0; j < 16; ++j) {
    uint8_t byte = 0;
    for (int b = 0; b < 4; ++b) byte = static_cast<uint8_t>(byte | (codes[4 * j + b] + 1) << (2 * b));
    out[2 + j] = byte;
  }
}

void store_tq2_0(const int32_t* codes, float d, uint8_t* out) {
  for (int j = 0; j < 64; ++j) {
    uint8_t byte = 0;
    for (int b = 0; b < 4; ++b) {
      byte = static_cast<uint8_t>(byte | (codes[j / 32 * 128 + b * 32 + j % 32] + 1) << (2 * b));
    }
    out[j] = byte;
  }
  store_u16(out + 64, float_to_half(d));
}

/// Q2_0 and TQ2_0: codes from -1 to kHigh.
template <int kSize, int kHigh>
void few_levels(const RowTask& row, Fit fit, int block_bytes,
                void (*store_block)(const int32_t*, float, uint8_t*)) {
  for (int64_t i = 0; i < row.cols; i += kSize) {
    const float* x = row.values + i;
    const bool absmean = fit == Fit::kAbsmean;
    const float scale = absmean ? row.matrix_scale : fit_few_levels<kSize, kHigh>(x, row.weights + i);
    const float d = through_half(scale);
    int32_t codes[kSize];
    symmetric_codes<kSize>(x, absmean ? scale : d, -1, kHigh, codes);
    store_block(codes, d, row.out + i / kSize * block_bytes);
  }
}

// --------------------------------------------------------------------------------------- float types

void f32(const RowTask& row) { std::memcpy(row.out, row.values, static_cast<size_t>(row.cols) * 4); }
void f16(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; ++i) store_u16(row.out + 2 * i, float_to_half(row.values[i]));
}
void bf16(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; ++i) {
    uint32_t bits;
    std::memcpy(&bits, row.values + i, sizeof bits);
    bits += 0x7fff + (bits >> 16 & 1);  // the pipeline has refused NaN before
    store_u16(row.out + 2 * i, static_cast<uint16_t>(bits >> 16));
  }
}

void encode_row(TensorType type, Fit fit, const RowTask& row) {
  if (fit != Fit::kPlain && fit != Fit::kAbsmean) error_weights(row);
  const bool ternary = fit != Fit::kMse;
  switch (type) {
    case TensorType::kF32: return f32(row);
    case TensorType::kF16: return f16(row);
    case TensorType::kBF16: return bf16(row);
    case TensorType::kQ8_0: return q8_0(row);
    case TensorType::kQ4_0: return fit == Fit::kPlain ? q4_0_plain(row) : q4_0_fitted(row);
    case TensorType::kQ2_K: return q2_k(row);
    case TensorType::kQ3_K: return q3_k(row);
    case TensorType::kQ4_K: return q4_or_q5_k<Q4K>(row);
    case TensorType::kQ5_K: return q4_or_q5_k<Q5K>(row);
    case TensorType::kQ6_K: return q6_k(row);
    case TensorType::kQ2_0:
      return ternary ? few_levels<64, 1>(row, fit, 18, store_q2_0)
                     : few_levels<64, 2>(row, fit, 18, store_q2_0);
    case TensorType::kTQ2_0: return few_levels<256, 1>(row, fit, 66, store_tq2_0);
    default: return;  // can_encode() has said so
  }
}

}  // namespace
}  // namespace bitqwen
