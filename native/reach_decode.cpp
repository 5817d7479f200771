// One layer of one sequence, a few new tokens: take them in, plan, look back. Work is shared out twice, by key heads and
// by stretches of pages, so that the cores stay busy where one head looks far back and the others do not.
#include "reach_decode.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "team.hpp"

namespace epilogue {
namespace {

constexpr std::int64_t kStretchesPerThread = 6;

struct Part {
    int kv_head;
    std::int64_t first, stop;
};

// A page's norm as kernels.paged_attention.page_norms rounds it up.
float upper(double norm) {
    const float grown = float(norm * (1 + 1.0 / (1 << 20)));
    return std::nextafter(grown, std::numeric_limits<float>::infinity());
}

// Of an entry of the table and a new token's: the larger, or NaN. The first token of a page forgets what was there.
void raise(float* entry, float x, bool is_first) {
    if (is_first || x > *entry || x != x) *entry = x;
}

class Layer {
public:
    Layer(const Decode& decode, const Kernels& kernels)
        : d_(decode), kernels_(kernels), group_(d_.num_heads / d_.num_kv_heads), rows_(group_ * d_.num_tokens),
          num_keys_(d_.num_older + d_.num_tokens), stop_((num_keys_ + kPageTokens - 1) / kPageTokens),
          stored_(std::size_t(d_.num_kv_heads) * d_.num_tokens * d_.head_dim),
          scratch_(std::size_t(d_.num_kv_heads) * d_.head_dim),
          q_(std::size_t(d_.num_kv_heads) * rows_ * d_.head_dim), slopes_(std::size_t(d_.num_kv_heads) * rows_),
          own_(rows_), begin_(std::size_t(d_.num_kv_heads) * rows_) {
        for (int row = 0; row < rows_; ++row) own_[row] = d_.num_older + row % d_.num_tokens;
    }

    // New tokens of one key head into their pages, norms and scores up to date, and the plans of its query heads.
    void take_in(int h) {
        for (int t = 0; t < d_.num_tokens; ++t) {
            const std::int64_t position = d_.num_older + t, page = position / kPageTokens, id = ids(h)[page];
            const int place = int(position % kPageTokens);
            const std::int64_t offset = std::int64_t(h) * d_.head_dim;
            double norm;
            store(d_.values, id, place, d_.v + t * d_.v_stride + offset, d_.head_dim, scratch(h), &norm);
            store(d_.keys, id, place, d_.k + t * d_.k_stride + offset, d_.head_dim, stored(h, t), &norm);
            raise(d_.norms + h * d_.norms_stride + page, upper(norm), place == 0);
            if (d_.bounds.root != nullptr)
                for (int i = h * group_; i < (h + 1) * group_; ++i)
                    raise(d_.bounds.scores + i * d_.bounds.scores_stride + page, largest_score(i, stored(h, t)), place == 0);
        }
        for (int i = 0; i < group_; ++i) plan_head(h, i);
    }

    void share_out() {
        std::int64_t pages = 0;
        std::vector<Part> whole;
        for (int h = 0; h < d_.num_kv_heads; ++h) {
            const std::int64_t* begin = begin_.data() + std::size_t(h) * rows_;
            const std::int64_t first = *std::min_element(begin, begin + rows_);
            whole.push_back({h, first, stop_});
            pages += stop_ - first;
        }
        const std::int64_t most = std::max<std::int64_t>(1, pages / (kStretchesPerThread * d_.num_threads));
        for (const Part& part : whole)
            for (std::int64_t first = part.first; first < part.stop; first += most)
                parts_.push_back({part.kv_head, first, std::min(part.stop, first + most)});
        results_.resize(parts_.size() * rows_ * (2 + d_.head_dim));
    }

    std::int64_t num_parts() const { return std::int64_t(parts_.size()); }

    void attend(std::int64_t i) {
        thread_local std::vector<float> buffer;
        const Part& part = parts_[i];
        buffer.resize(std::size_t(kPageTokens) * d_.head_dim);
        const std::size_t row = std::size_t(part.kv_head) * rows_;
        float* result = results_.data() + std::size_t(i) * rows_ * (2 + d_.head_dim);
        Stretch s;
        s.keys = d_.keys, s.values = d_.values, s.ids = ids(part.kv_head);
        s.first = part.first, s.stop = part.stop, s.num_keys = num_keys_;
        s.head_dim = d_.head_dim, s.num_rows = rows_;
        s.q = q_.data() + row * d_.head_dim, s.slopes = slopes_.data() + row;
        s.own = own_.data(), s.begin = begin_.data() + row;
        s.largest = result, s.sum = result + rows_, s.average = result + 2 * rows_;
        s.buffer = buffer.data();
        kernels_.attend(s);
    }

    // The parts of one key head joined by their maxima: sum_i e^(M_i - M) O_i / sum_i e^(M_i - M) L_i.
    void join(int h) {
        for (int row = 0; row < rows_; ++row) {
            float most = -std::numeric_limits<float>::infinity(), total = 0;
            float* out = out_of(h, row);
            std::fill(out, out + d_.head_dim, 0.0f);
            for (std::size_t i = 0; i < parts_.size(); ++i)
                if (parts_[i].kv_head == h) most = std::max(most, result_of(i)[row]);
            for (std::size_t i = 0; i < parts_.size(); ++i) {
                if (parts_[i].kv_head != h) continue;
                const float *result = result_of(i), *average = result + 2 * rows_ + std::size_t(row) * d_.head_dim;
                const float weight = result[row] == -std::numeric_limits<float>::infinity() ? 0 : std::exp(result[row] - most);
                // A sum may be NaN where no score was largest; a weight of zero does not silence it.
                total += weight * result[rows_ + row];
                for (int j = 0; j < d_.head_dim; ++j) out[j] += weight * average[j];
            }
            const float share = total == 0 ? 0.0f : 1 / total;
            for (int j = 0; j < d_.head_dim; ++j) out[j] *= share;
            if (d_.values.storage == Storage::int4) rotate(out, d_.head_dim);
        }
    }

private:
    const std::int64_t* ids(int h) const { return d_.ids + h * d_.ids_stride; }
    float* stored(int h, int t) { return stored_.data() + (std::size_t(h) * d_.num_tokens + t) * d_.head_dim; }
    float* scratch(int h) { return scratch_.data() + std::size_t(h) * d_.head_dim; }
    const float* result_of(std::size_t i) const { return results_.data() + i * rows_ * (2 + d_.head_dim); }
    float* out_of(int h, int row) {
        const int head = h * group_ + row / d_.num_tokens, token = row % d_.num_tokens;
        return d_.out + (std::int64_t(token) * d_.num_heads + head) * d_.head_dim;
    }

    // EvictionBounds.largest_scores of one key.
    float largest_score(int head, const float* k) const {
        thread_local std::vector<float> turned;
        const int width = d_.head_dim;
        turned.resize(width);
        kernels_.linear({k, d_.bounds.root + std::int64_t(head) * width * width, nullptr, turned.data(), 1, width, width,
                         Numbers::float32, false}, 0, width);
        double squares = 0, size = 0, sum = 0;
        for (int i = 0; i < width; ++i) {
            squares += double(turned[i]) * turned[i];
            size += double(k[i]) * k[i], sum += std::fabs(k[i]);
        }
        float score = float(std::sqrt(squares)) + std::fabs(kernels_.dot(d_.bounds.offset + std::int64_t(head) * width, k, width));
        score += d_.bounds.error[head] * float(std::sqrt(size));
        const float clipped = d_.bounds.clip * float(sum);
        if (d_.bounds.clip < std::numeric_limits<float>::infinity() && !(score < clipped) && score == score) score = clipped;
        return score * (1 + 1e-4f);
    }

    // The plan of the i-th query head of a key head, and its rows for the attention.
    void plan_head(int h, int i) {
        const int head = h * group_ + i, width = d_.head_dim;
        const Plan planned = plan({d_.q + std::int64_t(head) * width, d_.q_stride, stored(h, 0), d_.num_tokens, width,
                                   d_.norms + h * d_.norms_stride, stop_, d_.num_older, double(d_.slopes[head]), d_.scale,
                                   d_.epsilon});
        // Pages before a hole were kept for going back, and what is certified of the hole counts them as gone.
        std::int64_t live = stop_;
        while (live > 0 && ids(h)[live - 1] >= 0) --live;
        d_.first_page[head] = std::max(planned.first_page, live);
        d_.omitted_mass[head] = planned.first_page < live ? d_.epsilon : planned.omitted_mass;
        for (int t = 0; t < d_.num_tokens; ++t) {
            const std::size_t row = std::size_t(h) * rows_ + std::size_t(i) * d_.num_tokens + t;
            const float* q = d_.q + t * d_.q_stride + std::int64_t(head) * width;
            float* to = q_.data() + row * width;
            for (int j = 0; j < width; ++j) to[j] = q[j] * float(d_.scale);
            if (d_.keys.storage == Storage::int4) rotate(to, width);
            slopes_[row] = d_.slopes[head];
            begin_[row] = d_.first_page[head];
        }
    }

    const Decode& d_;
    const Kernels& kernels_;
    int group_, rows_;
    std::int64_t num_keys_, stop_;
    std::vector<float> stored_, scratch_, q_, slopes_, results_;
    std::vector<std::int64_t> own_, begin_;
    std::vector<Part> parts_;
};

}  // namespace

bool can_write(const Decode& d) {
    const std::int64_t stop = (d.num_older + d.num_tokens + kPageTokens - 1) / kPageTokens;
    for (int h = 0; h < d.num_kv_heads; ++h)
        for (std::int64_t page = d.num_older / kPageTokens; page < stop; ++page) {
            const std::int64_t id = d.ids[h * d.ids_stride + page];
            if (id < 0 || id >= d.keys.num_pages) return false;
        }
    return true;
}

void reach_decode(const Decode& decode, const Kernels& kernels) {
    Layer layer(decode, kernels);
    share(decode.num_kv_heads, decode.num_threads, [&](std::int64_t h) { layer.take_in(int(h)); });
    layer.share_out();
    share(layer.num_parts(), decode.num_threads, [&](std::int64_t i) { layer.attend(i); });
    share(decode.num_kv_heads, decode.num_threads, [&](std::int64_t h) { layer.join(int(h)); });
}

}  // namespace epilogue
