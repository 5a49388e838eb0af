// Logits of which the caller looks at a few: a pass over the coarse rows, then the rows that can matter.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>

#include "model/finite.h"
#include "model/model.h"
#include "model/scratch.h"

namespace bitqwen {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

/// The highest of value(0) to value(count - 1), up to kRowBlock, in lanes that become a register.
template <class Value>
float highest(int64_t count, Value value) {
  if (count < kRowBlock) {
    float most = kNone;
    for (int64_t r = 0; r < count; ++r) most = std::max(most, value(r));
    return most;
  }
  std::array<float, 4> lanes;
  lanes.fill(kNone);
  for (int64_t r = 0; r < kRowBlock; r += 4) {
    for (int64_t lane = 0; lane < 4; ++lane) {
      const float x = value(r + lane);
      lanes[lane] = x > lanes[lane] ? x : lanes[lane];
    }
  }
  return std::max(std::max(lanes[0], lanes[1]), std::max(lanes[2], lanes[3]));
}

/// The `want` rows that look highest, the earlier of equal ones; those that are lowered are passed over.
class Best {
 public:
  Best(const float* coarse, std::span<const int32_t> lowered, size_t want, std::vector<int64_t>& heap)
      : coarse_(coarse), lowered_(lowered), want_(want), heap_(heap) {}

  // The lowest is on top.
  auto order() const {
    return [this](int64_t a, int64_t b) { return looks_higher(a, b); };
  }

  void look_at(int64_t row) {
    if (full() && !looks_higher(row, heap_.front())) return;
    if (std::ranges::binary_search(lowered_, row)) return;
    if (full()) {
      std::pop_heap(heap_.begin(), heap_.end(), order());
      heap_.pop_back();
    }
    heap_.push_back(row);
    std::push_heap(heap_.begin(), heap_.end(), order());
  }
  void look_at_block(int64_t begin, int64_t end) {
    if (full() &&
        highest(end - begin, [&](int64_t r) { return coarse_[begin + r]; }) < coarse_[heap_.front()]) {
      return;
    }
    for (int64_t row = begin; row < end; ++row) look_at(row);
  }

 private:
  bool full() const { return heap_.size() == want_; }
  bool looks_higher(int64_t a, int64_t b) const {
    return coarse_[a] != coarse_[b] ? coarse_[a] > coarse_[b] : a < b;
  }
  const float* coarse_;
  std::span<const int32_t> lowered_;
  size_t want_;
  std::vector<int64_t>& heap_;
};

/// What a logit must reach, if `known` are some of those that count: none of the needed ones is lower.
float threshold_of(const Screen& screen, std::vector<float>& known) {
  if (known.empty()) return kNone;
  float threshold = kNone;
  const auto top = static_cast<size_t>(screen.top);
  if (screen.margin >= 0.0f) threshold = *std::ranges::max_element(known) - screen.margin;
  if (top > 0 && known.size() >= top) {
    std::nth_element(known.begin(), known.begin() + (top - 1), known.end(), std::greater<>());
    threshold = std::max(threshold, known[top - 1]);
  }
  return threshold;
}

struct Screening {
  const Screen* screen;
  int64_t rows;  // that count; padding is behind them
  size_t want;   // of the best-looking rows
  float reach;   // what a row of spread 1 may be higher than it looks
  float threshold;
  std::vector<int32_t> lowered;  // in order
};

}  // namespace

void Model::screened_logits(std::span<const Row> rows, float* out) {
  const Config& c = config_;
  Scratch& s = *scratch_;
  const PackedMatrix& weights = output_ ? *output_ : *embedding_;
  const PackedMatrix& coarse_rows = screen_->rows();
  const std::span<const float> spreads = screen_->spreads();
  const int n = static_cast<int>(s.wanted.size());
  const int64_t vocabulary = c.vocab_size;
  ActivationBatch& exact = activations(weights);
  exact.start(n, c.hidden, weights.activation_group(), preferred_tile(weights, n));
  exact.make_tables(weights);
  s.screened->start(n, c.hidden, coarse_rows.activation_group(), preferred_tile(coarse_rows, n));
  std::array<Screening, kScreenedRows> screenings;
  int64_t most_rows = 0;
  for (int i = 0; i < n; ++i) {
    float* x = s.threads[0].row.data();
    output_state(s.wanted[i], x);
    // Coarse rows are made of the rows as they are stored.
    if (weights.rotated()) current_ops().hadamard(x, rotation_signs_.data(), c.hidden, x);
    exact.set(i, x);
    screen_->rotate(x);
    s.screened->set(i, x);
    float squares = 0.0f;
    for (int64_t k = 0; k < c.hidden; ++k) squares += x[k] * x[k];
    const Screen& screen = rows[s.wanted[i]].screen;
    Screening& own = screenings[i];
    own.screen = &screen;
    own.rows = screen.rows > 0 ? screen.rows : vocabulary;
    // Twice as many as are needed: nearly always the needed ones are among them.
    own.want = static_cast<size_t>(std::min(2 * std::max<int64_t>(screen.top, 1), own.rows));
    own.reach = ScreenedHead::deviations(screen.top > 0 ? screen.top : own.rows) * std::sqrt(squares);
    own.lowered.assign(screen.lowered.begin(), screen.lowered.end());
    std::ranges::sort(own.lowered);
    most_rows = std::max(most_rows, own.rows);
    for (Scratch::Thread& thread : s.threads) thread.best[i].clear();
  }
  profile_.add(Operation::kOutputNorm, 0);

  const auto coarse = [&](int i) { return s.coarse.data() + i * vocabulary; };
  const auto block_end = [](int64_t block, int64_t end) { return std::min((block + 1) * kRowBlock, end); };
  const int64_t blocks = (vocabulary + kRowBlock - 1) / kRowBlock;
  const int64_t real_blocks = (most_rows + kRowBlock - 1) / kRowBlock;
  pool_.parallel_for(real_blocks, preferred_rows(coarse_rows, n) / kRowBlock,
                     [&](int64_t begin, int64_t end, int thread) {
                       bitqwen::multiply(coarse_rows, *s.screened, s.coarse.data(), vocabulary,
                                         begin * kRowBlock, block_end(end - 1, vocabulary));
                       for (int i = 0; i < n; ++i) {
                         const Screening& own = screenings[i];
                         Best best(coarse(i), own.lowered, own.want, s.threads[thread].best[i]);
                         for (int64_t block = begin; block < end && block * kRowBlock < own.rows; ++block) {
                           best.look_at_block(block * kRowBlock, block_end(block, own.rows));
                         }
                       }
                     });

  // The best of all threads, and the row blocks that they lie in: computed once, whoever asks for them.
  std::vector<uint8_t>& computed = s.computed;
  computed.assign(static_cast<size_t>(blocks), 0);
  std::vector<int64_t> first;
  for (int i = 0; i < n; ++i) {
    const Screening& own = screenings[i];
    std::vector<int64_t>& heap = s.threads[0].best[i];
    Best best(coarse(i), own.lowered, own.want, heap);
    for (size_t thread = 1; thread < s.threads.size(); ++thread) {
      for (const int64_t row : s.threads[thread].best[i]) best.look_at(row);
    }
    for (const int64_t row : heap) {
      uint8_t& done = computed[static_cast<size_t>(row / kRowBlock)];
      if (!done) first.push_back(row / kRowBlock);
      done = 1;
    }
  }
  const auto compute = [&](int64_t block) {
    bitqwen::multiply(weights, exact, out, vocabulary, block * kRowBlock, block_end(block, vocabulary));
  };
  pool_.parallel_for(static_cast<int64_t>(first.size()), 2, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) compute(first[i]);
  });
  for (int i = 0; i < n; ++i) {
    std::vector<float> known;
    for (const int64_t row : s.threads[0].best[i]) {
      known.push_back(out[i * vocabulary + row]);
      require_number(known.back());
    }
    screenings[i].threshold = threshold_of(*screenings[i].screen, known);
  }

  std::atomic<int64_t> count{static_cast<int64_t>(first.size())};
  pool_.parallel_for(blocks, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      std::array<int64_t, kScreenedRows> kept;  // rows of the block, those behind are not looked at
      bool any = false;
      for (int i = 0; i < n; ++i) {
        const Screening& own = screenings[i];
        const int64_t row = block * kRowBlock;
        const int64_t real = std::max<int64_t>(block_end(block, own.rows) - row, 0);
        const float* looks = coarse(i) + row;
        const float most = highest(real, [&](int64_t r) { return looks[r] + own.reach * spreads[row + r]; });
        kept[i] = most < own.threshold ? 0 : real;
        any |= kept[i] > 0;
      }
      if (any && !computed[static_cast<size_t>(block)]) {
        compute(block);
        count.fetch_add(1, std::memory_order_relaxed);
      }
      // Whatever else is in the step, a row's result is the same.
      for (int i = 0; i < n; ++i) {
        float* logits = out + i * vocabulary;
        std::fill(logits + block * kRowBlock + kept[i], logits + block_end(block, vocabulary), kNone);
      }
    }
  });
  profile_.add(Operation::kScreen,
               real_blocks * (screen_->bytes() / blocks) + count * (weights.bytes() / blocks));
}

}  // namespace bitqwen
