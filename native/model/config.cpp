#include "model/config.h"

#include <algorithm>
#include <string>

#include "errors.h"

namespace bitqwen {
namespace {

// Far above any real model, and small enough that no product of two overflows.
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxContext = int64_t{1} << 24;

class Reader {
 public:
  explicit Reader(const gguf::File& file) : file_(file) {}

  int64_t integer(const std::string& key, int64_t low, int64_t high) const {
    const gguf::Value* value = file_.find(key);
    if (!value || !value->is_integer()) fail(key, value ? "is not an integer" : "is missing");
    const int64_t number = value->as_integer();
    if (number < low || number > high) {
      fail(key, "is " + std::to_string(number) + "; " + std::to_string(low) + " to " + std::to_string(high) +
                    " are allowed");
    }
    return number;
  }
  double number(const std::string& key, double low, double high) const {
    const gguf::Value* value = file_.find(key);
    if (!value || !value->is_number()) fail(key, value ? "is not a number" : "is missing");
    const double number = value->as_float();
    if (!(number >= low && number <= high)) fail(key, "is " + std::to_string(number) + ", out of range");
    return number;
  }
  double number_or(const std::string& key, double low, double high, double otherwise) const {
    return file_.find(key) ? number(key, low, high) : otherwise;
  }
  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw Error(ErrorKind::kFormat, file_.path() + ": metadata key '" + key + "' " + what,
                "Convert the original checkpoint with `bitqwen convert`.");
  }

 private:
  const gguf::File& file_;
};

}  // namespace

Config Config::from_gguf(const gguf::File& file) {
  const Reader read(file);
  const gguf::Value* architecture = file.find("general.architecture");
  if (!architecture || architecture->type != gguf::ValueType::kString) {
    read.fail("general.architecture", architecture ? "is not a string" : "is missing");
  }
  if (architecture->as_string() != "qwen2") {
    throw Error(ErrorKind::kUnsupported,
                file.path() + " holds a model of architecture '" + std::string(architecture->as_string()) +
                    "'; this version runs 'qwen2' (Qwen2 and Qwen2.5)",
                "`bitqwen inspect` shows what the file is.");
  }
  Config c;
  c.layers = static_cast<int>(read.integer("qwen2.block_count", 1, 1024));
  c.hidden = read.integer("qwen2.embedding_length", 1, kMaxWidth);
  c.intermediate = read.integer("qwen2.feed_forward_length", 1, kMaxWidth);
  c.heads = static_cast<int>(read.integer("qwen2.attention.head_count", 1, 4096));
  c.kv_heads = static_cast<int>(read.integer("qwen2.attention.head_count_kv", 1, 4096));
  c.context = read.integer("qwen2.context_length", 1, kMaxContext);
  c.norm_epsilon = static_cast<float>(read.number("qwen2.attention.layer_norm_rms_epsilon", 0, 1));
  c.rope_theta = read.number_or("qwen2.rope.freq_base", 1, 1e12, 10000);
  if (c.heads % c.kv_heads != 0) {
    read.fail("qwen2.attention.head_count_kv", "is " + std::to_string(c.kv_heads) +
                                                   ", which does not divide the " + std::to_string(c.heads) +
                                                   " heads");
  }
  if (file.find("qwen2.attention.key_length")) {
    c.head_dim = static_cast<int>(read.integer("qwen2.attention.key_length", 1, 1024));
  } else {
    if (c.hidden % c.heads != 0) {
      read.fail(
          "qwen2.attention.head_count",
          "is " + std::to_string(c.heads) + ", which does not divide the width " + std::to_string(c.hidden));
    }
    c.head_dim = static_cast<int>(c.hidden / c.heads);
  }
  if (c.head_dim % 32 != 0) {
    throw Error(ErrorKind::kUnsupported, file.path() + " has heads of " + std::to_string(c.head_dim) +
                                             " values; multiples of 32 are supported");
  }
  const gguf::TensorInfo* embedding = file.find_tensor("token_embd.weight");
  if (embedding && embedding->dimensions.size() == 2) c.vocab_size = embedding->dimensions[1];

  if (const gguf::Value* type = file.find("qwen2.rope.scaling.type")) {
    const std::string name(type->type == gguf::ValueType::kString ? type->as_string() : "?");
    if (name == "yarn") {
      c.rope_scaling = RopeScaling::kYarn;
    } else if (name == "linear") {
      c.rope_scaling = RopeScaling::kLinear;
    } else if (name != "none") {
      throw Error(ErrorKind::kUnsupported, file.path() + ": rope scaling '" + name +
                                               "' is not supported; 'none', 'linear' and 'yarn' are");
    }
  }
  if (c.rope_scaling != RopeScaling::kNone) {
    c.rope_factor = read.number("qwen2.rope.scaling.factor", 1, 1024);
    c.rope_original_context = file.find("qwen2.rope.scaling.original_context_length")
                                  ? read.integer("qwen2.rope.scaling.original_context_length", 1, kMaxContext)
                                  : c.context;
    c.rope_attention_factor = read.number_or("qwen2.rope.scaling.attn_factor", 0, 100, 0);
    c.rope_beta_fast = read.number_or("qwen2.rope.scaling.yarn_beta_fast", 0, 1e6, 32);
    // What the scaling stretches the context to; files keep the original length.
    c.context = std::max(c.context,
                         static_cast<int64_t>(c.rope_factor * static_cast<double>(c.rope_original_context)));
    c.rope_beta_slow = read.number_or("qwen2.rope.scaling.yarn_beta_slow", 0, 1e6, 1);
  }
  return c;
}

}  // namespace bitqwen
