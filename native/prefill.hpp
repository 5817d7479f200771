#pragma once

#include "kernels.hpp"

namespace epilogue {

// Numbers of one kind, [B, T, H, D] with a number next to the other in D; strides are in floats.
template <class Float>
struct Heads {
    Float* data;
    std::int64_t batch, token, head;
    Float* at(std::int64_t b, std::int64_t t, std::int64_t h) const { return data + b * batch + t * token + h * head; }
};

// What epilogue.kernels.attention takes.
struct Prefill {
    Heads<const float> q, k, v;          // k and v without data: they are in pools
    Heads<float> out;
    Pool keys, values;
    const std::int64_t* pages;           // [num_kv_heads, pages_stride]: Queries::pages; no page is there if it is -1
    std::int64_t pages_stride;
    const float* slopes;                 // [H]
    const std::int64_t* first_key;       // [H, tiles], or null
    const std::int64_t* document_start;  // [B, T], or null
    std::int64_t batch, num_queries, num_keys, num_heads, num_kv_heads, tile_tokens;
    int head_dim;
    float scale;
    int num_threads;
};

void prefill(const Prefill& p, const Kernels& kernels);

}  // namespace epilogue
