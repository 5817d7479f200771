// Rows are put in the order in which codes leave their words, once; then the cores share the outputs. Codes are used
// where they lie: kernels/quant_linear/packing.py says how.
#include "quant_linear.hpp"

#include <algorithm>
#include <vector>

#include "team.hpp"

namespace epilogue {
namespace {

constexpr std::int64_t kChunksPerThread = 8;

}  // namespace

void quant_linear(const QuantWeight& weight, const float* x, std::int64_t rows, float* y, int num_threads,
                  const Kernels& kernels) {
    thread_local std::vector<float> arranged;
    const std::int64_t row_floats = arranged_floats(weight);
    arranged.resize(std::size_t(rows * row_floats));
    float* const to = arranged.data();
    for (std::int64_t row = 0; row < rows; ++row) kernels.arrange(weight, x + row * weight.in, to + row * row_floats);

    const std::int64_t even = weight.out / (kChunksPerThread * num_threads) / kQuantOutputsTogether * kQuantOutputsTogether;
    const std::int64_t chunk = std::max<std::int64_t>(even, kQuantOutputsTogether);
    const std::int64_t count = (weight.out + chunk - 1) / chunk;
    const QuantRows arranged_rows{to, y, rows};
    share(count, num_threads, [&](std::int64_t i) {
        thread_local std::vector<float> buffer;
        buffer.resize(std::size_t(kQuantOutputsTogether * 2 * (weight.groups + kMostLanes)));
        kernels.quant_linear(weight, arranged_rows, i * chunk, std::min((i + 1) * chunk, weight.out), buffer.data());
    });
}

void dequantise(const QuantWeight& weight, std::int64_t first, std::int64_t stop, float* to, int num_threads,
                const Kernels& kernels) {
    const std::int64_t chunk = std::max<std::int64_t>((stop - first) / (kChunksPerThread * num_threads), 1);
    share((stop - first + chunk - 1) / chunk, num_threads, [&](std::int64_t i) {
        thread_local std::vector<float> buffer;
        buffer.resize(std::size_t(weight.groups + kMostLanes));
        const std::int64_t end = std::min(first + (i + 1) * chunk, stop);
        for (std::int64_t output = first + i * chunk; output < end; ++output)
            kernels.widen_output(weight, output, to + (output - first) * weight.in, buffer.data());
    });
}

}  // namespace epilogue
