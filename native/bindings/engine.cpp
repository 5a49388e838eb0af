// Model: the native engine. Python's engine/ wraps it in sessions and batches.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <mutex>

#include "bindings/bindings.h"
#include "bindings/plans.h"
#include "errors.h"
#include "gguf/reader.h"
#include "kernels/coarse_rows.h"
#include "kernels/isa.h"
#include "model/model.h"
#include "system/limits.h"
#include "system/numa.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitqwen {
namespace {

constexpr auto kSignalInterval = std::chrono::milliseconds(50);

// One call at a time: sessions of one model share its scratch memory and threads.
class LockedModel {
 public:
  LockedModel(const gguf::File& file, const ModelOptions& options) : model_(file, options) {}

  template <class Body>
  auto with(Body&& body) {
    std::lock_guard lock(mutex_);
    return body(model_);
  }
  const Model& model() const { return model_; }

 private:
  std::mutex mutex_;
  Model model_;
};

KvType kv_type(const std::string& name) {
  if (name == "f16") return KvType::kF16;
  if (name == "q8" || name == "int8") return KvType::kQ8;
  if (name == "q4") return KvType::kQ4;
  throw Error(ErrorKind::kArgument, "KV cache type '" + name + "' is not known; 'f16', 'q8' and 'q4' are");
}

LogitRows logit_rows(const std::string& name) {
  if (name == "last") return LogitRows::kLast;
  if (name == "all") return LogitRows::kAll;
  if (name == "none") return LogitRows::kNone;
  throw Error(ErrorKind::kArgument, "logits '" + name + "' is not known; 'last', 'all' and 'none' are");
}

ScreenedHead::Use screened_head(const std::string& name) {
  if (name == "never") return ScreenedHead::Use::kNever;
  if (name == "if room") return ScreenedHead::Use::kIfRoom;
  if (name == "always") return ScreenedHead::Use::kAlways;
  throw Error(ErrorKind::kArgument,
              "screened head '" + name + "' is not known; 'never', 'if room' and 'always' are");
}

// None where there is nothing to place: no root, or a machine whose memory is as near to every core.
std::vector<ThreadPlace> thread_places(const std::string& root, int threads) {
  if (root.empty()) return {};
  const std::vector<NumaNode> nodes = numa_nodes(root, allowed_cpus());
  if (nodes.size() < 2) return {};
  return spread_threads(nodes, threads > 0 ? threads : available_cores());
}

nb::dict as_dict(const MemoryReport& report) {
  nb::dict out;
  out["weights"] = report.weights;
  out["cache"] = report.cache;
  out["scratch"] = report.scratch;
  return out;
}

nb::dict as_dict(const Profile& profile) {
  nb::list operations;
  for (int i = 0; i < kOperations; ++i) {
    const auto operation = static_cast<Operation>(i);
    const OperationTime& time = profile.time(operation);
    nb::dict row;
    const std::string_view name = operation_name(operation);
    row["name"] = nb::str(name.data(), name.size());
    row["calls"] = time.calls;
    row["seconds"] = time.seconds;
    row["waiting"] = time.waiting;
    row["barriers"] = time.barriers;
    row["bytes"] = time.bytes;
    operations.append(row);
  }
  nb::dict out;
  out["steps"] = profile.steps();
  out["tokens"] = profile.tokens();
  out["operations"] = operations;
  return out;
}

using Rows = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using ScreenTuple = std::tuple<int64_t, float, int64_t, nb::bytes>;  // the ids as int32

Rows forward(LockedModel& model,
             const std::vector<std::tuple<int, std::vector<int32_t>, std::string>>& sequences, bool hidden,
             const std::vector<ScreenTuple>& screens) {
  if (!screens.empty() && screens.size() != sequences.size()) {
    throw Error(ErrorKind::kArgument, "screens: one for each sequence, or none");
  }
  std::vector<Request> requests;
  for (const auto& [sequence, tokens, rows] : sequences) {
    requests.push_back({sequence, tokens, logit_rows(rows), {}});
  }
  for (size_t i = 0; i < screens.size(); ++i) {
    const auto& [top, margin, count, lowered] = screens[i];
    requests[i].screen = {
        top, margin, count, {static_cast<const int32_t*>(lowered.data()), lowered.size() / sizeof(int32_t)}};
  }
  const Output output = hidden ? Output::kHidden : Output::kLogits;
  const auto count = static_cast<size_t>(Model::logit_rows(requests));
  const auto width = static_cast<size_t>(model.model().width(output));
  // Not initialised: every value is written.
  auto data = std::make_unique_for_overwrite<float[]>(count * width);
  // Ctrl-C reaches a long prefill: Python's signal handlers run here, now and then, between layers.
  bool signalled = false;
  auto last_look = std::chrono::steady_clock::now();
  const auto should_stop = [&] {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_look < kSignalInterval) return false;
    last_look = now;
    nb::gil_scoped_acquire acquire;
    signalled = PyErr_CheckSignals() != 0;
    return signalled;
  };
  try {
    nb::gil_scoped_release release;
    model.with([&](Model& m) { m.forward(requests, output, data.get(), should_stop); });
  } catch (const Error&) {
    if (signalled) throw nb::python_error();  // what the handler raised: KeyboardInterrupt
    throw;
  }
  float* raw = data.release();
  nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Rows(raw, {count, width}, owner);
}

}  // namespace

void bind_engine(nb::module_& m) {
  nb::class_<LockedModel>(m, "Model", "A model loaded for this CPU; safe to use from several threads.")
      .def(
          "__init__",
          [](LockedModel* self, const gguf::File& file, int threads, int64_t context, int64_t cache_positions,
             const std::string& kv, int batch, const std::vector<PlanRow>& plan, const std::string& screen,
             const std::string& numa_root) {
            const ModelOptions options{
                threads, context,           cache_positions,       kv_type(kv),
                batch,   kernel_plan(plan), screened_head(screen), thread_places(numa_root, threads)};
            nb::gil_scoped_release release;
            new (self) LockedModel(file, options);
          },
          "file"_a, "threads"_a, "context"_a, "cache_positions"_a, "kv"_a, "batch"_a,
          "plan"_a = std::vector<PlanRow>{}, "screened_head"_a = "never", "numa_root"_a = "",
          "`numa_root`: the folder above /sys, to place threads and weights on its memory nodes.")
      .def_prop_ro("vocab_size", [](const LockedModel& self) { return self.model().config().vocab_size; })
      .def_prop_ro("threads", [](const LockedModel& self) { return self.model().threads(); })
      .def_prop_ro("numa_nodes", [](const LockedModel& self) { return self.model().numa_nodes(); })
      .def_prop_ro("context", [](const LockedModel& self) { return self.model().options().context; })
      .def_prop_ro("screened", [](const LockedModel& self) { return self.model().screened(); })
      .def(
          "memory", [](const LockedModel& self) { return as_dict(self.model().memory()); },
          "Bytes held: packed weights, KV cache (reserved), scratch.")
      .def(
          "decode_bytes",
          [](const LockedModel& self, bool screened) { return self.model().decode_bytes(screened); },
          "screened"_a = false,
          "Bytes of packed weights that computing one token reads; `screened`: a greedy one.")
      .def(
          "start_profile",
          [](LockedModel& self) { self.with([](Model& model) { model.profile().start(); }); },
          "Forgets what was measured and measures every forward() from now on.")
      .def(
          "stop_profile",
          [](LockedModel& self) {
            return self.with([](Model& model) {
              model.profile().stop();
              return as_dict(model.profile());
            });
          },
          "Ends measuring; what was measured: steps, tokens, and for each operation its name, calls, "
          "seconds, waiting, barriers, bytes.")
      .def("free_positions",
           [](LockedModel& self) {
             return self.with([](Model& model) { return model.cache().free_positions(); });
           })
      .def("create",
           [](LockedModel& self) { return self.with([](Model& model) { return model.cache().create(); }); })
      .def(
          "fork",
          [](LockedModel& self, int sequence) {
            return self.with([&](Model& model) { return model.cache().fork(sequence); });
          },
          "sequence"_a)
      .def(
          "truncate",
          [](LockedModel& self, int sequence, int64_t length) {
            self.with([&](Model& model) { model.cache().truncate(sequence, length); });
          },
          "sequence"_a, "length"_a)
      .def(
          "release",
          [](LockedModel& self, int sequence) {
            self.with([&](Model& model) { model.cache().release(sequence); });
          },
          "sequence"_a)
      .def_prop_ro("page_positions", [](const LockedModel&) { return kPagePositions; })
      .def_prop_ro("page_bytes",
                   [](LockedModel& self) {
                     return self.with([](Model& model) { return model.cache().shape().page_bytes(); });
                   })
      .def(
          "export_page",
          [](LockedModel& self, int sequence, int64_t index) {
            return self.with([&](Model& model) {
              const auto data = model.cache().page_data(sequence, index);
              return nb::bytes(data.data(), data.size());
            });
          },
          "sequence"_a, "index"_a, "One page of a sequence's keys and values, as import_page() takes it.")
      .def(
          "import_page",
          [](LockedModel& self, int sequence, nb::bytes data, int64_t positions) {
            self.with([&](Model& model) {
              const std::span page{static_cast<const uint8_t*>(data.data()), data.size()};
              if (model.cache().length(sequence) + positions > model.options().context) {
                throw Error(ErrorKind::kContext, "the context would overflow");
              }
              model.cache().append_page(sequence, page, positions);
            });
          },
          "sequence"_a, "data"_a, "positions"_a, "Adds a page that holds so many positions to a sequence.")
      .def("forward", &forward, "sequences"_a, "hidden"_a = false, "screens"_a = std::vector<ScreenTuple>(),
           "Appends tokens to sequences: [(sequence, [token, ...], rows), ...], where rows, 'last', 'all' or "
           "'none', are those whose logits are wanted; float32 [rows, vocab_size]. With `hidden`, what the "
           "output matrix would be multiplied with instead: float32 [rows, hidden_size]. `screens`: for each "
           "sequence (top, margin, vocabulary, int32 ids that will be lowered), the logits that will be "
           "looked at; (0, -1, 0, b\"\") is all of them.");

  m.def(
      "estimate_memory",
      [](int64_t hidden, int64_t intermediate, int layers, int heads, int kv_heads, int head_dim,
         int64_t vocab_size, int64_t weights, int threads, int64_t context, const std::string& kv, int batch,
         bool screened) {
        Config config;
        config.vocab_size = vocab_size;
        config.hidden = hidden;
        config.intermediate = intermediate;
        config.layers = layers;
        config.heads = heads;
        config.kv_heads = kv_heads;
        config.head_dim = head_dim;
        const ModelOptions options{
            threads, context, 0, kv_type(kv), batch, {}, screened_head(screened ? "always" : "never"), {}};
        return as_dict(Model::estimate(config, options, threads, weights));
      },
      nb::kw_only(), "hidden"_a, "intermediate"_a, "layers"_a, "heads"_a, "kv_heads"_a, "head_dim"_a,
      "vocab_size"_a, "weights"_a, "threads"_a, "context"_a, "kv"_a, "batch"_a, "screened"_a,
      "What Model.memory() will say of a model of this shape, before it is loaded.");
  m.def(
      "screen_bytes", [](int64_t rows, int64_t cols) { return ScreenedHead::bytes(rows, cols); }, "rows"_a,
      "cols"_a, "What a screen of an output matrix takes: its columns are a multiple of SCREEN_BLOCK.");
  m.attr("SCREEN_BLOCK") = kCoarseBlock;
  m.def("available_memory", &available_memory, "Bytes that could be taken without swapping.");
  m.def("isa_report", &isa_report, "One sentence: which instruction set the kernels use, and why.");
  m.def("isa_name", [] { return std::string(isa_name(current_isa())); }, "The instruction set in use.");
  m.def("usable_isas", [] {
    std::vector<std::string> names;
    for (const Isa isa : usable_isas()) names.emplace_back(isa_name(isa));
    return names;
  });
}

}  // namespace bitqwen
