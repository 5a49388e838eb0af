// One step of the transformer: tokens of several sequences in, logits out.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "errors.h"
#include "model/finite.h"
#include "model/model.h"
#include "model/scratch.h"

namespace bitqwen {
namespace {

void stop_if(const std::function<bool()>& should_stop) {
  if (should_stop && should_stop()) throw Error(ErrorKind::kInterrupted, "interrupted");
}

PartialAttention partial_at(float* memory, int heads) { return {memory, memory + heads, memory + 2 * heads}; }

}  // namespace

int64_t Model::logit_rows(std::span<const Request> requests) {
  int64_t rows = 0;
  for (const Request& request : requests) {
    if (request.logits == LogitRows::kLast) rows += 1;
    if (request.logits == LogitRows::kAll) rows += static_cast<int64_t>(request.tokens.size());
  }
  return rows;
}

void Model::check_requests(std::span<const Request> requests) const {
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    const int64_t length = cache_->length(request.sequence);
    if (request.tokens.empty()) throw Error(ErrorKind::kArgument, "a request without tokens");
    const auto count = static_cast<int64_t>(request.tokens.size());
    if (length + count > options_.context) {
      throw Error(ErrorKind::kContext,
                  std::to_string(length + count) + " tokens do not fit into the context of " +
                      std::to_string(options_.context),
                  "Shorten the prompt, or open the model with a larger context (this one was made for " +
                      std::to_string(config_.context) + ").");
    }
    for (const int32_t token : request.tokens) {
      if (token < 0 || token >= config_.vocab_size) {
        throw Error(ErrorKind::kArgument, "token id " + std::to_string(token) +
                                              " is outside the vocabulary of " +
                                              std::to_string(config_.vocab_size));
      }
    }
    const Screen& screen = request.screen;
    if (screen.rows < 0 || screen.rows > config_.vocab_size || screen.top < 0) {
      throw Error(ErrorKind::kArgument, "a screen of " + std::to_string(screen.rows) + " rows, the top " +
                                            std::to_string(screen.top) + "; the vocabulary has " +
                                            std::to_string(config_.vocab_size));
    }
    for (size_t j = 0; j < i; ++j) {
      if (requests[j].sequence == request.sequence) {
        throw Error(ErrorKind::kArgument, "one step was given the same sequence twice");
      }
    }
  }
}

void Model::forward(std::span<const Request> requests, Output output, float* out,
                    const std::function<bool()>& should_stop) {
  check_requests(requests);
  const ThreadPool::Caller caller(pool_);
  for (const Request& request : requests) {
    cache_->reserve(request.sequence, static_cast<int64_t>(request.tokens.size()));
  }
  std::vector<Row>& rows = scratch_->rows;
  const auto batch = rows.size();
  size_t filled = 0;
  int64_t next_logits = 0;
  for (const Request& request : requests) {
    const int64_t start = cache_->length(request.sequence);
    for (size_t i = 0; i < request.tokens.size(); ++i) {
      const bool wanted = request.logits == LogitRows::kAll ||
                          (request.logits == LogitRows::kLast && i + 1 == request.tokens.size());
      rows[filled++] = {request.sequence, start + static_cast<int64_t>(i), request.tokens[i],
                        wanted ? next_logits++ : -1, request.screen};
      if (filled == batch) {
        step(rows, output, out, should_stop);
        filled = 0;
      }
    }
  }
  if (filled > 0) step(std::span(rows).first(filled), output, out, should_stop);
  for (const Request& request : requests) {
    cache_->commit(request.sequence, static_cast<int64_t>(request.tokens.size()));
  }
}

ActivationBatch& Model::activations(const PackedMatrix& matrix) {
  const int group = matrix.activation_group();
  const size_t place = group == 0 ? 0 : group == 32 ? 1 : group == 64 ? 2 : 3;
  auto& slot = scratch_->activations[matrix.rotated() ? place + 4 : place];
  if (!slot) slot = std::make_unique<ActivationBatch>(options_.batch, Scratch::widest(config_));
  return *slot;
}

void Model::prepare(int rows, int64_t k, std::initializer_list<const PackedMatrix*> matrices,
                    const std::function<const float*(int row, int thread)>& values) {
  std::array<ActivationBatch*, 8> batches;
  size_t count = 0, plain = 0;  // those before `plain` take the values as they are, the others rotated
  for (const bool rotated : {false, true}) {
    for (const PackedMatrix* matrix : matrices) {
      if (matrix->rotated() != rotated) continue;
      ActivationBatch* batch = &activations(*matrix);
      if (std::find(batches.begin(), batches.begin() + count, batch) != batches.begin() + count) continue;
      int tile = preferred_tile(*matrix, rows);
      for (const PackedMatrix* other : matrices) {
        if (&activations(*other) == batch) tile = std::min(tile, preferred_tile(*other, rows));
      }
      batch->start(rows, k, matrix->activation_group(), tile);
      for (const PackedMatrix* other : matrices) {
        if (&activations(*other) == batch) batch->make_tables(*other);
      }
      batches[count++] = batch;
    }
    if (!rotated) plain = count;
  }
  pool_.parallel_for(rows, 1, [&](int64_t begin, int64_t end, int thread) {
    for (auto row = static_cast<int>(begin); row < end; ++row) {
      const float* x = values(row, thread);
      for (size_t i = 0; i < plain; ++i) batches[i]->set(row, x);
      if (plain == count) continue;
      float* rotated = scratch_->threads[thread].rotated.data();
      current_ops().hadamard(x, rotation_signs_.data(), k, rotated);
      for (size_t i = plain; i < count; ++i) batches[i]->set(row, rotated);
    }
  });
}

void Model::multiply(std::initializer_list<Product> products, int rows) {
  // One loop over the row blocks of all products: one barrier.
  int64_t blocks = 0, grain = 0, most = 0;
  const auto blocks_of = [](const Product& p) { return (p.weights->rows() + kRowBlock - 1) / kRowBlock; };
  for (const Product& product : products) {
    blocks += blocks_of(product);
    // The product with the most bytes says how many rows are taken at a time.
    if (product.weights->bytes() > most) {
      most = product.weights->bytes();
      grain = preferred_rows(*product.weights, rows) / kRowBlock;
    }
  }
  pool_.parallel_for(blocks, grain, [&](int64_t begin, int64_t end, int) {
    int64_t first = 0;  // block of the current product
    for (const Product& product : products) {
      const int64_t last = first + blocks_of(product);
      const int64_t from = std::max(begin, first), to = std::min(end, last);
      if (from < to) {
        bitqwen::multiply(*product.weights, *product.activations, product.out, product.stride,
                          (from - first) * kRowBlock,
                          std::min((to - first) * kRowBlock, product.weights->rows()));
      }
      first = last;
    }
  });
}

void Model::step(std::span<const Row> rows, Output output, float* out,
                 const std::function<bool()>& should_stop) {
  const Config& c = config_;
  const OpsTable& ops = current_ops();
  Scratch& s = *scratch_;
  const int n = static_cast<int>(rows.size());
  const auto hidden = [&](int row) { return s.hidden.data() + row * c.hidden; };
  const auto delta = [&](int row) { return s.delta.data() + row * c.hidden; };

  profile_.begin_step(n);
  for (int row = 0; row < n; ++row) {
    embedding_->dequantize_row(rows[row].token, hidden(row));
    if (embedding_->rotated()) {
      ops.hadamard_back(hidden(row), rotation_signs_.data(), c.hidden, hidden(row));
    }
  }
  profile_.add(Operation::kEmbedding, n * (embedding_->bytes() / c.vocab_size));

  bool first = true;  // the block before has left what it adds in `delta`
  const auto normed = [&](const std::vector<float>& weight) {
    return [&, add = !first](int row, int thread) -> const float* {
      float* out = s.threads[thread].row.data();
      if (add) ops.add(hidden(row), delta(row), c.hidden);
      ops.rms_norm(hidden(row), weight.data(), c.hidden, c.norm_epsilon, out);
      return out;
    };
  };
  const auto input_of = [&](const PackedMatrix& matrix) { return &activations(matrix); };

  for (int l = 0; l < c.layers; ++l) {
    stop_if(should_stop);
    const Layer& layer = layers_[l];
    prepare(n, c.hidden, {&layer.query, &layer.key, &layer.value}, normed(layer.attention_norm));
    profile_.add(Operation::kAttentionNorm, 0);
    first = false;
    float* qkv = s.qkv.data();
    multiply({{&layer.query, input_of(layer.query), qkv, s.qkv_stride},
              {&layer.key, input_of(layer.key), qkv + c.query_rows(), s.qkv_stride},
              {&layer.value, input_of(layer.value), qkv + c.query_rows() + c.kv_rows(), s.qkv_stride}},
             n);
    profile_.add(Operation::kQueryKeyValue, layer.query.bytes() + layer.key.bytes() + layer.value.bytes());
    attention(rows, l);
    profile_.add(Operation::kAttention, profile_.enabled() ? cache_bytes(rows) : 0);
    prepare(n, c.query_rows(), {&layer.attention_output},
            [&](int row, int) { return s.attended.data() + row * c.query_rows(); });
    profile_.add(Operation::kAttentionQuantize, 0);
    multiply({{&layer.attention_output, input_of(layer.attention_output), s.delta.data(), c.hidden}}, n);
    profile_.add(Operation::kAttentionOutput, layer.attention_output.bytes());

    prepare(n, c.hidden, {&layer.gate, &layer.up}, normed(layer.mlp_norm));
    profile_.add(Operation::kMlpNorm, 0);
    multiply({{&layer.gate, input_of(layer.gate), s.gate_up.data(), s.mlp_stride},
              {&layer.up, input_of(layer.up), s.gate_up.data() + c.intermediate, s.mlp_stride}},
             n);
    profile_.add(Operation::kGateUp, layer.gate.bytes() + layer.up.bytes());
    prepare(n, c.intermediate, {&layer.down}, [&](int row, int) {
      float* gate = s.gate_up.data() + row * s.mlp_stride;
      ops.swiglu(gate, gate + c.intermediate, c.intermediate);
      return gate;
    });
    profile_.add(Operation::kSwiglu, 0);
    multiply({{&layer.down, input_of(layer.down), s.delta.data(), c.hidden}}, n);
    profile_.add(Operation::kDown, layer.down.bytes());
  }
  stop_if(should_stop);
  head(rows, output, out);
}

// Of the KV cache that the attention of one layer reads: a row group's pages once.
int64_t Model::cache_bytes(std::span<const Row> rows) const {
  const KvShape& shape = cache_->shape();
  const int64_t position_bytes = shape.page_bytes() / shape.layers / kPagePositions;
  int64_t positions = 0;
  for (size_t begin = 0; begin < rows.size();) {
    size_t end = begin + 1;
    while (end < rows.size() && end - begin < kAttentionRows && rows[end].sequence == rows[begin].sequence) {
      ++end;
    }
    positions += rows[end - 1].position + 1;
    begin = end;
  }
  return positions * position_bytes;
}

void Model::attention(std::span<const Row> rows, int l) {
  const Config& c = config_;
  const OpsTable& ops = current_ops();
  Scratch& s = *scratch_;
  const int n = static_cast<int>(rows.size());
  const int group = c.heads / c.kv_heads;  // query heads of one key/value head
  const int64_t partial_floats = int64_t{group} * (c.head_dim + 2);
  const float query_scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  const std::vector<float>& bias = layers_[l].qkv_bias;

  pool_.parallel_for(n, 4, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t row = begin; row < end; ++row) {
      float* query = s.qkv.data() + row * s.qkv_stride;
      float* key = query + c.query_rows();
      const float* value = key + c.kv_rows();
      const int64_t position = rows[row].position;
      ops.add(query, bias.data(), s.qkv_stride);
      ops.rope(query, c.heads, c.head_dim, rope_.cosine(position), rope_.sine(position), query_scale);
      ops.rope(key, c.kv_heads, c.head_dim, rope_.cosine(position), rope_.sine(position), 1.0f);
      // Qwen2.5's key biases are many times what varies between keys, and would take up most of eight
      // bits. A q8 or q4 page keeps keys less the bias as rotated at the page's middle: attention adds the
      // product with it back, once for each page.
      float* centre = s.threads[thread].row.data();
      if (options_.kv_type != KvType::kF16) {
        const int64_t middle = position / kPagePositions * kPagePositions + kPagePositions / 2;
        std::copy_n(bias.data() + c.query_rows(), c.kv_rows(), centre);
        ops.rope(centre, c.kv_heads, c.head_dim, rope_.cosine(middle), rope_.sine(middle), 1.0f);
      }
      for (int h = 0; h < c.kv_heads; ++h) {
        const KvPage page = cache_->page(rows[row].sequence, position / kPagePositions, l, h);
        ops.store_kv(page, options_.kv_type, static_cast<int>(position % kPagePositions),
                     key + h * c.head_dim, value + h * c.head_dim, centre + h * c.head_dim, c.head_dim);
      }
    }
  });

  profile_.add(Operation::kRope, n * (cache_->shape().page_bytes() / c.layers / kPagePositions));

  // Softmax over one chunk of positions for one query; the chunks are then merged in their order,
  // whoever computed them: the result does not depend on how the work was shared out.
  const auto chunks_of = [&](int64_t row) { return rows[row].position / kAttentionChunk + 1; };
  const auto attend = [&](int64_t row, int kv_head, int64_t chunk, int thread, float* memory) {
    const int64_t begin = chunk * kAttentionChunk;
    const int64_t positions = std::min(rows[row].position + 1 - begin, kAttentionChunk);
    std::array<KvPage, kAttentionChunk / kPagePositions> pages;
    for (int64_t i = 0; i * kPagePositions < positions; ++i) {
      pages[i] = cache_->page(rows[row].sequence, begin / kPagePositions + i, l, kv_head);
    }
    const float* queries = s.qkv.data() + row * s.qkv_stride + int64_t{kv_head} * group * c.head_dim;
    ops.attend(pages.data(), options_.kv_type, positions, queries, group, c.head_dim,
               s.threads[thread].scores.data(), partial_at(memory, group));
  };
  const auto out_of = [&](int64_t row, int kv_head) {
    return s.attended.data() + row * c.query_rows() + int64_t{kv_head} * group * c.head_dim;
  };

  const int64_t tasks = int64_t{n} * c.kv_heads;
  if (tasks < 4 * pool_.size()) {
    // Few queries: also the chunks of one query go to different threads.
    int64_t most = 0;
    for (int64_t row = 0; row < n; ++row) most = std::max(most, chunks_of(row));
    const auto needed = static_cast<size_t>(tasks * most * partial_floats);
    if (s.partials.size() < needed) s.partials.resize(needed);
    const auto memory = [&](int64_t task, int64_t chunk) {
      return s.partials.data() + (task * most + chunk) * partial_floats;
    };
    pool_.parallel_for(tasks * most, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t task = i % tasks, chunk = i / tasks, row = task / c.kv_heads;
        if (chunk < chunks_of(row)) {
          attend(row, static_cast<int>(task % c.kv_heads), chunk, thread, memory(task, chunk));
        }
      }
    });
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t row = task / c.kv_heads;
      const PartialAttention total = partial_at(memory(task, 0), group);
      for (int64_t chunk = 1; chunk < chunks_of(row); ++chunk) {
        ops.merge(total, partial_at(memory(task, chunk), group), group, c.head_dim);
      }
      ops.finish(total, group, c.head_dim, out_of(row, static_cast<int>(task % c.kv_heads)));
    }
    return;
  }
  const int64_t row_groups = (n + kAttentionRows - 1) / kAttentionRows;
  pool_.parallel_for(row_groups * c.kv_heads, 1, [&](int64_t begin, int64_t end, int thread) {
    float* memory = s.threads[thread].partials.data();
    float* fresh = memory + kAttentionRows * partial_floats;
    for (int64_t i = begin; i < end; ++i) {
      const auto kv_head = static_cast<int>(i % c.kv_heads);
      // The last rows see the most: begin with them, so that no thread is left with a long task.
      const int64_t row_begin = (row_groups - 1 - i / c.kv_heads) * kAttentionRows;
      const int64_t row_end = std::min<int64_t>(n, row_begin + kAttentionRows);
      int64_t most = 0;
      for (int64_t row = row_begin; row < row_end; ++row) most = std::max(most, chunks_of(row));
      for (int64_t chunk = 0; chunk < most; ++chunk) {
        for (int64_t row = row_begin; row < row_end; ++row) {
          if (chunk >= chunks_of(row)) continue;
          float* total = memory + (row - row_begin) * partial_floats;
          attend(row, kv_head, chunk, thread, chunk == 0 ? total : fresh);
          if (chunk > 0) {
            ops.merge(partial_at(total, group), partial_at(fresh, group), group, c.head_dim);
          }
        }
      }
      for (int64_t row = row_begin; row < row_end; ++row) {
        ops.finish(partial_at(memory + (row - row_begin) * partial_floats, group), group, c.head_dim,
                   out_of(row, kv_head));
      }
    }
  });
}

void Model::output_state(int row, float* out) {
  const Config& c = config_;
  float* x = scratch_->hidden.data() + row * c.hidden;
  current_ops().add(x, scratch_->delta.data() + row * c.hidden, c.hidden);
  current_ops().rms_norm(x, output_norm_.data(), c.hidden, c.norm_epsilon, out);
}

void Model::head(std::span<const Row> rows, Output output, float* result) {
  const Config& c = config_;
  Scratch& s = *scratch_;
  const PackedMatrix& weights = output_ ? *output_ : *embedding_;
  // The rows asked for are consecutive in the caller's array; find them.
  std::vector<int>& wanted = s.wanted;
  wanted.clear();
  bool screened = screen_.has_value() && output == Output::kLogits;
  int64_t together = 0;
  for (size_t row = 0; row < rows.size(); ++row) {
    if (rows[row].logits < 0) continue;
    wanted.push_back(static_cast<int>(row));
    screened = screened && rows[row].screen.wanted();
    together += rows[row].screen.share();
  }
  if (wanted.empty()) return;
  const int n = static_cast<int>(wanted.size());
  const int64_t stride = width(output);
  float* out = result + rows[wanted[0]].logits * stride;
  if (screened && n <= kScreenedRows && (n == 1 || together <= Screen::kMostTogether)) {
    screened_logits(rows, out);
    return;
  }
  if (output == Output::kHidden) {
    for (int i = 0; i < n; ++i) output_state(wanted[i], out + i * stride);
    profile_.add(Operation::kOutputNorm, 0);
  } else {
    prepare(n, c.hidden, {&weights}, [&](int i, int thread) -> const float* {
      float* row = s.threads[thread].row.data();
      output_state(wanted[i], row);
      return row;
    });
    profile_.add(Operation::kOutputNorm, 0);
    multiply({{&weights, &activations(weights), out, stride}}, n);
    profile_.add(Operation::kHead, weights.bytes());
  }
  for (int i = 0; i < n; ++i) require_number(out[i * stride]);
}

}  // namespace bitqwen
