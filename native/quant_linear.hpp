#pragma once

#include "kernels.hpp"

namespace epilogue {

// Rows [rows, in] as `kernels.quant_linear` wants them, valid until the thread's next call.
const void* arranged(const QuantWeight& weight, const float* x, std::int64_t rows, const Kernels& kernels);

// Outputs [first, stop) of arranged rows.
void quant_linear(const QuantWeight& weight, const QuantRows& rows, std::int64_t first, std::int64_t stop,
                  const Kernels& kernels);

// y = x weight^T + bias, all outputs, shared among threads. Any number of rows: [rows, in] to [rows, out].
// Weights are multiplied as the numbers they stand for; quant_floats.inc and quant_dots.inc say what is rounded.
void quant_linear(const QuantWeight& weight, const float* x, std::int64_t rows, float* y, int num_threads,
                  const Kernels& kernels);

// Outputs [first, stop) of the weight as floats, [stop - first, in], in the order in which inputs are stored.
void dequantise(const QuantWeight& weight, std::int64_t first, std::int64_t stop, float* to, int num_threads,
                const Kernels& kernels);

}  // namespace epilogue
