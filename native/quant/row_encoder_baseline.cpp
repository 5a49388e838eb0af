#include "quant/row_encoder_impl.h"

namespace bitqwen {

void encode_row_baseline(gguf::TensorType type, Fit fit, const RowTask& row) { encode_row(type, fit, row); }

}  // namespace bitqwen
