#pragma once

#include "kernels.hpp"
#include "team.hpp"

namespace epilogue {

// Shares the outputs of a linear layer out among threads, in pieces of whole vectors: calls work(first, stop).
template <class Work>
void share_outputs(std::int64_t out, int num_threads, const Work& work) {
    constexpr std::int64_t kPiecesPerThread = 4, kTogether = 16;
    const std::int64_t even = out / (kPiecesPerThread * num_threads) / kTogether * kTogether;
    const std::int64_t piece = even > kTogether ? even : kTogether;
    share((out + piece - 1) / piece, num_threads, [&](std::int64_t i) {
        work(i * piece, (i + 1) * piece < out ? (i + 1) * piece : out);
    });
}

// y = x weight^T + bias, all outputs, shared among threads.
void few_row_linear(const Linear& linear, int num_threads, const Kernels& kernels);

}  // namespace epilogue
