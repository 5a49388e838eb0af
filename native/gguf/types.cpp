#include "gguf/types.h"

#include <array>

namespace bitqwen::gguf {
namespace {

constexpr std::array<TypeInfo, 20> kTypes = {{
    {TensorType::kF32, "F32", 1, 4},
    {TensorType::kF16, "F16", 1, 2},
    {TensorType::kQ4_0, "Q4_0", 32, 18},
    {TensorType::kQ4_1, "Q4_1", 32, 20},
    {TensorType::kQ5_0, "Q5_0", 32, 22},
    {TensorType::kQ5_1, "Q5_1", 32, 24},
    {TensorType::kQ8_0, "Q8_0", 32, 34},
    {TensorType::kQ2_K, "Q2_K", 256, 84},
    {TensorType::kQ3_K, "Q3_K", 256, 110},
    {TensorType::kQ4_K, "Q4_K", 256, 144},
    {TensorType::kQ5_K, "Q5_K", 256, 176},
    {TensorType::kQ6_K, "Q6_K", 256, 210},
    {TensorType::kBF16, "BF16", 1, 2},
    {TensorType::kTQ1_0, "TQ1_0", 256, 54},
    {TensorType::kTQ2_0, "TQ2_0", 256, 66},
    {TensorType::kQ2_0, "Q2_0", 64, 18},
    {TensorType::kI8, "I8", 1, 1},
    {TensorType::kV2, "V2", 128, 34, {16, 2, false}},
    {TensorType::kV2_5, "V2_5", 128, 42, {16, 2, true}},
    {TensorType::kV3, "V3", 128, 50, {32, 2, true}},
}};

// Types that mainline or well-known forks write and this build does not read.
struct Foreign {
  uint32_t id;
  std::string_view name;
};
constexpr std::array<Foreign, 24> kForeign = {{
    {9, "Q8_1"},
    {15, "Q8_K"},
    {16, "IQ2_XXS"},
    {17, "IQ2_XS"},
    {18, "IQ3_XXS"},
    {19, "IQ1_S"},
    {20, "IQ4_NL"},
    {21, "IQ3_S"},
    {22, "IQ2_S"},
    {23, "IQ4_XS"},
    {25, "I16"},
    {26, "I32"},
    {27, "I64"},
    {28, "F64"},
    {29, "IQ1_M"},
    {36, "I2_S (bitnet.cpp)"},
    {37, "I8_S (bitnet.cpp)"},
    {38, "TL1 (bitnet.cpp)"},
    {39, "MXFP4"},
    {40, "NVFP4"},
    {41, "Q1_0"},
    {142, "PQ2_0 (Prism)"},
    {4, "Q4_2 (retired)"},
    {5, "Q4_3 (retired)"},
}};

}  // namespace

const TypeInfo* find_type(uint32_t id) {
  for (const TypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.type) == id) return &info;
  }
  return nullptr;
}

const TypeInfo& type_info(TensorType type) { return *find_type(static_cast<uint32_t>(type)); }

std::string_view known_type_name(uint32_t id) {
  if (const TypeInfo* info = find_type(id)) return info->name;
  for (const Foreign& foreign : kForeign) {
    if (foreign.id == id) return foreign.name;
  }
  return "unknown";
}

}  // namespace bitqwen::gguf
