// One call a token: what is between the linear layers takes less than asking Python for it.
#include "step.hpp"

#include <algorithm>
#include <limits>

#include "few_row_linear.hpp"
#include "quant_linear.hpp"

namespace epilogue {
namespace {

const void* arrange_plain(const Weights&, const Rows& rows, const Kernels&) { return rows.x; }

template <Numbers kind>
void run_plain(const Weights& w, const void*, const Rows& rows, std::int64_t first, std::int64_t stop,
               const Kernels& kernels) {
    kernels.linear({rows.x, w.data, w.bias, rows.y, rows.num_rows, w.in, w.out, kind, rows.is_added}, first, stop);
}

const QuantWeight& codes_of(const Weights& w) { return *static_cast<const QuantWeight*>(w.data); }

const void* arrange_quant(const Weights& w, const Rows& rows, const Kernels& kernels) {
    return arranged(codes_of(w), rows.x, rows.num_rows, kernels);
}

void run_quant(const Weights& w, const void* arranged, const Rows& rows, std::int64_t first, std::int64_t stop,
               const Kernels& kernels) {
    quant_linear(codes_of(w), {arranged, rows.y, rows.num_rows, rows.is_added}, first, stop, kernels);
}

class Pass {
public:
    Pass(const Model& model, const Step& step, const Kernels& kernels)
        : m_(model), s_(step), kernels_(kernels), num_rows_(0) {
        for (const Text& text : s_.texts) num_rows_ += text.num_tokens;
        const Block& block = m_.blocks.front();
        x_.resize(std::size_t(num_rows_) * m_.width);
        normed_.resize(x_.size());
        gathered_.resize(x_.size());
        qkv_.resize(std::size_t(num_rows_) * block.qkv.out);
        wide_.resize(std::size_t(num_rows_) * block.up_proj.out);
        first_page_.resize(m_.num_heads);
        mass_.resize(m_.num_heads);
    }

    bool can_write() const {
        for (int layer = 0; layer < int(m_.blocks.size()); ++layer)
            for (const Text& text : s_.texts)
                if (!epilogue::can_write(decode_of(text, layer, 0))) return false;
        return true;
    }

    void run() {
        embed();
        for (const Text& text : s_.texts) {
            std::fill(text.first_pages, text.first_pages + m_.num_heads, 0);
            *text.omitted_mass = 0;
        }
        for (int layer = 0; layer < int(m_.blocks.size()); ++layer) {
            const Block& block = m_.blocks[layer];
            norm(block.norm_1, x_.data(), normed_.data());
            multiply(block.qkv, {normed_.data(), qkv_.data(), num_rows_, false});
            clamp_and_norm(block);
            attend(layer);
            multiply(block.out_proj, {gathered_.data(), x_.data(), num_rows_, true});
            norm(block.norm_2, x_.data(), normed_.data());
            multiply(block.up_proj, {normed_.data(), wide_.data(), num_rows_, false}, [&](float* y, std::int64_t n) {
                kernels_.gelu(y, n);
            });
            multiply(block.down_proj, {wide_.data(), x_.data(), num_rows_, true});
        }
        norm(m_.last, x_.data(), s_.x);
        multiply(m_.head, {s_.x, s_.logits, num_rows_, false}, [&](float* y, std::int64_t n) {
            if (m_.logit_factor != 1)
                for (std::int64_t i = 0; i < n; ++i) y[i] *= m_.logit_factor;
        });
    }

private:
    void embed() {
        std::int64_t row = 0;
        for (const Text& text : s_.texts)
            for (int t = 0; t < text.num_tokens; ++t, ++row) {
                float* x = x_.data() + row * m_.width;
                const float* token = m_.tokens + s_.ids[row] * m_.width;
                std::copy(token, token + m_.width, x);
                if (m_.positions == nullptr) continue;
                const float* position = m_.positions + (text.num_older + t) * m_.width;
                for (int i = 0; i < m_.width; ++i) x[i] += position[i];
            }
    }

    void norm(const Norm& norm, const float* x, float* y) const {
        for (std::int64_t row = 0; row < num_rows_; ++row) kernels_.norm(norm, x + row * m_.width, y + row * m_.width);
    }

    template <class Then>
    void multiply(const Weights& weights, const Rows& rows, const Then& then) const {
        const void* const arranged = weights.arrange(weights, rows, kernels_);
        share_outputs(weights.out, s_.num_threads, [&](std::int64_t first, std::int64_t stop) {
            weights.run(weights, arranged, rows, first, stop, kernels_);
            for (std::int64_t row = 0; row < rows.num_rows; ++row) then(rows.y + row * weights.out + first, stop - first);
        });
    }

    void multiply(const Weights& weights, const Rows& rows) const { multiply(weights, rows, [](float*, std::int64_t) {}); }

    void clamp_and_norm(const Block& block) {
        const std::int64_t width = block.qkv.out;
        if (m_.clip < std::numeric_limits<float>::infinity()) kernels_.clamp(qkv_.data(), num_rows_ * width, m_.clip);
        const int num_queries = m_.num_heads * m_.head_dim, num_keys = m_.num_kv_heads * m_.head_dim;
        for (std::int64_t row = 0; row < num_rows_; ++row) {
            norm_parts(block.q_norm, qkv_.data() + row * width, num_queries);
            norm_parts(block.k_norm, qkv_.data() + row * width + num_queries, num_keys);
        }
    }

    void norm_parts(const Norm& norm, float* x, int width) const {
        if (norm.width == 0) return;
        for (int i = 0; i < width; i += norm.width) kernels_.norm(norm, x + i, x + i);
    }

    void attend(int layer) {
        std::int64_t row = 0;
        for (const Text& text : s_.texts) {
            reach_decode(decode_of(text, layer, row), kernels_);
            for (int h = 0; h < m_.num_heads; ++h) {
                text.first_pages[h] += first_page_[h];
                *text.omitted_mass = std::max(*text.omitted_mass, mass_[h]);
            }
            row += text.num_tokens;
        }
    }

    Decode decode_of(const Text& text, int layer, std::int64_t row) const {
        const std::int64_t stride = m_.blocks[layer].qkv.out, head_dim = m_.head_dim;
        Decode d;
        d.q = qkv_.data() + row * stride, d.k = d.q + m_.num_heads * head_dim, d.v = d.k + m_.num_kv_heads * head_dim;
        d.q_stride = d.k_stride = d.v_stride = stride;
        d.keys = s_.keys, d.values = s_.values;
        d.ids = text.ids.of(layer), d.ids_stride = text.ids.head_stride;
        d.norms = text.norms.of(layer), d.norms_stride = text.norms.head_stride;
        d.slopes = m_.slopes;
        d.bounds = bounds_of(text, layer);
        d.num_older = text.num_older, d.num_tokens = text.num_tokens;
        d.num_heads = m_.num_heads, d.num_kv_heads = m_.num_kv_heads, d.head_dim = m_.head_dim;
        d.scale = m_.scale, d.epsilon = s_.epsilon;
        d.out = const_cast<float*>(gathered_.data()) + row * m_.width;
        d.first_page = const_cast<std::int64_t*>(first_page_.data());
        d.omitted_mass = const_cast<double*>(mass_.data());
        d.num_threads = s_.num_threads;
        return d;
    }

    Bounds bounds_of(const Text& text, int layer) const {
        if (s_.bounds.root == nullptr) return {};
        const std::int64_t heads = std::int64_t(layer) * m_.num_heads, width = m_.head_dim;
        return {s_.bounds.root + heads * width * width, s_.bounds.offset + heads * width, s_.bounds.error + heads,
                s_.bounds.clip, text.scores.of(layer), text.scores.head_stride};
    }

    const Model& m_;
    const Step& s_;
    const Kernels& kernels_;
    std::int64_t num_rows_;
    std::vector<float> x_, normed_, gathered_, qkv_, wide_;
    std::vector<std::int64_t> first_page_;
    std::vector<double> mass_;
};

}  // namespace

Weights plain_weights(const void* numbers, Numbers kind, const float* bias, std::int64_t in, std::int64_t out) {
    const auto run = kind == Numbers::float32    ? run_plain<Numbers::float32>
                     : kind == Numbers::bfloat16 ? run_plain<Numbers::bfloat16>
                                                 : run_plain<Numbers::float16>;
    return {arrange_plain, run, numbers, bias, in, out};
}

Weights quant_weights(const QuantWeight& weight) {
    return {arrange_quant, run_quant, &weight, weight.bias, weight.in, weight.out};
}

bool run_step(const Model& model, const Step& step, const Kernels& kernels) {
    Pass pass(model, step, kernels);
    if (!pass.can_write()) return false;
    pass.run();
    return true;
}

}  // namespace epilogue
