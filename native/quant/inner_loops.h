// The loops that quantising spends its time in; compiled once for each instruction set, and the same results
// from each.
#pragma once

#include "quant/codebook_block.h"
#include "quant/codebook_sweep_rows.h"
#include "quant/row_encoder.h"

namespace bitqwen {

struct InnerLoops {
  RowEncoder encode_row;
  FitBlock fit_block;
  PairRows pair_rows;
};

extern const InnerLoops kBaselineLoops;
extern const InnerLoops kAvx2Loops;
extern const InnerLoops kAvx512Loops;

/// Those for the live instruction set.
const InnerLoops& current_loops();

}  // namespace bitqwen
