#include "weights/repack.h"

#include <cstring>

#include "weights/packed_matrix.h"

namespace bitqwen {
namespace {

// A source block of one row, opened up: codes in column order, header fields as the packed format has them.
struct SourceBlock {
  alignas(64) uint8_t codes[256];
  uint8_t header[32];  // d, dmin or m (2 bytes each), then the bytes of sub-scales
};

void split_nibbles(const uint8_t* packed, int count, uint8_t* low, uint8_t* high) {
  for (int i = 0; i < count; ++i) {
    low[i] = packed[i] & 15;
    high[i] = packed[i] >> 4;
  }
}

// Each reader opens one block of one tensor type; kBytes is the block's size in the file.
struct ReadQ8_0 {
  static constexpr Format kFormat = Format::kQ8_0;
  static constexpr int kBytes = 34;
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p, 2);
    for (int i = 0; i < 32; ++i) out.codes[i] = p[2 + i] ^ 0x80;  // int8 + 128
  }
};

struct ReadQ4_0 {
  static constexpr Format kFormat = Format::kQ4_0;
  static constexpr int kBytes = 18;
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p, 2);
    split_nibbles(p + 2, 16, out.codes, out.codes + 16);
  }
};

struct ReadQ4_1 {
  static constexpr Format kFormat = Format::kQ4_1;
  static constexpr int kBytes = 20;
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p, 4);
    split_nibbles(p + 4, 16, out.codes, out.codes + 16);
  }
};

void add_fifth_bits(const uint8_t* p, uint8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, p, 4);
  for (int i = 0; i < 32; ++i) codes[i] |= (bits >> i & 1) << 4;
}

struct ReadQ5_0 {
  static constexpr Format kFormat = Format::kQ5_0;
  static constexpr int kBytes = 22;
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p, 2);
    split_nibbles(p + 6, 16, out.codes, out.codes + 16);
    add_fifth_bits(p + 2, out.codes);
  }
};

struct ReadQ5_1 {
  static constexpr Format kFormat = Format::kQ5_1;
  static constexpr int kBytes = 24;
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p, 4);
    split_nibbles(p + 8, 16, out.codes, out.codes + 16);
    add_fifth_bits(p + 4, out.codes);
  }
};

struct ReadQ2_K {
  static constexpr Format kFormat = Format::kQ2_K;
  static constexpr int kBytes = 84;  // scales[16], qs[64], d, dmin
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p + 80, 4);
    std::memcpy(out.header + 4, p, 16);
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 4; ++j) {
        for (int i = 0; i < 32; ++i)
          out.codes[half * 128 + j * 32 + i] = p[16 + half * 32 + i] >> (2 * j) & 3;
      }
    }
  }
};

struct ReadQ3_K {
  static constexpr Format kFormat = Format::kQ3_K;
  static constexpr int kBytes = 110;  // hmask[32], qs[64], scales[12], d
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p + 108, 2);
    std::memcpy(out.header + 2, p + 96, 12);
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 4; ++j) {
        for (int i = 0; i < 32; ++i) {
          out.codes[half * 128 + j * 32 + i] = static_cast<uint8_t>((p[32 + half * 32 + i] >> (2 * j) & 3) |
                                                                    (p[i] >> (half * 4 + j) & 1) << 2);
        }
      }
    }
  }
};

struct ReadQ4_K {
  static constexpr Format kFormat = Format::kQ4_K;
  static constexpr int kBytes = 144;  // d, dmin, scales[12], qs[128]
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p, 16);
    for (int j = 0; j < 4; ++j)
      split_nibbles(p + 16 + 32 * j, 32, out.codes + 64 * j, out.codes + 64 * j + 32);
  }
};

struct ReadQ5_K {
  static constexpr Format kFormat = Format::kQ5_K;
  static constexpr int kBytes = 176;  // d, dmin, scales[12], qh[32], qs[128]
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p, 16);
    const uint8_t* high = p + 16;
    for (int j = 0; j < 4; ++j) {
      uint8_t* codes = out.codes + 64 * j;
      split_nibbles(p + 48 + 32 * j, 32, codes, codes + 32);
      for (int i = 0; i < 32; ++i) {
        codes[i] |= (high[i] >> (2 * j) & 1) << 4;
        codes[i + 32] |= (high[i] >> (2 * j + 1) & 1) << 4;
      }
    }
  }
};

struct ReadQ6_K {
  static constexpr Format kFormat = Format::kQ6_K;
  static constexpr int kBytes = 210;  // ql[128], qh[64], scales[16], d
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p + 208, 2);
    std::memcpy(out.header + 2, p + 192, 16);
    for (int half = 0; half < 2; ++half) {
      const uint8_t* low = p + 64 * half;
      const uint8_t* high = p + 128 + 32 * half;
      uint8_t* codes = out.codes + 128 * half;
      for (int i = 0; i < 32; ++i) {
        codes[i] = static_cast<uint8_t>((low[i] & 15) | (high[i] & 3) << 4);
        codes[i + 32] = static_cast<uint8_t>((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
        codes[i + 64] = static_cast<uint8_t>(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
        codes[i + 96] = static_cast<uint8_t>(low[i + 32] >> 4 | (high[i] >> 6) << 4);
      }
    }
  }
};

struct ReadQ2_0 {
  static constexpr Format kFormat = Format::kQ2_0;
  static constexpr int kBytes = 18;  // d, qs[16]: four consecutive columns a byte
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p, 2);
    for (int i = 0; i < 16; ++i) {
      const uint32_t byte = p[2 + i];
      const uint32_t four = (byte | byte << 6 | byte << 12 | byte << 18) & 0x03030303;
      std::memcpy(out.codes + 4 * i, &four, 4);
    }
  }
};

struct ReadTQ2_0 {
  static constexpr Format kFormat = Format::kTernary;
  static constexpr int kBytes = 66;  // qs[64], d
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p + 64, 2);
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 4; ++j) {
        for (int i = 0; i < 32; ++i) out.codes[half * 128 + j * 32 + i] = p[half * 32 + i] >> (2 * j) & 3;
      }
    }
  }
};

struct ReadTQ1_0 {
  static constexpr Format kFormat = Format::kTernary;
  static constexpr int kBytes = 54;  // qs[48] of five trits, qh[4] of four, d
  // A byte is a fraction of 256 in base 3: multiplying by 3^n brings digit n to the top.
  static void read_digits(const uint8_t* p, int count, int digits, uint8_t* codes) {
    uint8_t power = 1;
    for (int n = 0; n < digits; ++n, power = static_cast<uint8_t>(power * 3)) {
      for (int i = 0; i < count; ++i) {
        const auto shifted = static_cast<uint8_t>(p[i] * power);
        *codes++ = static_cast<uint8_t>(shifted * 3 >> 8);
      }
    }
  }
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p + 52, 2);
    read_digits(p, 32, 5, out.codes);
    read_digits(p + 32, 16, 5, out.codes + 160);
    read_digits(p + 48, 4, 4, out.codes + 240);
  }
};

// d, 64 codes' low four bits, their higher bits; all fields from the lowest bit up.
template <Format kOf>
struct ReadPairs {
  static constexpr Format kFormat = kOf;
  static constexpr int kHighBits = format_info(kOf).high_bits;
  static constexpr int kBytes = 2 + 32 + 8 * kHighBits;
  static void read(const uint8_t* p, SourceBlock& out) {
    std::memcpy(out.header, p, 2);
    for (int i = 0; i < 32; ++i) {
      out.codes[2 * i] = p[2 + i] & 15;
      out.codes[2 * i + 1] = p[2 + i] >> 4;
    }
    if constexpr (kHighBits > 0) {
      for (int i = 0; i < 64; ++i) {
        const int at = i * kHighBits;
        out.codes[i] |= (p[34 + at / 8] >> at % 8 & ((1 << kHighBits) - 1)) << 4;
      }
    }
  }
};

// One row's words of one plane: vectors lie 64 bytes apart, and each takes 8 / bits words of codes.
template <int kBits, int kWords>
void write_plane(const uint32_t* words, int shift, uint8_t* target) {
  constexpr int kPerVector = 8 / kBits;
  constexpr uint32_t kMask = 0x01010101u * ((1u << kBits) - 1);
  for (int v = 0; v < kWords / kPerVector; ++v) {
    uint32_t packed = 0;
    for (int i = 0; i < kPerVector; ++i)
      packed |= (words[v * kPerVector + i] >> shift & kMask) << (kBits * i);
    std::memcpy(target + 64 * v, &packed, 4);
  }
}

// One row's bytes of five trits, from codes in column order. False: a code is no trit.
template <int kUnit>
bool write_trits(const uint8_t* codes, uint8_t* target) {
  uint8_t largest = 0;
  for (int i = 0; i < kUnit; ++i) largest = largest < codes[i] ? codes[i] : largest;
  for (int from = 0; from < kUnit; from += 20, target += 64) {
    for (int j = 0; j < 4; ++j) {
      int number = 0;
      for (int n = 0; n < 5; ++n) number = 3 * number + (from + 4 * n < kUnit ? codes[from + 4 * n + j] : 0);
      target[j] = static_cast<uint8_t>((number * 256 + 242) / 243);
    }
  }
  return largest < 3;
}

template <class Reader, Format kFormat = Reader::kFormat>
bool pack_codes(const uint8_t* source, int64_t row_bytes, int rows, int64_t units, uint8_t* block) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr int kHalves = kInfo.has_minimum() ? 2 : 1;  // f16 fields at the start of the header
  constexpr int kSubBytes = kInfo.header_bytes() / 16 - 2 * kHalves;
  SourceBlock from;
  for (int64_t u = 0; u < units; ++u, block += kInfo.unit_bytes()) {
    for (int r = 0; r < rows; ++r) {
      Reader::read(source + r * row_bytes + u * Reader::kBytes, from);
      for (int h = 0; h < kHalves; ++h) std::memcpy(block + 32 * h + 2 * r, from.header + 2 * h, 2);
      uint8_t* sub = block + 32 * kHalves + r;
      for (int i = 0; i < kSubBytes; ++i) sub[16 * i] = from.header[2 * kHalves + i];
      uint8_t* chunk = block + kInfo.header_bytes() + 4 * r;
      if constexpr (kInfo.has_trits()) {
        if (!write_trits<kInfo.unit>(from.codes, chunk)) return false;
        continue;
      }
      constexpr int kWords = kInfo.chunk_codes() / 4;
      for (int c = 0; c < kInfo.unit / kInfo.chunk(); ++c, chunk += kInfo.chunk_bytes()) {
        uint32_t words[kWords];
        std::memcpy(words, from.codes + 4 * kWords * c, sizeof words);
        write_plane<kInfo.low_bits, kWords>(words, 0, chunk);
        if constexpr (kInfo.high_bits > 0)
          write_plane<kInfo.high_bits, kWords>(words, kInfo.low_bits, chunk + kInfo.low_bytes());
      }
    }
  }
  return true;
}

template <class Value>
bool pack_values(const uint8_t* source, int64_t row_bytes, int rows, int64_t cols, uint8_t* block) {
  for (int64_t begin = 0; begin < cols; begin += 64) {  // stay within the cache lines of both sides
    const int64_t end = begin + 64 < cols ? begin + 64 : cols;
    for (int r = 0; r < rows; ++r) {
      for (int64_t c = begin; c < end; ++c) {
        std::memcpy(block + (c * kRowBlock + r) * sizeof(Value), source + r * row_bytes + c * sizeof(Value),
                    sizeof(Value));
      }
    }
  }
  return true;
}

template <class Reader>
constexpr Repacker codes() {
  return {Reader::kFormat, pack_codes<Reader>};
}

template <class Reader>
constexpr Repacker ternary_codes(TernaryLayout layout) {
  if (layout == TernaryLayout::kTwoBits) return codes<Reader>();
  return {Format::kTernary5, pack_codes<Reader, Format::kTernary5>};
}

}  // namespace

Repacker find_repacker(gguf::TensorType type, TernaryLayout ternary) {
  switch (type) {
    case gguf::TensorType::kF32: return {Format::kF32, pack_values<uint32_t>};
    case gguf::TensorType::kF16: return {Format::kF16, pack_values<uint16_t>};
    case gguf::TensorType::kBF16: return {Format::kBF16, pack_values<uint16_t>};
    case gguf::TensorType::kQ8_0: return codes<ReadQ8_0>();
    case gguf::TensorType::kQ4_0: return codes<ReadQ4_0>();
    case gguf::TensorType::kQ4_1: return codes<ReadQ4_1>();
    case gguf::TensorType::kQ5_0: return codes<ReadQ5_0>();
    case gguf::TensorType::kQ5_1: return codes<ReadQ5_1>();
    case gguf::TensorType::kQ2_K: return codes<ReadQ2_K>();
    case gguf::TensorType::kQ3_K: return codes<ReadQ3_K>();
    case gguf::TensorType::kQ4_K: return codes<ReadQ4_K>();
    case gguf::TensorType::kQ5_K: return codes<ReadQ5_K>();
    case gguf::TensorType::kQ6_K: return codes<ReadQ6_K>();
    case gguf::TensorType::kTQ1_0: return ternary_codes<ReadTQ1_0>(ternary);
    case gguf::TensorType::kTQ2_0: return ternary_codes<ReadTQ2_0>(ternary);
    case gguf::TensorType::kQ2_0: return codes<ReadQ2_0>();
    case gguf::TensorType::kV2: return codes<ReadPairs<Format::kV2>>();
    case gguf::TensorType::kV2_5: return codes<ReadPairs<Format::kV2_5>>();
    case gguf::TensorType::kV3: return codes<ReadPairs<Format::kV3>>();
    case gguf::TensorType::kI8: break;
  }
  return {};
}

}  // namespace bitqwen
