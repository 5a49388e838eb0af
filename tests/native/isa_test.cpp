#include "kernels/isa.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "errors.h"

using namespace bitqwen;

namespace {

constexpr Isa kAll[] = {Isa::kScalar,     Isa::kAvx2, Isa::kAvxVnni,     Isa::kAvx512,  Isa::kAvx512Vnni,
                        Isa::kAvx512Vbmi, Isa::kNeon, Isa::kNeonDotprod, Isa::kNeonI8mm};

bool holds(const std::vector<Isa>& isas, Isa isa) {
  return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

std::string refusal(std::string_view forced) {
  try {
    choose_isa(forced);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::kArgument);
    CHECK(e.hint().find("scalar") != std::string::npos);  // what there is instead
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("scalar is always there, and what is usable is built") {
  CHECK(holds(built_isas(), Isa::kScalar));
  CHECK(usable_isas().front() == Isa::kScalar);
  for (const Isa isa : usable_isas()) CHECK(holds(built_isas(), isa));
}

TEST_CASE("the best usable one is chosen unless one is named") {
  CHECK(choose_isa("") == usable_isas().back());
  for (const Isa isa : usable_isas()) CHECK(choose_isa(isa_name(isa)) == isa);
}

TEST_CASE("one that cannot run is refused with the reason") {
  for (const Isa isa : kAll) {
    if (holds(usable_isas(), isa)) continue;
    const std::string name(isa_name(isa));
    CAPTURE(name);
    const std::string message = refusal(name);
    CHECK(message.find(name) != std::string::npos);
    CHECK(message.find(holds(built_isas(), isa) ? "this CPU" : "this build") != std::string::npos);
    const Isa before = current_isa();
    CHECK_THROWS_AS(set_isa(isa), Error);
    CHECK(current_isa() == before);
  }
  CHECK(refusal("sse9").find("sse9") != std::string::npos);
}

TEST_CASE("names are unique") {
  for (const Isa a : kAll) {
    for (const Isa b : kAll) CHECK((isa_name(a) == isa_name(b)) == (a == b));
  }
}

TEST_CASE("a switch is live at once, and reported") {
  for (const Isa isa : usable_isas()) {
    set_isa(isa);
    CHECK(current_isa() == isa);
    CHECK(isa_report().find(isa_name(isa)) != std::string::npos);
  }
}
