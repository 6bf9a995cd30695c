// What the C++ files share: vectors of floats, e^x, RMSNorm, rotary embedding, attention of a few queries.
// Written with the vector types of GCC and Clang, so that it compiles to whatever the processor has.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 4, ROWS = 6;  // floats of a vector, vectors of a panel, rows of a tile
#elif defined(__AVX__)
constexpr int LANES = 8, VECTORS = 2, ROWS = 6;
#else
constexpr int LANES = 4, VECTORS = 4, ROWS = 4;
#endif
constexpr int PANEL = LANES * VECTORS;

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static inline vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

// bfloat16, the upper half of a float: read exactly, written to the nearest, ties to even.
typedef uint16_t half __attribute__((vector_size(2 * LANES)));
static inline vec load(const uint16_t *p) {
    half h;
    memcpy(&h, p, sizeof h);
    ivec bits = __builtin_convertvector(h, ivec) << 16;
    vec v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
static inline void store(uint16_t *p, vec v) {
    ivec bits;
    memcpy(&bits, &v, sizeof bits);
    half h = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, half);
    memcpy(p, &h, sizeof h);
}

// The same for the end of a row, of which `left` floats remain.
static inline vec part(const float *p, int64_t left) {
    if (left >= LANES) return load(p);
    vec v = {};
    for (int i = 0; i < left; i++) v[i] = p[i];
    return v;
}
static inline void keep(float *p, vec v, int64_t left) {
    if (left >= LANES) return store(p, v);
    for (int i = 0; i < left; i++) p[i] = v[i];
}
static inline float sum(vec v) { float s = v[0]; for (int i = 1; i < LANES; i++) s += v[i]; return s; }
static inline float largest(vec v) { float m = v[0]; for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m; return m; }
static inline ivec numbers() { ivec v; for (int i = 0; i < LANES; i++) v[i] = i; return v; }
static const ivec INDEX = numbers();

// e^x to 2e-7 relative: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. Below -87, where float32 would lose digits, 0.
static inline vec exponential(vec x) {
    vec y = x > 88.0f ? vec{} + 88.0f : x;
    vec n = (y * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: the sum has no digits behind the point
    vec r = y - n * 0.693359375f - n * -2.12194440e-4f;
    vec p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
             + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    vec scale;
    memcpy(&scale, &power, sizeof scale);
    return x < -87.0f ? vec{} : p * scale;
}

// y = x / rms(x) * weight over D numbers; returns 1 / rms(x).
static inline float norm(const float *x, const float *weight, float *y, int64_t D, float eps) {
    vec squares = {};
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES) squares += load(x + d) * load(x + d);
    float total = sum(squares);
    for (; d < D; d++) total += x[d] * x[d];
    const float scale = 1.0f / std::sqrt(total / D + eps);
    for (d = 0; d < D; d++) y[d] = x[d] * scale * weight[d];
    return scale;
}

// Pairs (i, i + E/2) of a head x [E] turned by the angle of its position (or back), into y, which may be x.
static inline void rotate(const float *x, float *y, const float *cosine, const float *sine, int64_t E, float back = 1) {
    for (int64_t i = 0; i < E / 2; i++) {
        float a = x[i], b = x[i + E / 2], c = cosine[i], s = back * sine[i];
        y[i] = a * c - b * s;
        y[i + E / 2] = b * c + a * s;
    }
}

// Place of number e of the key of token n among keys that lie in blocks, [tokens / LANES, E, LANES].
static inline int64_t blocked(int64_t n, int64_t e, int64_t E) { return n / LANES * LANES * E + e * LANES + n % LANES; }

// Attention of N queries over the same keys: q, out [E] of each, n: tokens that it sees, the last query's the most. keys
// [capacity / LANES, E, LANES], values [capacity, E]; `weights` has room for [N, capacity]; lse becomes the logarithm of the
// sum of the exponentials. What comes next from memory, the values and then what is at `next`, is asked for early.
template <int N, class Number>
static inline void attend(const float *const *q, const Number *keys, const Number *values, const Number *next, float *weights,
                          float *const *out, float *const *lse, const int64_t *n, int64_t E, int64_t capacity) {
    const float scale = 1.0f / std::sqrt((float)E);
    const int64_t longest = n[N - 1];
    vec most[N], total[N] = {};
    for (int i = 0; i < N; i++) most[i] = vec{} - INFINITY;
    for (int64_t t = 0; t < longest; t += LANES) {
        vec even[N] = {}, odd[N] = {};  // two sums a query: one addition need not wait for the other
        for (int64_t e = 0; e < E; e += 2) {
            const Number *at = keys + t * E + e * LANES;
            __builtin_prefetch(values + t * E + e * LANES, 0, 2);
            __builtin_prefetch(values + t * E + (e + 1) * LANES, 0, 2);
            const vec first = load(at), second = load(at + LANES);
            for (int i = 0; i < N; i++) {
                even[i] += q[i][e] * first;
                odd[i] += q[i][e + 1] * second;
            }
        }
        for (int i = 0; i < N; i++) {
            ivec behind = INDEX + (int)(t - n[i]);  // not negative: behind the last token
            vec score = behind < 0 ? (even[i] + odd[i]) * scale : vec{} - INFINITY;
            most[i] = score > most[i] ? score : most[i];
            store(weights + i * capacity + t, score);
        }
    }
    for (int i = 0; i < N; i++) {
        const float top = largest(most[i]);
        for (int64_t t = 0; t < longest; t += LANES) {
            vec weight = exponential(load(weights + i * capacity + t) - top);
            total[i] += weight;
            store(weights + i * capacity + t, weight);
        }
        *lse[i] = top + std::log(sum(total[i]));
    }
    for (int64_t e = 0; e < E;) {
        auto mix = [&](auto width) {  // so many vectors of the values at once
            vec results[N][width()] = {};
            for (int64_t t = 0; t < longest; t++)
                for (int u = 0; u < width(); u++) {
                    vec value = load(values + t * E + e + u * LANES);
                    __builtin_prefetch(next + t * E + e + u * LANES, 0, 2);
                    for (int i = 0; i < N; i++) results[i][u] += weights[i * capacity + t] * value;
                }
            for (int i = 0; i < N; i++)
                for (int u = 0; u < width(); u++) store(out[i] + e + u * LANES, results[i][u] / sum(total[i]));
            e += width() * LANES;
        };
        if (e + 2 * LANES <= E) mix(std::integral_constant<int, 2>());
        else mix(std::integral_constant<int, 1>());
    }
}
