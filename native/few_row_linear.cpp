// A linear layer of few rows reads its weights once and does little else: the cores share the weights, not the rows.
#include "few_row_linear.hpp"

namespace epilogue {

void few_row_linear(const Linear& linear, int num_threads, const Kernels& kernels) {
    share_outputs(linear.out, num_threads,
                  [&](std::int64_t first, std::int64_t stop) { kernels.linear(linear, first, stop); });
}

}  // namespace epilogue
