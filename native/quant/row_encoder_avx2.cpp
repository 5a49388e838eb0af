#include "quant/row_encoder_impl.h"

namespace bitqwen {

void encode_row_avx2(gguf::TensorType type, Fit fit, const RowTask& row) { encode_row(type, fit, row); }

}  // namespace bitqwen
