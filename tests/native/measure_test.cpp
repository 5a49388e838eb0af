#include <doctest/doctest.h>

#include <vector>

#include "errors.h"
#include "measure/peaks.h"
#include "measure/self_test.h"

using namespace bitqwen;

TEST_CASE("reading depends on every byte of the streams") {
  for (const measure::Streams streams : {measure::Streams::kOne, measure::Streams::kEight}) {
    std::vector<uint8_t> data(64 * 8 * 5);
    const uint64_t zero = measure::read_all(data.data(), data.size(), streams);
    CHECK_EQ(zero, 0);
    int seen = 0;
    for (size_t at = 0; at < data.size(); at += 8) {
      data[at] = 1;
      seen += measure::read_all(data.data(), data.size(), streams) != 0;
      data[at] = 0;
    }
    CHECK(seen >= static_cast<int>(data.size() / 8 / 2));  // the sum that is returned folds two lanes of four
  }
}

TEST_CASE("peaks are positive, and refuse what cannot be timed or held") {
  measure::Peaks peaks(2, 8 << 20);
  CHECK_EQ(peaks.threads(), 2);
  CHECK(peaks.read_bandwidth() > 0);
  const bool has_none = current_isa() == Isa::kScalar || current_isa() == Isa::kNeon;
  CHECK_EQ(peaks.int8_rate() == 0, has_none);
  CHECK_THROWS_AS(measure::Peaks(1, 100), Error);
  CHECK_THROWS_AS(measure::Peaks(1, int64_t{1} << 60), Error);
}

TEST_CASE("every instruction set counts the multiply-adds that it ran") {
  for (const Isa isa : usable_isas()) {
    const double one = measure::multiply_adds(1, isa);
    CHECK_EQ(measure::multiply_adds(10, isa), 10 * one);
  }
}

TEST_CASE("the self-test covers each usable set and type, finds no fault, and restores the live set") {
  const Isa before = current_isa();
  const std::vector<measure::SelfTestResult> results = measure::self_test(3);
  CHECK(current_isa() == before);
  CHECK_EQ(results.size() % (usable_isas().size() > 1 ? usable_isas().size() - 1 : 1), 0);
  for (const auto& result : results) {
    CAPTURE(result.type);
    CHECK(result.isa != Isa::kScalar);
    CHECK_EQ(result.products, 16);
    CHECK_EQ(result.wrong, 0);
  }
}
