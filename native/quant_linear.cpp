// Rows are put in the order in which codes leave their words, once; then the cores share the outputs. Codes are used
// where they lie: kernels/quant_linear/packing.py says how.
#include "quant_linear.hpp"

#include <algorithm>
#include <vector>

#include "few_row_linear.hpp"
#include "team.hpp"

namespace epilogue {
namespace {

constexpr std::int64_t kChunksPerThread = 8;

}  // namespace

const void* arranged(const QuantWeight& weight, const float* x, std::int64_t rows, const Kernels& kernels) {
    thread_local std::vector<std::uint8_t> room;
    const std::int64_t row_bytes = kernels.arranged_bytes(weight);
    room.resize(std::size_t(rows * row_bytes));
    for (std::int64_t row = 0; row < rows; ++row)
        kernels.arrange(weight, x + row * weight.in, room.data() + row * row_bytes);
    return room.data();
}

void quant_linear(const QuantWeight& weight, const QuantRows& rows, std::int64_t first, std::int64_t stop,
                  const Kernels& kernels) {
    thread_local std::vector<float> buffer;
    buffer.resize(std::size_t(kQuantOutputsTogether * 2 * (weight.groups + kMostLanes)));
    kernels.quant_linear(weight, rows, first, stop, buffer.data());
}

void quant_linear(const QuantWeight& weight, const float* x, std::int64_t rows, float* y, int num_threads,
                  const Kernels& kernels) {
    const QuantRows arranged_rows{arranged(weight, x, rows, kernels), y, rows, false};
    share_outputs(weight.out, num_threads, [&](std::int64_t first, std::int64_t stop) {
        quant_linear(weight, arranged_rows, first, stop, kernels);
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
