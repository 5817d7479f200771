// The reach plan of one head: epilogue.model.reach.plan_reach, for the one tile that a decode step has.
// The bound and its proof are in docs/numerics.md; names are those of reach.py.
#include <cmath>
#include <limits>

#include "reach_decode.hpp"

namespace epilogue {
namespace {

constexpr double kSlack = 0.01;
constexpr double kLeast = 1.0 / double(1ll << 50);
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double dot(const float* a, const float* b, int n) {
    double out = 0;
    for (int i = 0; i < n; ++i) out += double(a[i]) * double(b[i]);
    return out;
}

// Of two numbers the larger, or NaN if one is.
double larger(double a, double b) { return a > b || a != a ? a : b; }

}  // namespace

Plan plan(const PlanInput& in) {
    if (!(in.epsilon > 0)) return {0, 0.0};
    const double rounding = (in.head_dim + 8) / double(1 << 24), least = std::sqrt(double(in.head_dim)) * kLeast;
    const auto at_least = [&](double norm) { return norm * (1 + rounding) + least; };

    double most = 0;
    for (std::int64_t page = 0; page < in.num_pages; ++page) most = larger(most, double(in.norms[page]));
    most = at_least(most);

    double at_zero = -kInfinity, at_most = -kInfinity;
    for (int t = 0; t < in.num_tokens; ++t) {
        const float *q = in.q + t * in.q_stride, *k = in.stored + std::int64_t(t) * in.head_dim;
        const double norm = at_least(std::sqrt(dot(q, q, in.head_dim))) * std::fabs(in.scale);
        const double own_norm = at_least(std::sqrt(dot(k, k, in.head_dim)));
        const double own = dot(q, k, in.head_dim) * in.scale - rounding * norm * own_norm;
        const double floor = own + in.slope * t;
        at_zero = larger(at_zero, -floor);
        at_most = larger(at_most, norm * most - floor);
    }

    // The bound grows with the prefix, so the first page that must stay ends the search.
    const double tail = 1 / -std::expm1(-in.slope), log_tail = std::log(tail), log_epsilon = std::log(in.epsilon);
    double running = 0, mass = 0;
    std::int64_t skipped = 0;
    for (std::int64_t older = kPageTokens; older <= in.num_older; older += kPageTokens) {
        running = larger(running, double(in.norms[skipped]));
        const double exponent = at_zero + (at_most - at_zero) * (at_least(running) / most);
        const double distance = double(in.num_older - older + 1);
        const double keys = double(older) < tail ? std::log(double(older)) : log_tail;
        const double bound = exponent - in.slope * distance + keys + kSlack;
        if (!(bound <= log_epsilon)) break;
        mass = std::exp(bound);
        ++skipped;
    }
    return {skipped, mass < in.epsilon ? mass : in.epsilon * (skipped > 0)};
}

}  // namespace epilogue
