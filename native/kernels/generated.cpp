#include "kernels/generated.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>

#include "errors.h"
#include "kernels/activations.h"
#include "kernels/table.h"
#include "weights/decode.h"

namespace bitqwen {
namespace {

constexpr int32_t kInterface = 2;
constexpr int32_t kMostKernels = 64;
constexpr int64_t kMostTileRows = 4096;
constexpr int64_t kMostCols = int64_t{1} << 20;
constexpr int kProofs = 3;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error(ErrorKind::kUnsupported, path + ": " + why,
              "bitqwen kernels tune compiles and measures generated kernels again");
}

template <class Function>
Function symbol(void* handle, const std::string& path, const char* name) {
  void* found = dlsym(handle, name);
  if (!found) {
    throw Error(ErrorKind::kFile, path + " is no library of generated kernels: it has no " + name);
  }
  return reinterpret_cast<Function>(found);
}

// The format whose scales have these columns: TQ1_0 and TQ2_0, or Q2_0 without its fourth level.
bool takes(const GeneratedKernel& kernel, Format format) {
  if (format != Format::kTernary && format != Format::kTernary5 && format != Format::kQ2_0) return false;
  const FormatInfo& info = format_info(format);
  return kernel.cell == info.cell && kernel.unit == info.unit;
}

// Rows [begin, begin + rows) of w as levels [rows][cols] and scales [rows][units]; false where a level is
// not ternary. Rows beyond the last one are zero.
bool open_rows(const PackedMatrix::Layout& w, int64_t begin, int64_t rows, int8_t* levels, uint16_t* scales) {
  const FormatInfo& info = w.info();
  bool ternary = true;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = begin + r;
    int8_t* out = levels + r * w.cols;
    if (row >= w.rows) {
      std::memset(out, 0, w.cols);
      std::memset(scales + r * w.units, 0, w.units * sizeof *scales);
      continue;
    }
    const int in_block = static_cast<int>(row % kRowBlock);
    for (int64_t u = 0; u < w.units; ++u) {
      const uint8_t* unit = w.unit(row / kRowBlock, u);
      scales[r * w.units + u] = load_u16(unit + 2 * in_block);
      for (int column = 0; column < info.unit; ++column) {
        const int code = packed_code(info, unit, in_block, column);
        ternary = ternary && code != 3;
        *out++ = static_cast<int8_t>(code - 1);
      }
    }
  }
  return ternary;
}

// A packed matrix of random ternary weights, without a file.
void fill_at_random(PackedMatrix::Layout& w, uint32_t& state) {
  const auto next = [&state] { return (state = state * 1664525u + 1013904223u) >> 16; };
  const FormatInfo& info = w.info();
  for (int64_t block = 0; block < w.rows / kRowBlock; ++block) {
    uint8_t* unit = w.buffer.data() + block * w.block_bytes;
    for (int64_t u = 0; u < w.units; ++u, unit += info.unit_bytes()) {
      for (int r = 0; r < kRowBlock; ++r) {  // a half of moderate size and any sign
        const auto half = static_cast<uint16_t>((next() & 0x83ff) | (7 + next() % 7) << 10);
        std::memcpy(unit + 2 * r, &half, 2);
      }
      for (int i = info.header_bytes(); i < info.unit_bytes(); ++i) {
        const uint32_t trits = next() % 81;
        unit[i] = static_cast<uint8_t>(trits % 3 | trits / 3 % 3 << 2 | trits / 9 % 3 << 4 | trits / 27 << 6);
      }
    }
  }
}

// Whether a kernel gives the scalar kernels' bits for a tile: of usual activations, of the largest ones
// that there are, and of ones that are mostly zero.
bool is_exact(const std::shared_ptr<const GeneratedLibrary>& library, const GeneratedKernel& kernel) {
  const Format format = kernel.unit == format_info(Format::kTernary).unit ? Format::kTernary : Format::kQ2_0;
  uint32_t state = 1;
  PackedMatrix w = PackedMatrix::blank(format, std::min(kernel.rows, kernel.tile_rows), kernel.cols);
  PackedMatrix::Layout& layout = w.layout();
  fill_at_random(layout, state);
  ThreadPool pool(1);
  auto weights = std::make_shared<GeneratedWeights>();
  weights->library = library;
  weights->kernel = &kernel;
  weights->tiles = PackedBuffer(kernel.tile_bytes);
  std::vector<int8_t> levels(static_cast<size_t>(kernel.tile_rows * kernel.cols));
  std::vector<uint16_t> scales(static_cast<size_t>(kernel.tile_rows * layout.units));
  open_rows(layout, 0, kernel.tile_rows, levels.data(), scales.data());
  kernel.pack_tile(kernel.index, levels.data(), scales.data(), weights->tiles.data());
  layout.generated = weights;
  layout.choices[0] = {&scalar_kernels(), 0, 0, true};
  std::vector<float> x(static_cast<size_t>(kernel.cols));
  std::vector<float> expected(static_cast<size_t>(layout.rows)), y(expected.size());
  ActivationBatch batch(1, kernel.cols);
  for (int proof = 0; proof < kProofs; ++proof) {
    for (float& value : x) {
      state = state * 1664525u + 1013904223u;
      const auto wide = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
      value = proof == 0 ? wide : proof == 1 ? (state >> 31 ? 1.0f : -1.0f) : state >> 26 ? 0.0f : wide;
    }
    batch.start(1, kernel.cols, w.activation_group());
    batch.make_tables(w);
    batch.set(0, x.data());
    scalar_kernels().multiply[static_cast<size_t>(format)](layout, batch.layout(), expected.data(),
                                                           layout.rows, 0, layout.rows);
    multiply_generated(layout, batch.layout(), y.data(), layout.rows, 0, layout.rows);
    if (std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace

GeneratedLibrary::GeneratedLibrary(const std::string& path) {
  handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle_) {
    const char* reason = dlerror();
    throw Error(ErrorKind::kFile,
                path + " is no library of generated kernels: " + (reason ? reason : "it cannot be loaded"));
  }
  try {
    const auto interface = symbol<int32_t (*)()>(handle_, path, "bitqwen_lut_abi")();
    if (interface != kInterface) {
      refuse(path, "it has interface " + std::to_string(interface) + "; this version needs " +
                       std::to_string(kInterface));
    }
    const std::string needs = symbol<const char* (*)()>(handle_, path, "bitqwen_lut_needs")();
    const std::vector<Isa> usable = usable_isas();
    if (std::none_of(usable.begin(), usable.end(), [&](Isa isa) { return isa_name(isa) == needs; })) {
      refuse(path, "its kernels need " + needs.substr(0, 40) + ", which this CPU does not have");
    }
    const auto count = symbol<int32_t (*)()>(handle_, path, "bitqwen_lut_count")();
    const auto describe = symbol<int32_t (*)(int32_t, int64_t*)>(handle_, path, "bitqwen_lut_describe");
    const auto pack = symbol<decltype(GeneratedKernel::pack_tile)>(handle_, path, "bitqwen_lut_pack_tile");
    const auto prepare = symbol<decltype(GeneratedKernel::prepare)>(handle_, path, "bitqwen_lut_prepare");
    const auto multiply =
        symbol<decltype(GeneratedKernel::multiply_tile)>(handle_, path, "bitqwen_lut_multiply_tile");
    if (count < 1 || count > kMostKernels) refuse(path, "it has " + std::to_string(count) + " kernels");
    for (int32_t i = 0; i < count; ++i) {
      int64_t f[9] = {};
      describe(i, f);
      const GeneratedKernel kernel{i,    f[0], f[1], f[2], f[3],    f[4],    f[5],
                                   f[6], f[7], f[8], pack, prepare, multiply};
      const bool known = takes(kernel, Format::kTernary) || takes(kernel, Format::kQ2_0);
      if (!known || kernel.tile_rows < 1 || kernel.tile_rows > kMostTileRows || kernel.lanes < kRowBlock ||
          kernel.lanes % kRowBlock != 0 || kernel.tile_rows % kernel.lanes != 0 || kernel.cols < 1 ||
          kernel.cols > kMostCols || kernel.cols % kernel.unit != 0 || kernel.rows < 1 ||
          kernel.rows % kernel.tile_rows != 0 || kernel.tile_bytes < 1 ||
          kernel.tile_bytes > 4 * kernel.tile_rows * kernel.cols || kernel.table_bytes < 1 ||
          kernel.table_bytes > 64 * kernel.cols) {
        refuse(path, "kernel " + std::to_string(i) + " describes what cannot be");
      }
      kernels_.push_back(kernel);
    }
  } catch (...) {
    dlclose(handle_);
    throw;
  }
}

GeneratedLibrary::~GeneratedLibrary() {
  if (handle_) dlclose(handle_);
}

std::shared_ptr<const GeneratedLibrary> GeneratedLibrary::load(const std::string& path) {
  static std::mutex mutex;
  // For good: a plan is checked before its model is opened, and to prove a library twice takes longer.
  static std::map<std::string, std::shared_ptr<const GeneratedLibrary>> loaded;
  std::lock_guard lock(mutex);
  if (const auto known = loaded.find(path); known != loaded.end()) return known->second;
  const std::shared_ptr<const GeneratedLibrary> library(new GeneratedLibrary(path));
  for (const GeneratedKernel& kernel : library->kernels()) {
    if (!is_exact(library, kernel)) {
      refuse(path, "its kernel for " + std::to_string(kernel.rows) + " x " + std::to_string(kernel.cols) +
                       " does not give the scalar kernels' bits");
    }
  }
  loaded[path] = library;
  return library;
}

const GeneratedKernel* GeneratedLibrary::find(const PackedMatrix::Layout& w) const {
  for (const GeneratedKernel& kernel : kernels_) {
    if (kernel.cols == w.cols && w.rows % kernel.tile_rows == 0 && takes(kernel, w.format)) return &kernel;
  }
  return nullptr;
}

std::string use_generated(PackedMatrix& w, const std::shared_ptr<const GeneratedLibrary>& library,
                          ThreadPool& pool, ThreadPool::Part part) {
  PackedMatrix::Layout& layout = w.layout();
  if (layout.generated && layout.generated->library == library) return {};
  const GeneratedKernel* kernel = library->find(layout);
  if (!kernel) {
    return "no generated kernel is for " + std::to_string(layout.rows) + " x " + std::to_string(layout.cols);
  }
  const int64_t tiles = layout.rows / kernel->tile_rows;
  auto weights = std::make_shared<GeneratedWeights>();
  weights->library = library;
  weights->kernel = kernel;
  weights->tiles = PackedBuffer(tiles * kernel->tile_bytes, weight_pages(pool));
  std::atomic<bool> ternary{true};
  const ThreadPool::Part of_tiles{part.first / kernel->tile_rows, part.of / kernel->tile_rows};
  pool.first_touch(of_tiles, tiles, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<int8_t> levels(static_cast<size_t>(kernel->tile_rows * layout.cols));
    std::vector<uint16_t> scales(static_cast<size_t>(kernel->tile_rows * layout.units));
    for (int64_t t = begin; t < end; ++t) {
      if (!open_rows(layout, t * kernel->tile_rows, kernel->tile_rows, levels.data(), scales.data())) {
        ternary = false;
        return;
      }
      kernel->pack_tile(kernel->index, levels.data(), scales.data(),
                        weights->tiles.data() + t * kernel->tile_bytes);
    }
  });
  if (!ternary) return "its weights are not ternary";
  layout.generated = std::move(weights);
  return {};
}

int64_t generated_bytes(const PackedMatrix& w) {
  return w.layout().generated ? w.layout().generated->tiles.bytes() : 0;
}

void make_generated_tables(ActivationBatch::Layout& x, int column) {
  const int begin = x.tile_begin(column), n = x.tile_size(begin), i = column - begin;
  const GeneratedKernel& kernel = *x.generated;
  uint8_t* tables = x.tables.data() + column * x.column_bytes;
  auto* scales = reinterpret_cast<float*>(tables + (kernel.table_bytes + 63) / 64 * 64);
  for (int64_t g = 0; g < x.groups(); ++g) scales[g] = x.scales[begin * x.groups() + g * n + i];
  const int8_t* codes = x.codes + begin * x.k + 4 * i;
  std::vector<int8_t> together;  // [k], where columns are interleaved
  if (n > 1) {
    together.resize(static_cast<size_t>(x.k));
    for (int64_t k = 0; k < x.k; k += 4) std::memcpy(&together[k], codes + k * n, 4);
    codes = together.data();
  }
  kernel.prepare(kernel.index, codes, reinterpret_cast<int8_t*>(tables));
}

bool fits_tables(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x) {
  if (!w.generated || !x.generated) return false;
  // Tables depend on the family and on the columns of a scale alone.
  const GeneratedKernel &ours = *w.generated->kernel, &theirs = *x.generated;
  return ours.prepare == theirs.prepare && ours.cell == theirs.cell && ours.table_bytes == theirs.table_bytes;
}

void multiply_generated(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, float* y,
                        int64_t ldy, int64_t row_begin, int64_t row_end) {
  const GeneratedKernel& kernel = *w.generated->kernel;
  alignas(64) float out[kMostTileRows];
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t tile = row / kernel.tile_rows, first = tile * kernel.tile_rows;
    const int64_t last = std::min(first + kernel.tile_rows, row_end);
    const int64_t begin = (row - first) / kernel.lanes,
                  end = (last - first + kernel.lanes - 1) / kernel.lanes;
    for (int column = 0; column < x.columns; ++column) {
      const uint8_t* tables = x.tables.data() + column * x.column_bytes;
      const auto* scales = reinterpret_cast<const float*>(tables + (kernel.table_bytes + 63) / 64 * 64);
      kernel.multiply_tile(kernel.index, w.generated->tiles.data() + tile * kernel.tile_bytes,
                           reinterpret_cast<const int8_t*>(tables), scales, out, begin, end);
      std::memcpy(y + column * ldy + row, out + (row - first), (last - row) * sizeof(float));
    }
    row = last;
  }
}

}  // namespace bitqwen
