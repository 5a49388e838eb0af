#include "kernels/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "errors.h"
#include "kernels/table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bitqwen {
namespace {

struct IsaEntry {
  Isa isa;
  std::string_view name;
  std::string_view features;        // what the CPU must have, for messages
  const KernelTable& (*kernels)();  // nullptr: not in this build
};

// Best last, within one architecture.
constexpr IsaEntry kEntries[] = {
    {Isa::kScalar, "scalar", "nothing special", scalar_kernels},
#if defined(BITQWEN_BUILT_X86)
    {Isa::kAvx2, "avx2", "AVX2, FMA and F16C", avx2_kernels},
    {Isa::kAvxVnni, "avxvnni", "AVX2, FMA, F16C and AVX-VNNI", avxvnni_kernels},
    {Isa::kAvx512, "avx512", "AVX-512 F, BW, VL and DQ", avx512_kernels},
    {Isa::kAvx512Vnni, "avx512vnni", "AVX-512 F, BW, VL, DQ and VNNI", avx512vnni_kernels},
    {Isa::kAvx512Vbmi, "avx512vbmi", "AVX-512 F, BW, VL, DQ, VNNI and VBMI", avx512vbmi_kernels},
#else
    {Isa::kAvx2, "avx2", "an x86-64 CPU", nullptr},
    {Isa::kAvxVnni, "avxvnni", "an x86-64 CPU", nullptr},
    {Isa::kAvx512, "avx512", "an x86-64 CPU", nullptr},
    {Isa::kAvx512Vnni, "avx512vnni", "an x86-64 CPU", nullptr},
    {Isa::kAvx512Vbmi, "avx512vbmi", "an x86-64 CPU", nullptr},
#endif
#if defined(BITQWEN_BUILT_NEON)
    {Isa::kNeon, "neon", "NEON", neon_kernels},
    {Isa::kNeonDotprod, "neon-dotprod", "NEON and the dot-product instructions (FEAT_DotProd)",
     neon_dotprod_kernels},
    {Isa::kNeonI8mm, "neon-i8mm",
     "NEON, the dot-product and the int8 matrix instructions (FEAT_DotProd, FEAT_I8MM)", neon_i8mm_kernels},
#else
    {Isa::kNeon, "neon", "a 64-bit ARM CPU", nullptr},
    {Isa::kNeonDotprod, "neon-dotprod", "a 64-bit ARM CPU", nullptr},
    {Isa::kNeonI8mm, "neon-i8mm", "a 64-bit ARM CPU", nullptr},
#endif
};

const IsaEntry& entry(Isa isa) {
  return *std::find_if(std::begin(kEntries), std::end(kEntries),
                       [isa](const IsaEntry& e) { return e.isa == isa; });
}

#if defined(__x86_64__)
struct X86Features {
  bool avx2 = false, avxvnni = false, avx512 = false, avx512vnni = false, avx512vbmi = false;
};

X86Features probe() {
  X86Features found;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const auto bit = [](unsigned word, int i) { return (word >> i & 1) != 0; };
  const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!osxsave || !avx) return found;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool saves_ymm = (low & 0x6) == 0x6, saves_zmm = (low & 0xe6) == 0xe6;  // by the operating system
  if (!saves_ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const unsigned leaves = a;
  found.avx2 = bit(b, 5) && fma && f16c;
  found.avx512 = found.avx2 && saves_zmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
  found.avx512vnni = found.avx512 && bit(c, 11);
  found.avx512vbmi = found.avx512vnni && bit(c, 1);
  if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avxvnni = found.avx2 && bit(a, 4);
  return found;
}
#endif

#if defined(__aarch64__)
struct ArmFeatures {
  bool dotprod = false, i8mm = false;
};

ArmFeatures probe() {
  ArmFeatures found;
#if defined(__linux__)
  found.dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  found.i8mm = (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  found.dotprod = has("hw.optional.arm.FEAT_DotProd");
  found.i8mm = has("hw.optional.arm.FEAT_I8MM");
#endif
  return found;
}
#endif

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  static const X86Features found = probe();
  switch (isa) {
    case Isa::kScalar: return true;
    case Isa::kAvx2: return found.avx2;
    case Isa::kAvxVnni: return found.avxvnni;
    case Isa::kAvx512: return found.avx512;
    case Isa::kAvx512Vnni: return found.avx512vnni;
    case Isa::kAvx512Vbmi: return found.avx512vbmi;
    default: return false;
  }
#elif defined(__aarch64__)
  static const ArmFeatures found = probe();
  switch (isa) {
    case Isa::kScalar:
    case Isa::kNeon: return true;
    case Isa::kNeonDotprod: return found.dotprod;
    case Isa::kNeonI8mm: return found.dotprod && found.i8mm;
    default: return false;
  }
#else
  return isa == Isa::kScalar;
#endif
}

std::string names(const std::vector<Isa>& isas) {
  std::string text;
  for (const Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

// Throws unless `isa` can run here.
const KernelTable& usable_kernels(Isa isa, const std::string& who) {
  const IsaEntry& e = entry(isa);
  const std::string hint = "choose one of: " + names(usable_isas());
  if (!e.kernels) {
    throw Error(ErrorKind::kArgument,
                who + " asks for " + std::string(e.name) + ", which this build does not have: it needs " +
                    std::string(e.features),
                hint);
  }
  if (!cpu_has(isa)) {
    throw Error(ErrorKind::kArgument,
                who + " asks for " + std::string(e.name) + ", which needs " + std::string(e.features) +
                    ": this CPU or its operating system does not offer that",
                hint);
  }
  return e.kernels();
}

std::string forced_name() {
  const char* value = std::getenv("BITQWEN_ISA");
  return value ? value : "";
}

std::atomic<const KernelTable*> live{nullptr};

}  // namespace

std::string_view isa_name(Isa isa) { return entry(isa).name; }

std::vector<Isa> built_isas() {
  std::vector<Isa> isas;
  for (const IsaEntry& e : kEntries) {
    if (e.kernels) isas.push_back(e.isa);
  }
  return isas;
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> isas = built_isas();
  std::erase_if(isas, [](Isa isa) { return !cpu_has(isa); });
  return isas;
}

Isa choose_isa(std::string_view forced) {
  if (forced.empty()) return usable_isas().back();
  for (const IsaEntry& e : kEntries) {
    if (e.name != forced) continue;
    usable_kernels(e.isa, "BITQWEN_ISA");
    return e.isa;
  }
  throw Error(
      ErrorKind::kArgument,
      "BITQWEN_ISA asks for \"" + std::string(forced) + "\", which is no instruction set that bitqwen knows",
      "choose one of: " + names(usable_isas()));
}

const KernelTable& current_kernels() {
  const KernelTable* table = live.load(std::memory_order_acquire);
  if (!table) {
    table = &entry(choose_isa(forced_name())).kernels();
    live.store(table, std::memory_order_release);
  }
  return *table;
}

Isa current_isa() { return current_kernels().isa; }

const KernelTable& kernels_of(Isa isa) { return usable_kernels(isa, "a kernel plan"); }

void set_isa(Isa isa) { live.store(&usable_kernels(isa, "set_isa"), std::memory_order_release); }

std::string isa_report() {
  const Isa isa = current_isa();
  const std::string forced = forced_name();
  std::string text = "kernels: " + std::string(isa_name(isa));
  if (forced == isa_name(isa)) return text + ", forced by BITQWEN_ISA";
  return text + ", the best of what this build has and this CPU runs (" + names(usable_isas()) + ")";
}

}  // namespace bitqwen
