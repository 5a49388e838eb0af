#include "model/model.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "errors.h"
#include "gguf/codebook.h"
#include "gguf/dequantize.h"
#include "gguf/rotation.h"
#include "kernels/generated.h"
#include "model/finite.h"
#include "model/scratch.h"
#include "system/limits.h"

namespace bitqwen {
namespace {

std::string shape_text(std::span<const int64_t> dimensions) {
  std::string text;
  for (const int64_t d : dimensions) text += (text.empty() ? "" : " x ") + std::to_string(d);
  return text;
}

std::string gigabytes(int64_t bytes) {
  const std::string text = std::to_string(static_cast<double>(bytes) / 1e9);
  return text.substr(0, text.find('.') + 3) + " GB";
}

// Fetches tensors by name and shape, checks them, and remembers which were asked for.
class Loader {
 public:
  Loader(const gguf::File& file, ThreadPool& pool) : file_(file), pool_(pool) {}

  bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }

  gguf::TensorView view(const std::string& name, std::initializer_list<int64_t> dimensions) {
    const gguf::TensorInfo* tensor = file_.find_tensor(name);
    if (!tensor) fail("tensor '" + name + "' is missing; " + shape_text(dimensions) + " was expected");
    if (!std::ranges::equal(tensor->dimensions, dimensions)) {
      fail("tensor '" + name + "' has shape " + shape_text(tensor->dimensions) + "; " +
           shape_text(dimensions) + " was expected");
    }
    used_.insert(tensor->name);
    gguf::TensorView view = file_.view(*tensor);
    if (!view.codebook.empty()) used_.insert(file_.find_tensor(gguf::codebook_name(name))->name);
    if (!view.signs.empty()) used_.insert(gguf::kSignsTensor);
    if (!all_finite(view, pool_)) {
      fail("tensor '" + name + "' holds values that are not finite numbers (NaN or infinity)");
    }
    return view;
  }

  // `first` and `together`: rows of the products in the same loop that come before, and all of them.
  PackedMatrix matrix(const std::string& name, int64_t rows, int64_t cols, int64_t first = 0,
                      int64_t together = 0) {
    const gguf::TensorView tensor = view(name, {cols, rows});
    const ThreadPool::Part part{first / kRowBlock, (together + kRowBlock - 1) / kRowBlock};
    PackedMatrix packed = PackedMatrix::pack(tensor, pool_, preferred_ternary_layout(pool_.size()), part);
    file_.release(tensor);
    return packed;
  }

  std::vector<float> vector(const std::string& name, int64_t size) {
    const gguf::TensorView tensor = view(name, {size});
    std::vector<float> values(static_cast<size_t>(size));
    gguf::dequantize(tensor.type, tensor.bytes.data(), size, values.data(), tensor.codebook.data());
    return values;
  }

  void refuse_extras() const {
    for (const gguf::TensorInfo& tensor : file_.tensors()) {
      if (!used_.contains(tensor.name)) {
        fail("tensor '" + std::string(tensor.name) + "' is not part of a qwen2 model with these settings");
      }
    }
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw Error(ErrorKind::kFormat, file_.path() + ": " + message,
                "The file does not fit its own metadata: fetch or convert it again.");
  }

  const gguf::File& file_;
  ThreadPool& pool_;
  std::set<std::string_view> used_;
};

int64_t cache_positions(const ModelOptions& options) {
  return std::max(options.context, options.cache_positions);
}

KvShape kv_shape(const Config& config, KvType type) {
  return {config.layers, config.kv_heads, config.head_dim, type};
}

void check_memory(const gguf::File& file, const Config& config, const ModelOptions& options, int threads) {
  int64_t weights = 0;
  for (const gguf::TensorInfo& tensor : file.tensors()) weights += static_cast<int64_t>(tensor.bytes);
  const MemoryReport estimate = Model::estimate(config, options, threads, weights);
  weights = estimate.weights;
  const int64_t available = available_memory();
  const int64_t needed = weights + estimate.scratch + estimate.cache;
  if (needed <= available) return;
  const int64_t page = kv_shape(config, options.kv_type).page_bytes();
  const int64_t fits = (available - weights - estimate.scratch) / page * kPagePositions;
  throw Error(ErrorKind::kResource,
              file.path() + " needs " + gigabytes(needed) + " (weights " + gigabytes(weights) +
                  ", KV cache for " + std::to_string(cache_positions(options)) + " positions " +
                  gigabytes(estimate.cache) + ", scratch " + gigabytes(estimate.scratch) + "); " +
                  gigabytes(available) + " are available",
              fits > 0 ? "The largest context that fits is " + std::to_string(fits) + "."
                       : "Not even the weights fit: convert the model with a scheme of fewer bits, or use a "
                         "smaller model.");
}

}  // namespace

int64_t Model::Scratch::widest(const Config& config) {
  return std::max({config.hidden, config.intermediate, config.query_rows()});
}

Model::Scratch::Scratch(const Config& config, const ModelOptions& options, int thread_count)
    : qkv_stride(config.query_rows() + 2 * config.kv_rows()), mlp_stride(2 * config.intermediate) {
  const auto batch = static_cast<size_t>(options.batch);
  hidden.resize(batch * config.hidden);
  delta.resize(batch * config.hidden);
  qkv.resize(batch * qkv_stride);
  attended.resize(batch * config.query_rows());
  gate_up.resize(batch * mlp_stride);
  rows.resize(batch);
  threads.resize(static_cast<size_t>(thread_count));
  const int group = config.heads / config.kv_heads;
  for (Thread& thread : threads) {
    thread.row.resize(static_cast<size_t>(config.hidden));
    thread.rotated.resize(static_cast<size_t>(widest(config)));
    thread.scores.resize(static_cast<size_t>(group) * kPagePositions);
    thread.partials.resize(static_cast<size_t>(kAttentionRows + 1) * group * (config.head_dim + 2));
  }
}

int64_t Model::Scratch::estimate(const Config& config, const ModelOptions& options, int threads,
                                 bool screened) {
  const int64_t row = 2 * config.hidden + (config.query_rows() + 2 * config.kv_rows()) + config.query_rows() +
                      2 * config.intermediate;
  const int64_t rope = options.context * config.head_dim * 4;
  const int64_t coarse = screened ? kScreenedRows * config.vocab_size * 4 : 0;
  const int64_t most = widest(config);
  return options.batch * (row * 4 + most * 2) + threads * (config.hidden + most) * 4 + rope + coarse;
}

Model::Model(const gguf::File& file, const ModelOptions& options)
    : config_(Config::from_gguf(file)), options_(options), pool_(options.threads, options.places) {
  const ThreadPool::Caller caller(pool_);
  if (options.batch < 1 || options.batch > 8192) {
    throw Error(ErrorKind::kArgument,
                "batch is " + std::to_string(options.batch) + "; 1 to 8192 are allowed");
  }
  if (options.context < 1 || options.context > config_.context) {
    throw Error(ErrorKind::kArgument, "context is " + std::to_string(options.context) +
                                          "; this model allows 1 to " + std::to_string(config_.context));
  }
  check_memory(file, config_, options_, pool_.size());
  load(file);
  apply_plan();
  make_screen();
  file.check_unchanged();
  // To the end of the last page: q8 and q4 pages also ask for the angles of their middle.
  rope_ =
      RopeTable(config_, (options_.context + kPagePositions - 1) / kPagePositions * kPagePositions, pool_);
  cache_ = std::make_unique<KvCache>(kv_shape(config_, options_.kv_type), cache_positions(options_));
  scratch_ = std::make_unique<Scratch>(config_, options_, pool_.size());
  if (screen_) {
    scratch_->coarse.resize(static_cast<size_t>(kScreenedRows * config_.vocab_size));
    scratch_->screened = std::make_unique<ActivationBatch>(kScreenedRows, config_.hidden);
  }
}

Model::~Model() = default;

void Model::load(const gguf::File& file) {
  const Config& c = config_;
  Loader loader(file, pool_);
  rotation_signs_.assign(file.rotation_signs().begin(), file.rotation_signs().end());
  const std::string embedding_name = "token_embd.weight", output_name = "output.weight";
  embedding_.emplace(loader.matrix(embedding_name, c.vocab_size, c.hidden));
  if (loader.has(output_name)) {
    // Some files store a tied head a second time: one copy is enough.
    const gguf::TensorView output = loader.view(output_name, {c.hidden, c.vocab_size});
    const gguf::TensorView embedding = file.view(*file.find_tensor(embedding_name));
    const bool same = output.type == embedding.type && std::ranges::equal(output.bytes, embedding.bytes) &&
                      std::ranges::equal(output.codebook, embedding.codebook) &&
                      output.signs.size() == embedding.signs.size();
    if (!same) output_.emplace(loader.matrix(output_name, c.vocab_size, c.hidden));
  }
  output_norm_ = loader.vector("output_norm.weight", c.hidden);
  layers_.reserve(static_cast<size_t>(c.layers));
  for (int i = 0; i < c.layers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    const auto matrix = [&](const char* name, int64_t rows, int64_t cols, int64_t first = 0,
                            int64_t together = 0) {
      return loader.matrix(block + name + ".weight", rows, cols, first, together);
    };
    const int64_t qkv = c.query_rows() + 2 * c.kv_rows();
    std::vector<float> bias;
    for (const auto& [name, size] : {std::pair{"attn_q", c.query_rows()}, std::pair{"attn_k", c.kv_rows()},
                                     std::pair{"attn_v", c.kv_rows()}}) {
      const std::vector<float> part = loader.vector(block + name + ".bias", size);
      bias.insert(bias.end(), part.begin(), part.end());
    }
    layers_.push_back({.attention_norm = loader.vector(block + "attn_norm.weight", c.hidden),
                       .mlp_norm = loader.vector(block + "ffn_norm.weight", c.hidden),
                       .query = matrix("attn_q", c.query_rows(), c.hidden, 0, qkv),
                       .key = matrix("attn_k", c.kv_rows(), c.hidden, c.query_rows(), qkv),
                       .value = matrix("attn_v", c.kv_rows(), c.hidden, qkv - c.kv_rows(), qkv),
                       .qkv_bias = std::move(bias),
                       .attention_output = matrix("attn_output", c.hidden, c.query_rows()),
                       .gate = matrix("ffn_gate", c.intermediate, c.hidden, 0, 2 * c.intermediate),
                       .up = matrix("ffn_up", c.intermediate, c.hidden, c.intermediate, 2 * c.intermediate),
                       .down = matrix("ffn_down", c.hidden, c.intermediate)});
  }
  loader.refuse_extras();
}

void Model::make_screen() {
  if (options_.screened_head == ScreenedHead::Use::kNever) return;
  if (options_.screened_head == ScreenedHead::Use::kIfRoom) {
    ModelOptions with = options_;
    with.screened_head = ScreenedHead::Use::kAlways;
    const MemoryReport rest = estimate(config_, with, pool_.size(), 0);  // the weights are there already
    if (rest.weights + rest.cache + rest.scratch > available_memory()) return;
  }
  screen_.emplace(output_ ? *output_ : *embedding_, pool_);
}

// The same products that step() and head() compute in one loop each.
void Model::apply_plan() {
  const auto apply = [&](std::initializer_list<PackedMatrix*> product) {
    options_.plan.apply(product, pool_);
  };
  for (Layer& layer : layers_) {
    apply({&layer.query, &layer.key, &layer.value});
    apply({&layer.attention_output});
    apply({&layer.gate, &layer.up});
    apply({&layer.down});
  }
  apply({output_ ? &*output_ : &*embedding_});
}

MemoryReport Model::estimate(const Config& config, const ModelOptions& options, int threads,
                             int64_t weights) {
  const int64_t pages = (cache_positions(options) + kPagePositions - 1) / kPagePositions;
  const bool screened = options.screened_head == ScreenedHead::Use::kAlways;
  if (screened) weights += ScreenedHead::bytes(config.vocab_size, config.hidden);
  return {weights, pages * kv_shape(config, options.kv_type).page_bytes(),
          Scratch::estimate(config, options, threads, screened)};
}

int64_t Model::decode_bytes(bool screened) const {
  const int64_t head = output_ ? output_->bytes() : embedding_->bytes();
  int64_t bytes = screened && screen_ ? screen_->bytes() + head / 50 : head;
  for (const Layer& layer : layers_) {
    for (const PackedMatrix* matrix : matrices(layer)) bytes += matrix->bytes();
  }
  return bytes;
}

MemoryReport Model::memory() const {
  MemoryReport report;
  const auto held = [](const PackedMatrix& matrix) { return matrix.bytes() + generated_bytes(matrix); };
  report.weights = held(*embedding_) + (output_ ? held(*output_) : 0);
  for (const Layer& layer : layers_) {
    for (const PackedMatrix* matrix : matrices(layer)) report.weights += held(*matrix);
  }
  if (screen_) report.weights += screen_->bytes();
  report.cache = cache_->reserved_bytes();
  report.scratch = Scratch::estimate(config_, options_, pool_.size(), screened());
  return report;
}

}  // namespace bitqwen
