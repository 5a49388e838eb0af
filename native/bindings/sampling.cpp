// bitqwen._native: Sampler and token_logprobs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bindings/bindings.h"
#include "sampling/sampler.h"

namespace nb = nanobind;

namespace bitqwen {

namespace {

using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::span<const float> view(const Logits& logits) { return {logits.data(), logits.size()}; }

std::span<const uint32_t> view(const std::optional<Mask>& mask) {
  return mask ? std::span<const uint32_t>{mask->data(), mask->size()} : std::span<const uint32_t>{};
}

}  // namespace

void bind_sampling(nb::module_& m) {
  nb::class_<Sampler>(
      m, "Sampler",
      "One sequence's sampler; bitqwen.generation.sampling explains the settings and their order.")
      .def(
          "__init__",
          [](Sampler* self, int64_t vocab_size, float temperature, int64_t top_k, float top_p, float min_p,
             float repetition_penalty, float presence_penalty, float frequency_penalty,
             int64_t penalty_window, uint64_t seed, std::vector<std::pair<int32_t, float>> logit_bias) {
            new (self)
                Sampler(vocab_size, SamplingSettings{temperature, top_k, top_p, min_p, repetition_penalty,
                                                     presence_penalty, frequency_penalty, penalty_window,
                                                     seed, std::move(logit_bias)});
          },
          nb::arg("vocab_size"), nb::kw_only(), nb::arg("temperature") = 1.0F, nb::arg("top_k") = 0,
          nb::arg("top_p") = 1.0F, nb::arg("min_p") = 0.0F, nb::arg("repetition_penalty") = 1.0F,
          nb::arg("presence_penalty") = 0.0F, nb::arg("frequency_penalty") = 0.0F,
          nb::arg("penalty_window") = 0, nb::arg("seed") = 0,
          nb::arg("logit_bias") = std::vector<std::pair<int32_t, float>>{})
      .def_prop_ro("vocab_size", &Sampler::vocab_size)
      .def_prop_ro("accepted", &Sampler::accepted,
                   "Tokens accepted so far: the number of the next random draw.")
      .def(
          "add_prompt", [](Sampler& self, const std::vector<int32_t>& tokens) { self.add_prompt(tokens); },
          nb::arg("tokens"), "Tells the repetition penalty what the prompt holds.")
      .def("accept", &Sampler::accept, nb::arg("token"), "Goes on with this token.")
      .def(
          "sample",
          [](const Sampler& self, const Logits& logits, const std::optional<Mask>& allowed) {
            const nb::gil_scoped_release release;
            return self.sample(view(logits), view(allowed));
          },
          nb::arg("logits"), nb::arg("allowed").none() = nb::none(),
          "The next token from float32 logits [>= vocab_size]; changes nothing. `allowed`, uint32 "
          "[ceil(vocab_size / "
          "32)], has bit t % 32 of word t / 32 set where token t may be chosen.")
      .def(
          "needed",
          [](const Sampler& self) -> std::optional<std::tuple<int64_t, float, nb::bytes>> {
            const auto needed = self.needed();
            if (!needed) return std::nullopt;
            const auto& lowered = needed->lowered;
            return std::tuple(
                needed->top, needed->margin,
                nb::bytes(reinterpret_cast<const char*>(lowered.data()), lowered.size() * sizeof(int32_t)));
          },
          "What the next `sample` without a mask looks at, as (top, margin, int32 ids of tokens that it may "
          "lower first): the `top` highest logits (0: however many), those at most `margin` below the "
          "highest "
          "(below 0: however far). None: all.")
      .def(
          "distribution",
          [](const Sampler& self, const Logits& logits, const std::optional<Mask>& allowed) {
            const nb::gil_scoped_release release;
            return self.distribution(view(logits), view(allowed));
          },
          nb::arg("logits"), nb::arg("allowed").none() = nb::none(),
          "What `sample` draws from: (token, probability) of each kept token.");

  m.def(
      "token_logprobs",
      [](const Logits& logits, int32_t token, int64_t top) {
        TokenLogprobs result;
        {
          const nb::gil_scoped_release release;
          result = token_logprobs(view(logits), token, top);
        }
        std::vector<std::pair<int32_t, float>> ranked;
        for (const Candidate& candidate : result.top) ranked.emplace_back(candidate.token, candidate.logit);
        return std::pair{result.logprob, ranked};
      },
      nb::arg("logits"), nb::arg("token"), nb::arg("top") = 0,
      "(log-probability of `token`, the `top` best as (token, log-probability)) under softmax(logits); "
      "float32 [n].");
}

}  // namespace bitqwen
