// A linear layer of few rows reads its weights once and does little else: the cores share the weights, not the rows.
#include "few_row_linear.hpp"

#include <algorithm>

#include "team.hpp"

namespace epilogue {
namespace {

constexpr std::int64_t kChunksPerThread = 4;
constexpr std::int64_t kOutputsTogether = 4;

}  // namespace

void few_row_linear(const Linear& linear, int num_threads, const Kernels& kernels) {
    const std::int64_t even = linear.out / (kChunksPerThread * num_threads) / kOutputsTogether * kOutputsTogether;
    const std::int64_t chunk = std::max(even, kOutputsTogether);
    const std::int64_t count = (linear.out + chunk - 1) / chunk;
    share(count, num_threads, [&](std::int64_t i) {
        kernels.linear(linear, i * chunk, std::min((i + 1) * chunk, linear.out));
    });
}

}  // namespace epilogue
