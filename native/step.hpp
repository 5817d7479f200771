// A whole model's pass over a few new tokens of each of some texts: from token ids to logits.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "kernels.hpp"
#include "reach_decode.hpp"

namespace epilogue {

// What goes through a linear layer.
struct Rows {
    const float* x;  // [rows, in]
    float* y;        // [rows, out]
    std::int64_t num_rows;
    bool is_added;   // to what y holds
};

// A linear layer of any kind: what it holds, and who multiplies by it. A kind is two functions and what `data` is to
// them; whoever made the step keeps it alive.
struct Weights {
    // The rows as `run` takes them; they stay where they are until the thread's next call.
    const void* (*arrange)(const Weights& weights, const Rows& rows, const Kernels& kernels);
    void (*run)(const Weights& weights, const void* arranged, const Rows& rows, std::int64_t first, std::int64_t stop,
                const Kernels& kernels);
    const void* data;
    const float* bias;  // [out] or null
    std::int64_t in, out;
};

// Weights as plain numbers [out, in].
Weights plain_weights(const void* numbers, Numbers kind, const float* bias, std::int64_t in, std::int64_t out);

// Weights as codes.
Weights quant_weights(const QuantWeight& weight);

struct Block {
    Norm norm_1, norm_2;
    Norm q_norm, k_norm;  // of width 0 if there are none, of head_dim if every head has its own
    Weights qkv, out_proj, up_proj, down_proj;
};

// An MPT: epilogue.model.mpt. The blocks' order is that of its layers.
struct Model {
    int width, num_heads, num_kv_heads, head_dim;
    float clip;                         // of the fused projection; infinite if there is none
    double scale;                       // on q.k
    float logit_factor;
    const float *tokens, *positions;    // embeddings [vocab, width] and [positions, width] or null
    const float* slopes;                // [heads]
    std::vector<Block> blocks;
    Norm last;
    Weights head;
    std::deque<QuantWeight> quantised;  // what Weights point at
};

// Columns of a page table: [layers, heads, pages], a layer's and a head's rows so far apart.
template <class T>
struct Columns {
    T* data;
    std::int64_t layer_stride, head_stride;
    T* of(int layer) const { return data == nullptr ? nullptr : data + layer * layer_stride; }
};

// New tokens of one text, and where its older ones are.
struct Text {
    Columns<std::int64_t> ids;    // of the key heads' pages
    Columns<float> norms, scores; // of the key heads' and of the heads'
    std::int64_t num_older;
    int num_tokens;
    std::int64_t* first_pages;    // [heads] out: the first page that each head looked at, summed over layers
    double* omitted_mass;         // out: the largest share of a probability that was left out
};

struct Step {
    const std::int64_t* ids;  // of the new tokens, one text's after the other's
    std::vector<Text> texts;
    Pool keys, values;
    Bounds bounds;            // of layer 0; scores are the texts'
    double epsilon;
    float *x, *logits;        // out: [rows, width], the last norm's; [rows, vocab]
    int num_threads;
};

// False, and nothing is changed, if a page to be written is not in the pool.
bool run_step(const Model& model, const Step& step, const Kernels& kernels);

}  // namespace epilogue
