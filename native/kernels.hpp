// What is compiled once for every instruction set, and the table that tells one from another.
#pragma once

#include <cstdint>

namespace epilogue {

constexpr int kPageTokens = 128;

enum class Storage : int { float32 = 0, bfloat16 = 1, int8 = 2, int4 = 3 };

// A pool of pages of one kind, keys or values: epilogue.kernels.paged_attention.PageTensors.
struct Pool {
    std::uint8_t* data;
    float* scale;  // of int8 and int4, else null
    float* zero;   // of int4, else null
    std::int64_t num_pages;
    Storage storage;
};

// Query rows that share a key head, and what they look at: pages [first, stop) of its row of the table.
struct Stretch {
    Pool keys, values;
    const std::int64_t* ids;  // -1: not there
    std::int64_t first, stop;
    std::int64_t num_keys;
    int head_dim, num_rows;
    const float* q;             // [rows, head_dim]: times the scale, and rotated where keys are
    const float* slopes;        // [rows]
    const std::int64_t* own;    // [rows]: position of the query; it sees no key behind it
    const std::int64_t* begin;  // [rows]: first page that the row looks at
    float* largest;             // [rows] out: largest score, -inf where nothing was seen
    float* sum;                 // [rows] out: of exp(score - largest)
    float* average;             // [rows, head_dim] out: values under those weights, in the values' basis
    float* buffer;              // [kPageTokens * head_dim] to work in
};

// What weights are kept as. A float16 is finite.
enum class Numbers : int { float32 = 0, bfloat16 = 1, float16 = 2 };

struct Linear {
    const float* x;      // [rows, in]
    const void* weight;  // [out, in]
    const float* bias;   // [out] or null
    float* y;            // [rows, out]
    std::int64_t num_rows, in, out;
    Numbers numbers;
    bool is_added;       // to what y holds
};

// LayerNorm, or the norm over the root mean square, of `width` numbers.
struct Norm {
    const float *weight, *bias;  // bias may be null
    int width;
    float eps;
    bool is_rms;
};

// A quantised weight [out, in] as kernels/quant_linear/packing.py lays it out: scale * (code - zero point).
struct QuantWeight {
    const std::uint8_t* codes;  // [out, in * bits / 8]
    const void* scales;         // [out, groups]
    const std::int16_t* zeros;  // [out, groups]
    const std::int32_t* order;  // [in]: stored input i is input order[i] of the layer; null for the same order
    const float* bias;          // [out] or null
    std::int64_t in, out, groups, group_size;
    int bits;                   // 4 or 8
    int scale_kind;             // 0: float32, 1: float16, 2: bfloat16
};

// Codes are read in units of so many 32-bit words; a group is a power of two of words of a unit, or whole units, or all.
constexpr int kUnitWords = 16;
constexpr int kQuantOutputsTogether = 4;
constexpr int kMostLanes = 16;

inline int codes_per_word(const QuantWeight& w) { return 32 / w.bits; }
inline std::int64_t num_units(const QuantWeight& w) {
    const int codes = kUnitWords * codes_per_word(w);
    return (w.in + codes - 1) / codes;
}
// Rows as `Kernels.arrange` puts them, arranged_bytes(weight) apart.
struct QuantRows {
    const void* x;
    float* y;        // [rows, out]
    std::int64_t num_rows;
    bool is_added;   // to what y holds
};

// Neighbouring queries of one head, fp32, and what they see; strides are in floats, from one token to the next.
struct Queries {
    const float *q, *k, *v;           // keys and values one after the other, or null: in pools
    float* out;
    std::int64_t q_stride, k_stride, v_stride, out_stride;
    const Pool *keys, *values;
    const std::int64_t* pages;        // of each page its place in the pools
    std::int64_t count;
    std::int64_t position;            // of the first query: it sees no key behind its own position
    const std::int64_t* first_key;    // [count]: the oldest key that each sees, at most its own position
    int head_dim;
    float slope, scale;
    float* buffer;                    // prefill_floats(count, head_dim) to work in, on a cache line
    float* page_room;                 // [2 * kPageTokens * head_dim]: a page's keys and its values where they are codes
};

struct Kernels {
    const char* name;
    float (*dot)(const float* a, const float* b, int n);
    std::int64_t (*prefill_floats)(std::int64_t count, int head_dim);
    void (*prefill)(const Queries& queries);
    void (*attend)(const Stretch& stretch);
    void (*linear)(const Linear& linear, std::int64_t first, std::int64_t stop);  // outputs [first, stop)
    void (*norm)(const Norm& norm, const float* x, float* y);  // of one row
    void (*clamp)(float* x, std::int64_t n, float most);       // to -most..most; a NaN stays
    void (*gelu)(float* x, std::int64_t n);                    // the exact one, x Phi(x)
    // One row of [in] for `quant_linear`, which computes outputs [first, stop) of all rows. The buffer holds
    // kQuantOutputsTogether * 2 * (groups + kMostLanes) floats.
    std::int64_t (*arranged_bytes)(const QuantWeight& weight);
    void (*arrange)(const QuantWeight& weight, const float* x, void* to);
    void (*quant_linear)(const QuantWeight& weight, const QuantRows& rows, std::int64_t first, std::int64_t stop,
                         float* buffer);
    // The weights of one output, [in], in the order in which they are stored.
    void (*widen_output)(const QuantWeight& weight, std::int64_t output, float* to, float* buffer);
};

extern const Kernels kernels_portable;
#ifdef EPILOGUE_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avxvnni;  // avx2 with products of bytes for quantised weights
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512vnni;
#ifdef EPILOGUE_AMX
extern const Kernels kernels_amx;  // avx512vnni with tiles of bf16 numbers for many queries
#endif
#endif

// The best that this processor has, or the one named; null if it has none of that name.
const Kernels* choose_kernels(const char* name);

}  // namespace epilogue
