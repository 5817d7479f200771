// Decode of one layer of one sequence: what is stored, what is planned, and both with the attention over it.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace epilogue {

// storage.cpp -------------------------------------------------------------------------------------------------------

// x turned in place by the Hadamard matrix that `rotate` turns by: symmetric, orthonormal, its own inverse.
void rotate(float* x, int width);

// Quantises one token into a page, and says what was stored: in the basis it came in, and its norm.
void store(const Pool& pool, std::int64_t id, int place, const float* x, int width, float* stored, double* norm);

// plan.cpp ----------------------------------------------------------------------------------------------------------

// What a head's queries may leave out: epilogue.model.reach.plan_reach for one tile.
struct Plan {
    std::int64_t first_page;
    double omitted_mass;
};

struct PlanInput {
    const float* q;             // [tokens] rows of the head, `q_stride` apart
    std::int64_t q_stride;
    const float* stored;        // [tokens, head_dim]: their own keys
    int num_tokens, head_dim;
    const float* norms;         // [pages] of the key head, the newest included
    std::int64_t num_pages, num_older;  // pages; tokens before the first query
    double slope, scale, epsilon;
};

Plan plan(const PlanInput& input);

// reach_decode.cpp --------------------------------------------------------------------------------------------------

// What bounds every query that may come, of one layer: epilogue.model.eviction.EvictionBounds. `root` may be null.
struct Bounds {
    const float *root, *offset, *error;  // [heads, D, D], [heads, D], [heads]
    float clip;
    float* scores;  // [heads] rows of the table, `scores_stride` apart
    std::int64_t scores_stride;
};

struct Decode {
    const float *q, *k, *v;  // [tokens, heads, D] and [tokens, kv_heads, D]: tokens are a stride apart, the rest is dense
    std::int64_t q_stride, k_stride, v_stride;
    Pool keys, values;
    const std::int64_t* ids;  // [kv_heads] rows of the table
    std::int64_t ids_stride;
    float* norms;             // [kv_heads] rows of the table
    std::int64_t norms_stride;
    const float* slopes;
    Bounds bounds;
    std::int64_t num_older;   // tokens before the new ones
    int num_tokens, num_heads, num_kv_heads, head_dim;
    double scale, epsilon;
    float* out;               // [tokens, heads, D]
    std::int64_t* first_page; // [heads]
    double* omitted_mass;     // [heads]
    int num_threads;
};

// Whether the pages to be written are in the pool.
bool can_write(const Decode& decode);

// For what can be written. Pages to be read are taken on trust.
void reach_decode(const Decode& decode, const Kernels& kernels);

}  // namespace epilogue
