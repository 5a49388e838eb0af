#pragma once

#include <nanobind/nanobind.h>

namespace bitqwen {

void bind_gguf(nanobind::module_& m);
void bind_codebook(nanobind::module_& m);
void bind_quant(nanobind::module_& m);
void bind_engine(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);
void bind_measure(nanobind::module_& m);
void bind_tuning(nanobind::module_& m);

}  // namespace bitqwen
