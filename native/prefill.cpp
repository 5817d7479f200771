// Attention of many queries: heads and runs of queries are shared out among threads, those that look back furthest first.
#include "prefill.hpp"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "team.hpp"

namespace epilogue {
namespace {

// A longer run reads its keys less often, and has more queries in the second cache.
constexpr std::int64_t kMostQueries = 1024, kFewestQueries = 64, kPiecesPerThread = 2, kCacheLine = 64;

struct Piece {
    std::int64_t sequence, head, start, stop, cost;
};

std::int64_t first_key(const Prefill& p, std::int64_t b, std::int64_t h, std::int64_t t) {
    std::int64_t first = 0;
    const std::int64_t tiles = (p.num_queries + p.tile_tokens - 1) / p.tile_tokens;
    if (p.first_key != nullptr) first = p.first_key[h * tiles + t / p.tile_tokens];
    if (p.document_start != nullptr) first = std::max(first, p.document_start[b * p.num_queries + t]);
    return first;
}

std::vector<Piece> pieces_of(const Prefill& p) {
    const std::int64_t all = p.batch * p.num_heads * p.num_queries, even = all / (kPiecesPerThread * p.num_threads);
    const std::int64_t length = std::clamp(even / kFewestQueries * kFewestQueries, kFewestQueries, kMostQueries);
    std::vector<Piece> pieces;
    for (std::int64_t b = 0; b < p.batch; ++b)
        for (std::int64_t h = 0; h < p.num_heads; ++h)
            for (std::int64_t start = 0; start < p.num_queries; start += length) {
                const std::int64_t stop = std::min(start + length, p.num_queries);
                std::int64_t cost = 0;
                for (std::int64_t t = start; t < stop; ++t)
                    cost += p.num_keys - p.num_queries + t + 1 - first_key(p, b, h, t);
                pieces.push_back({b, h, start, stop, cost});
            }
    std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.cost > b.cost; });
    return pieces;
}

// Of this thread, for as long as it lives: fresh memory costs more than a short piece.
float* room_for(std::int64_t floats) {
    struct Free {
        void operator()(float* x) const { ::operator delete[](x, std::align_val_t(kCacheLine)); }
    };
    thread_local std::unique_ptr<float[], Free> room;
    thread_local std::int64_t size = 0;
    if (size < floats) {
        room.reset();
        room.reset(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t(kCacheLine))));
        size = floats;
    }
    return room.get();
}

void run(const Prefill& p, const Piece& piece, const Kernels& kernels) {
    const std::int64_t b = piece.sequence, h = piece.head, kv = h / (p.num_heads / p.num_kv_heads);
    std::int64_t first[kMostQueries];
    for (std::int64_t t = piece.start; t < piece.stop; ++t) first[t - piece.start] = first_key(p, b, h, t);
    Queries s;
    s.q = p.q.at(b, piece.start, h), s.q_stride = p.q.token;
    const bool is_paged = p.pages != nullptr;
    s.k = is_paged ? nullptr : p.k.at(b, 0, kv), s.k_stride = p.k.token;
    s.v = is_paged ? nullptr : p.v.at(b, 0, kv), s.v_stride = p.v.token;
    s.keys = &p.keys, s.values = &p.values;
    s.pages = is_paged ? p.pages + kv * p.pages_stride : nullptr;
    s.out = p.out.at(b, piece.start, h), s.out_stride = p.out.token;
    s.count = piece.stop - piece.start;
    s.position = p.num_keys - p.num_queries + piece.start;
    s.first_key = first;
    s.head_dim = p.head_dim;
    s.slope = p.slopes[h], s.scale = p.scale;
    const std::int64_t page_floats = 2 * kPageTokens * std::int64_t(s.head_dim);  // whole cache lines
    s.page_room = room_for(page_floats + kernels.prefill_floats(s.count, s.head_dim));
    s.buffer = s.page_room + page_floats;
    kernels.prefill(s);
}

}  // namespace

void prefill(const Prefill& p, const Kernels& kernels) {
    const std::vector<Piece> pieces = pieces_of(p);
    share(std::int64_t(pieces.size()), p.num_threads, [&](std::int64_t i) { run(p, pieces[i], kernels); });
}

}  // namespace epilogue
