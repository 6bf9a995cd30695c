// What stands between a block's matrix products on a CPU, forward and backward: RMSNorm and SwiGLU, each in one pass over
// memory (block.py calls them). Sums are taken in an order that does not depend on the threads.

#include "common.h"
#include <vector>

// y = x / rms(x) * weight over the last of [T, D]; scale [T] becomes 1 / rms(x).
extern "C" void rms_norm(const float *x, const float *weight, float *y, float *scale, int64_t T, int64_t D, float eps, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < T; t++) scale[t] = norm(x + t * D, weight, y + t * D, D, eps);
}

// dx [T, D] and dweight [D] from dy [T, D].
extern "C" void rms_norm_backward(const float *x, const float *weight, const float *scale, const float *dy, float *dx,
                                  float *dweight, int64_t T, int64_t D, int threads) {
    const int64_t size = 64, parts = (T + size - 1) / size;
    std::vector<float> partial(parts * D);
    #pragma omp parallel num_threads(threads)
    {
        #pragma omp for
        for (int64_t p = 0; p < parts; p++)
            for (int64_t t = p * size; t < T && t < (p + 1) * size; t++) {
                const float *from = x + t * D, *slope = dy + t * D, r = scale[t];
                float *to = dx + t * D, *weights = &partial[p * D];
                vec sums = {};
                int64_t d = 0;
                for (; d + LANES <= D; d += LANES) sums += load(slope + d) * load(weight + d) * load(from + d);
                float total = sum(sums);
                for (; d < D; d++) total += slope[d] * weight[d] * from[d];
                const float mean = total / D * r * r;
                for (d = 0; d < D; d++) {
                    to[d] = r * (slope[d] * weight[d] - from[d] * mean);
                    weights[d] += slope[d] * from[d] * r;
                }
            }
        #pragma omp for
        for (int64_t d = 0; d < D; d++) {
            float total = 0;
            for (int64_t p = 0; p < parts; p++) total += partial[p * D + d];
            dweight[d] = total;
        }
    }
}

// x [T, 2 F], gates and then ups -> y [T, F] = silu(gate) * up.
extern "C" void swiglu(const float *x, float *y, int64_t T, int64_t F, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < T; t++)
        for (int64_t f = 0; f < F; f += LANES) {
            vec gate = part(x + t * 2 * F + f, F - f), up = part(x + t * 2 * F + F + f, F - f);
            keep(y + t * F + f, gate / (1.0f + exponential(-gate)) * up, F - f);
        }
}

// dx [T, 2 F] from dy [T, F].
extern "C" void swiglu_backward(const float *x, const float *dy, float *dx, int64_t T, int64_t F, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < T; t++)
        for (int64_t f = 0; f < F; f += LANES) {
            const int64_t at = t * 2 * F + f;
            vec gate = part(x + at, F - f), up = part(x + at + F, F - f), slope = part(dy + t * F + f, F - f);
            vec sigmoid = 1.0f / (1.0f + exponential(-gate)), silu = gate * sigmoid;
            keep(dx + at, slope * up * (sigmoid + silu * (1.0f - sigmoid)), F - f);
            keep(dx + at + F, slope * silu, F - f);
        }
}
