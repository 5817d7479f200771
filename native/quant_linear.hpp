#pragma once

#include "kernels.hpp"

namespace epilogue {

// y = x weight^T + bias, all outputs, shared among threads. Any number of rows: [rows, in] to [rows, out].
// Weights are multiplied as the numbers they stand for, in fp32; nothing is rounded but products and sums.
void quant_linear(const QuantWeight& weight, const float* x, std::int64_t rows, float* y, int num_threads,
                  const Kernels& kernels);

// Outputs [first, stop) of the weight as floats, [stop - first, in], in the order in which inputs are stored.
void dequantise(const QuantWeight& weight, std::int64_t first, std::int64_t stop, float* to, int num_threads,
                const Kernels& kernels);

}  // namespace epilogue
