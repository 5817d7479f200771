#pragma once

#include "kernels.hpp"

namespace epilogue {

// y = x weight^T + bias, all outputs, shared among threads.
void few_row_linear(const Linear& linear, int num_threads, const Kernels& kernels);

}  // namespace epilogue
