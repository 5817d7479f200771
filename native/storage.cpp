// One token into a page: the codes that epilogue.kernels.paged_attention.quantize gives.
#include <cmath>
#include <cstring>
#include <limits>

#include "reach_decode.hpp"

namespace epilogue {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
// As in kernels/paged_attention/storage.py.
constexpr float kSmallestScale = std::numeric_limits<float>::min();
constexpr float kSmallestStep = 1.0f / (1 << 20);

std::uint16_t to_bfloat16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return 0x7fc0;
    return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float from_bfloat16(std::uint16_t x) {
    const std::uint32_t bits = std::uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

// The largest magnitude; NaN where something is not finite.
float largest(const float* x, int width) {
    float out = 0;
    for (int i = 0; i < width; ++i) {
        const float size = std::fabs(x[i]);
        if (!std::isfinite(size)) return kNaN;
        out = size > out ? size : out;
    }
    return out;
}

// Not std::max: a NaN stays.
float at_least(float x, float least) { return x < least ? least : x; }

int code(float x, int least, int most) {
    const float whole = std::nearbyint(x);
    if (whole != whole) return 0;
    return whole < float(least) ? least : whole > float(most) ? most : int(whole);
}

void store_int8(const float* x, int width, std::int8_t* codes, float* scale, float* stored) {
    *scale = at_least(largest(x, width) / 127.0f, kSmallestScale);
    for (int i = 0; i < width; ++i) {
        codes[i] = std::int8_t(code(x[i] / *scale, -127, 127));
        stored[i] = float(codes[i]) * *scale;
    }
}

// `stored` holds the rotated numbers, and afterwards what stands for them.
void store_int4(float* stored, int width, std::uint8_t* bytes, float* scale, float* zero) {
    float low = stored[0], high = stored[0];
    for (int i = 1; i < width; ++i) {
        low = stored[i] < low ? stored[i] : low;
        high = stored[i] > high ? stored[i] : high;
    }
    const float most = largest(stored, width);
    *scale = most != most ? kNaN : at_least(std::fmax((high - low) / 15.0f, most * kSmallestStep), kSmallestScale);
    *zero = most != most ? kNaN : -low / *scale - 8.0f;
    const int half = width / 2;
    for (int i = 0; i < half; ++i) {
        int pair[2];
        for (int p = 0; p < 2; ++p) {
            float& y = stored[p * half + i];
            pair[p] = code(std::nearbyint((y - low) / *scale) - 8.0f, -8, 7);
            y = (float(pair[p]) - *zero) * *scale;
        }
        bytes[i] = std::uint8_t((pair[0] & 15) | (pair[1] << 4));
    }
}

}  // namespace

void rotate(float* x, int width) {
    const int block = width & -width;
    if (block == 1) return;
    const float factor = float(1.0 / std::sqrt(double(block)));
    for (int start = 0; start < width; start += block) {
        for (int half = 1; half < block; half *= 2)
            for (int i = start; i < start + block; i += 2 * half)
                for (int j = i; j < i + half; ++j) {
                    const float a = x[j], b = x[j + half];
                    x[j] = a + b;
                    x[j + half] = a - b;
                }
        for (int i = start; i < start + block; ++i) x[i] *= factor;
    }
}

void store(const Pool& pool, std::int64_t id, int place, const float* x, int width, float* stored, double* norm) {
    const std::int64_t row = id * kPageTokens + place;
    std::memcpy(stored, x, std::size_t(width) * sizeof *x);
    switch (pool.storage) {
        case Storage::float32:
            std::memcpy(reinterpret_cast<float*>(pool.data) + row * width, x, std::size_t(width) * sizeof *x);
            break;
        case Storage::bfloat16:
            for (int i = 0; i < width; ++i) {
                const std::uint16_t bits = to_bfloat16(x[i]);
                reinterpret_cast<std::uint16_t*>(pool.data)[row * width + i] = bits;
                stored[i] = from_bfloat16(bits);
            }
            break;
        case Storage::int8:
            store_int8(x, width, reinterpret_cast<std::int8_t*>(pool.data) + row * width, pool.scale + row, stored);
            break;
        case Storage::int4:
            rotate(stored, width);
            store_int4(stored, width, pool.data + row * (width / 2), pool.scale + row, pool.zero + row);
            break;
    }
    double squares = 0;
    for (int i = 0; i < width; ++i) squares += double(stored[i]) * double(stored[i]);
    *norm = std::sqrt(squares);
    if (pool.storage == Storage::int4) rotate(stored, width);
}

}  // namespace epilogue
