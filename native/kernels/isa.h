// Which instruction set the kernels use: detected once, forced by BITQWEN_ISA.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bitqwen {

enum class Isa {
  kScalar,
  kAvx2,
  kAvxVnni,
  kAvx512,
  kAvx512Vnni,
  kAvx512Vbmi,
  kNeon,
  kNeonDotprod,
  kNeonI8mm
};

std::string_view isa_name(Isa isa);  // "scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "neon", ...
std::vector<Isa> built_isas();       // what this build holds
std::vector<Isa> usable_isas();      // of those, what this CPU runs, best last
/// What BITQWEN_ISA=`forced` stands for: empty means the best usable one. Throws Error(kArgument) that says
/// why not, and what else there is.
Isa choose_isa(std::string_view forced);
/// The live one: BITQWEN_ISA if set (an unusable one is an Error that says why), else the best usable.
Isa current_isa();
/// For tests: switches the live one; throws Error(kArgument) if unusable.
void set_isa(Isa isa);
/// One sentence: what is live and why.
std::string isa_report();

}  // namespace bitqwen
