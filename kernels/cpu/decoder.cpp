// A model's forward pass on a CPU for sampling: ids and a KV cache in, logits out; then draws. decoder.py calls it.
//
// PyTorch spends most of a decoding step between its operators: for a small model each of some sixty calls is a few
// microseconds of arithmetic. Here a step is one call and one parallel region. Weights are packed in panels (PANEL
// outputs, all inputs), so that each weight is read in order and serves all rows of a tile from registers. The order of
// each sum depends neither on the batch nor on the threads: the logits of a row are the same bits alone and among others.
//
// Shapes: T tokens, D width, H query heads on K key/value heads of width E, F feed-forward width, V vocabulary.

#include "common.h"

#if defined(_OPENMP)
#include <omp.h>
static int thread() { return omp_get_thread_num(); }
#else
static int thread() { return 0; }
#endif

#if defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern "C" {

struct Layer {  // matrices in panels; null where a family has no such thing
    const float *attn_norm, *qkv_bias, *q_norm, *k_norm, *out_bias, *mlp_norm;
    const void *qkv, *out, *gate_up, *down;  // float, or bfloat16 for tiles
};

struct Model {
    int64_t D, layers, H, K, E, F, V, bfloat16;
    float eps;
    const float *embed, *norm, *head;
    const Layer *layer;
};

struct Cache {  // keys [layers, rows, K, capacity / LANES, E, LANES], values [layers, rows, K, capacity, E]
    void *keys, *values;  // float, or bfloat16
    int64_t rows, capacity, bfloat16;
};

int panel() { return PANEL; }
int lanes() { return LANES; }

}

// A row of a buffer of n columns: room for whole panels, so that nothing that is stored needs a tail.
static inline int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

// sums[r] = sum over d of x[r][d] * w[d][:] for R rows and a panel; then done(r, sums[r]).
template <int R, class Done>
static inline void tile(const float *x, int64_t stride, int64_t D, const float *w, Done done) {
    vec sums[R][VECTORS] = {};
    for (int64_t d = 0; d < D; d++, w += PANEL)
        for (int v = 0; v < VECTORS; v++) {
            vec weight = load(w + v * LANES);
            for (int r = 0; r < R; r++) sums[r][v] += x[r * stride + d] * weight;
        }
    for (int r = 0; r < R; r++) done(r, sums[r]);
}

// x [B, padded(D)] times panels w [padded(N) / PANEL, D, PANEL]; then done(row, first column, sums). Threads share the
// panels. Many rows are cut into parts of about a hundred, which stay in a core's cache.
template <class Done>
static void multiply(const float *x, int64_t B, int64_t D, const float *w, int64_t N, Done done) {
    const int64_t tiles = (B + ROWS - 1) / ROWS, parts = (tiles + 15) / 16, most = (tiles + parts - 1) / parts * ROWS;
    #pragma omp for collapse(2) schedule(static)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t column = 0; column < N; column += PANEL) {
            const float *weights = w + column * D;
            const int64_t stop = part * most + most < B ? part * most + most : B;
            for (int64_t first = part * most; first < stop; first += ROWS) {
                auto store_row = [&](int r, const vec *sums) { done(first + r, column, sums); };
                const float *from = x + first * padded(D);
                switch (stop - first < ROWS ? stop - first : ROWS) {
                    case 1: tile<1>(from, padded(D), D, weights, store_row); break;
                    case 2: tile<2>(from, padded(D), D, weights, store_row); break;
                    case 3: tile<3>(from, padded(D), D, weights, store_row); break;
                    case 4: tile<4>(from, padded(D), D, weights, store_row); break;
                    case 5: tile<5>(from, padded(D), D, weights, store_row); break;
                    default: tile<ROWS>(from, padded(D), D, weights, store_row);
                }
            }
        }
}

// The same with products of bfloat16 on the matrix unit (AMX), sums in float: 16 rows and a panel at a time.
// w [padded(N) / PANEL, D / 2, PANEL, 2], D a multiple of 32; `room`: for a thread's rows in bfloat16.
#if defined(__AMX_BF16__)
struct alignas(64) TileConfig {  // eight tiles of 16 rows of 64 bytes
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static void begin_tiles() { TileConfig config; _tile_loadconfig(&config); }
static void end_tiles() { _tile_release(); }

template <class Done>
static void multiply_bfloat16(const float *x, int64_t B, int64_t D, const uint16_t *w, int64_t N, uint16_t *room, Done done) {
    const int64_t parts = (B + 95) / 96, most = ((B + parts - 1) / parts + 15) / 16 * 16;
    int64_t at = -1;
    #pragma omp for collapse(2) schedule(static)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t column = 0; column < N; column += PANEL) {
            const int64_t start = part * most, stop = start + most < B ? start + most : B;
            if (at != part) {
                at = part;
                for (int64_t b = start; b < stop; b++)
                    for (int64_t d = 0; d < D; d += LANES)
                        store(room + (b - start) * D + d, load(x + b * padded(D) + d));
            }
            for (int64_t first = start; first < stop; first += 16) {
                const uint16_t *from = room + (first - start) * D, *weights = w + column * D;
                alignas(64) float sums[16][PANEL];
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
                for (int64_t d = 0; d < D; d += 32) {
                    const uint16_t *panel = weights + d * PANEL;
                    _tile_loadd(4, from + d, 2 * D);
                    _tile_loadd(5, panel, 4 * PANEL); _tile_dpbf16ps(0, 4, 5);
                    _tile_loadd(6, panel + 32, 4 * PANEL); _tile_dpbf16ps(1, 4, 6);
                    _tile_loadd(7, panel + 64, 4 * PANEL); _tile_dpbf16ps(2, 4, 7);
                    _tile_loadd(5, panel + 96, 4 * PANEL); _tile_dpbf16ps(3, 4, 5);
                }
                _tile_stored(0, sums[0], 4 * PANEL); _tile_stored(1, sums[0] + 16, 4 * PANEL);
                _tile_stored(2, sums[0] + 32, 4 * PANEL); _tile_stored(3, sums[0] + 48, 4 * PANEL);
                for (int64_t r = 0; r < 16 && first + r < stop; r++) {
                    vec row[VECTORS];
                    for (int v = 0; v < VECTORS; v++) row[v] = load(sums[r] + v * LANES);
                    done(first + r, column, row);
                }
            }
        }
}

extern "C" int tiles() { return !syscall(SYS_arch_prctl, 0x1023, 18); }  // asks the system for tile registers
#else
static void begin_tiles() {}
static void end_tiles() {}
template <class Done>
static void multiply_bfloat16(const float *, int64_t, int64_t, const uint16_t *, int64_t, uint16_t *, Done) {}

extern "C" int tiles() { return 0; }
#endif

// T tokens through the model. Token t has id ids[t] and stands at position[t] of cache row row[t], after tokens that the
// cache holds or that are among the T: a decoding step is one token a row, a prefill the tokens of prompts in order.
// Writes the logits [L, padded(V)] of the tokens last[0 .. L). rope [2, positions, E / 2]: cos and sin.
// scratch: T * padded(each of D, D, (H + 2 K) E, H E, F) + threads * (2 * capacity + 48 * padded(the widest of D, H E, F))
// floats. Returns -1, or the first token whose id is not below V.
extern "C" int64_t step(const Model *model, const Cache *cache, int64_t T, const int64_t *ids, const int64_t *row,
                        const int64_t *position, const float *rope, int64_t positions, int64_t L, const int64_t *last,
                        float *scratch, float *logits, int threads) {
    const auto [D, layers, H, K, E, F, V, bfloat16, eps, embed, last_norm, head, layer] = *model;
    const int64_t heads = (H + 2 * K) * E, G = H / K, C = cache->capacity;
    for (int64_t t = 0; t < T; t++)
        if (ids[t] < 0 || ids[t] >= V) return t;
    float *x = scratch, *normed = x + T * padded(D), *qkv = normed + T * padded(D), *attended = qkv + T * padded(heads);
    float *hidden = attended + T * padded(H * E), *room = hidden + T * padded(F);
    const int64_t widest = D > F ? (D > H * E ? D : H * E) : (F > H * E ? F : H * E);
    auto product = [=](const float *y, int64_t rows, int64_t wide, const void *w, int64_t N, auto done) {
        uint16_t *half = (uint16_t *)(room + threads * 2 * C) + thread() * 96 * padded(widest);
        if (bfloat16) multiply_bfloat16(y, rows, wide, (const uint16_t *)w, N, half, done);
        else multiply(y, rows, wide, (const float *)w, N, done);
    };
    auto put = [](float *y, int64_t stride, const float *bias) {
        return [=](int64_t t, int64_t column, const vec *sums) {
            for (int v = 0; v < VECTORS; v++)
                store(y + t * stride + column + v * LANES, bias ? sums[v] + load(bias + column + v * LANES) : sums[v]);
        };
    };
    auto add = [](float *y, int64_t stride, const float *bias) {
        return [=](int64_t t, int64_t column, const vec *sums) {
            for (int v = 0; v < VECTORS; v++) {
                float *to = y + t * stride + column + v * LANES;
                store(to, load(to) + (bias ? sums[v] + load(bias + column + v * LANES) : sums[v]));
            }
        };
    };
    auto swiglu = [=](int64_t t, int64_t column, const vec *sums) {  // a panel: VECTORS / 2 of gates, then of ups
        for (int v = 0; v < VECTORS / 2; v++)
            store(hidden + t * padded(F) + column / 2 + v * LANES,
                  sums[v] / (1.0f + exponential(-sums[v])) * sums[v + VECTORS / 2]);
    };
    #pragma omp parallel num_threads(threads)
    {
        float *weights = room + thread() * 2 * C;
        if (bfloat16) begin_tiles();
        #pragma omp for
        for (int64_t t = 0; t < T; t++) memcpy(x + t * padded(D), embed + ids[t] * D, D * sizeof(float));
        for (int64_t l = 0; l < layers; l++) {
            const Layer &w = layer[l];
            #pragma omp for
            for (int64_t t = 0; t < T; t++) norm(x + t * padded(D), w.attn_norm, normed + t * padded(D), D, eps);
            product(normed, T, D, w.qkv, heads, put(qkv, padded(heads), w.qkv_bias));
            auto attention = [&](auto *keys, auto *values) {
                #pragma omp for
                for (int64_t t = 0; t < T; t++) {  // rotate, and write keys and values into the cache
                    const int64_t n = position[t];
                    float *q = qkv + t * padded(heads), *key = q + H * E, *value = key + K * E;
                    for (int64_t h = 0; h < H + K; h++) {
                        const float *weight = h < H ? w.q_norm : w.k_norm;
                        if (weight) norm(q + h * E, weight, q + h * E, E, eps);
                        rotate(q + h * E, q + h * E, rope + n * E / 2, rope + (positions + n) * E / 2, E);
                    }
                    for (int64_t k = 0; k < K; k++) {
                        const int64_t start = ((l * cache->rows + row[t]) * K + k) * C * E;
                        auto *numbers = values + start + n * E;
                        for (int64_t e = 0; e < E; e += LANES) store(numbers + e, load(key + k * E + e));
                        for (int64_t e = 0; e < E; e++) keys[start + blocked(n, e, E)] = numbers[e];
                        for (int64_t e = 0; e < E; e += LANES) store(numbers + e, load(value + k * E + e));
                    }
                }
                #pragma omp for collapse(2) schedule(dynamic, 16)
                for (int64_t t = 0; t < T; t++)
                    for (int64_t k = 0; k < K; k++) {
                        const int64_t start = ((l * cache->rows + row[t]) * K + k) * C * E;
                        const int64_t seen[] = {position[t] + 1, position[t] + 1};
                        const float *q = qkv + t * padded(heads) + k * G * E;
                        float *to = attended + t * padded(H * E) + k * G * E, unused;
                        for (int64_t g = 0; g < G; g += 2) {
                            const float *queries[] = {q + g * E, q + g * E + E};
                            float *outs[] = {to + g * E, to + g * E + E}, *sums[] = {&unused, &unused};
                            auto run = [&](auto count) {
                                attend<count()>(queries, keys + start, values + start, keys + start + C * E, weights, outs,
                                                sums, seen, E, C);
                            };
                            if (g + 1 < G) run(std::integral_constant<int, 2>());
                            else run(std::integral_constant<int, 1>());
                        }
                    }
            };
            if (cache->bfloat16) attention((uint16_t *)cache->keys, (uint16_t *)cache->values);
            else attention((float *)cache->keys, (float *)cache->values);
            product(attended, T, H * E, w.out, D, add(x, padded(D), w.out_bias));
            #pragma omp for
            for (int64_t t = 0; t < T; t++) norm(x + t * padded(D), w.mlp_norm, normed + t * padded(D), D, eps);
            product(normed, T, D, w.gate_up, 2 * padded(F), swiglu);
            product(hidden, T, F, w.down, D, add(x, padded(D), nullptr));
        }
        #pragma omp for
        for (int64_t i = 0; i < L; i++) norm(x + last[i] * padded(D), last_norm, normed + i * padded(D), D, eps);
        multiply(normed, L, D, head, V, put(logits, padded(V), nullptr));
        if (bfloat16) end_tiles();
    }
    return -1;
}

static inline uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// Draw an id for each row of logits [B, padded(V)], which are overwritten, as generate.sample_tokens does, with the random
// number of (stream, position). Writes ids and log-probs [B]. temperature 0 is greedy, with log-probs of temperature 1.
extern "C" void draw(float *logits, int64_t B, int64_t V, float temperature, const int64_t *stream, const int64_t *position,
                     int64_t *ids, float *logprobs, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < B; b++) {
        float *row = logits + b * padded(V);
        for (int64_t i = V; i < padded(V); i++) row[i] = -INFINITY;
        vec most = vec{} - INFINITY;
        for (int64_t i = 0; i < V; i += LANES) most = load(row + i) > most ? load(row + i) : most;
        const float top = largest(most), scale = temperature ? 1 / temperature : 1;
        int64_t id = 0;
        while (row[id] != top && id < V - 1) id++;  // V - 1 where all are NaN
        double total = 0;
        for (int64_t i = 0; i < V; i += LANES) {
            vec p = exponential((load(row + i) - top) * scale);
            total += sum(p);
            store(row + i, p);
        }
        if (temperature) {
            double left = (mix(stream[b] + mix(position[b])) >> 11) * 0x1p-53 * total;
            int64_t i = 0;
            for (; i + LANES < V; i += LANES) {  // the vector in which the sum passes it, then the id
                double of = sum(load(row + i));
                if (of > left) break;
                left -= of;
            }
            for (id = i; id < V - 1 && row[id] <= left; id++) left -= row[id];
            while (id && row[id] == 0) id--;  // rounding can carry beyond the last id that has any probability
        }
        ids[b] = id;
        logprobs[b] = std::log(row[id] / total);
    }
}
