// Half precision against its definition, over all its values.
#include "half.h"

#include <cmath>
#include <limits>

#include "doctest/doctest.h"

using namespace bitqwen;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float by_definition(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float sign = half & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? std::numeric_limits<float>::quiet_NaN() : sign * kInfinity;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

bool same(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

}  // namespace

TEST_CASE("every half has the value that its bits define, and comes back") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = half_to_float(half);
    REQUIRE(same(value, by_definition(half)));
    if (std::isnan(value)) {
      REQUIRE(std::isnan(half_to_float(float_to_half(value))));
    } else {
      REQUIRE(float_to_half(value) == half);
    }
  }
}

TEST_CASE("float to half rounds to nearest, ties to even") {
  for (uint16_t low = 0; low < 0x7bff; ++low) {  // every pair of neighbours
    const auto high = static_cast<uint16_t>(low + 1);
    const float middle = (half_to_float(low) + half_to_float(high)) / 2;  // exact in float32
    const uint16_t even = low & 1 ? high : low;
    REQUIRE(float_to_half(middle) == even);
    REQUIRE(float_to_half(-middle) == (even | 0x8000));
    REQUIRE(float_to_half(std::nextafter(middle, 0.0f)) == low);
    REQUIRE(float_to_half(std::nextafter(middle, kInfinity)) == high);
  }
}

TEST_CASE("beyond the range lies infinity") {
  CHECK(float_to_half(65504.0f) == 0x7bff);
  CHECK(float_to_half(std::nextafter(65520.0f, 0.0f)) == 0x7bff);
  CHECK(float_to_half(65520.0f) == 0x7c00);
  CHECK(float_to_half(-1e30f) == 0xfc00);
  CHECK(float_to_half(kInfinity) == 0x7c00);
  CHECK(float_to_half(std::numeric_limits<float>::denorm_min()) == 0);
}

TEST_CASE("bfloat16 is the upper half of float32") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = bfloat16_to_float(static_cast<uint16_t>(bits));
    REQUIRE(same(value, std::bit_cast<float>(bits << 16)));
  }
}
