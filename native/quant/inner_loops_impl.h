// Included by one file for each instruction set.
#pragma once

#include "quant/codebook_block_impl.h"
#include "quant/codebook_sweep_rows_impl.h"
#include "quant/inner_loops.h"
#include "quant/row_encoder_impl.h"

namespace bitqwen {
namespace {

constexpr InnerLoops kLoops = {encode_row, fit_block, {feedback_row, descend_row}};

}  // namespace
}  // namespace bitqwen
