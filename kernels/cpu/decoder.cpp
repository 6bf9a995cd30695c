// A model's forward pass on a CPU for sampling: ids and a KV cache in, logits out; then draws. decoder.py calls it.
//
// PyTorch spends most of a decoding step between its operators: for a small model each of some sixty calls is a few
// microseconds of arithmetic. Here a step is one call and one parallel region. Weights are packed in panels (PANEL
// outputs, all inputs), so that each weight is read in order and serves all rows of a tile from registers. The order of
// each sum depends neither on the batch nor on the threads: the logits of a row are the same bits alone and among others.
//
// Shapes: T tokens, D width, H query heads on K key/value heads of width E, F feed-forward width, V vocabulary.

#include "common.h"
#include <sys/mman.h>

#if defined(_OPENMP)
#include <omp.h>
static int thread() { return omp_get_thread_num(); }
#else
static int thread() { return 0; }
#endif

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern "C" {

struct Layer {  // matrices in panels; null where a family has no such thing
    const float *cos, *sin;  // [positions, E / 2]
    const float *attn_norm, *qkv_bias, *q_norm, *k_norm, *out_bias, *mlp_norm;
    const void *qkv, *out, *gate_up, *down;  // float, or bfloat16
};

struct Model {
    int64_t D, layers, H, K, E, F, V, bfloat16;  // bfloat16: of the matrices; 2: on the matrix unit
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

// A tile of R rows and a panel: sums[r] = sum over d of x[r][d] * w[d][:]; then done(r, sums[r]). While it works, it asks
// for `lines` vectors at `ahead` for each column of the panel. It is not inlined: in a large function the compiler would
// keep the sums in memory.
#define TILE template <int R, class Done> __attribute__((noinline)) static void

static inline const char *ask(const char *ahead, int lines) {
    for (int i = 0; i < lines; i++) __builtin_prefetch(ahead + i * 4 * LANES, 0, 2);
    return ahead + lines * 4 * LANES;
}

TILE tile(const float *x, int64_t stride, int64_t D, const float *w, const char *ahead, int lines, Done done) {
    vec sums[R][VECTORS] = {};
    for (int64_t d = 0; d < D; d++, w += PANEL) {
        ahead = ask(ahead, lines);
        for (int v = 0; v < VECTORS; v++) {
            vec weight = load(w + v * LANES);
            for (int r = 0; r < R; r++) sums[r][v] += x[r * stride + d] * weight;
        }
    }
    for (int r = 0; r < R; r++) done(r, sums[r]);
}

// The same with weights in bfloat16, pairs of inputs side by side: w [D / 2, PANEL, 2], D even.
TILE tile(const float *x, int64_t stride, int64_t D, const uint16_t *w, const char *ahead, int lines, Done done) {
    vec sums[R][VECTORS] = {};
    for (int64_t d = 0; d < D; d += 2, w += 2 * PANEL) {
        ahead = ask(ahead, lines);
        for (int v = 0; v < VECTORS; v++) {
            ivec pairs;
            memcpy(&pairs, w + 2 * v * LANES, sizeof pairs);
            const vec first = (vec)(pairs << 16), second = (vec)(pairs & (int32_t)0xffff0000);
            for (int r = 0; r < R; r++) {
                sums[r][v] += x[r * stride + d] * first;
                sums[r][v] += x[r * stride + d + 1] * second;
            }
        }
    }
    for (int r = 0; r < R; r++) done(r, sums[r]);
}

// The rows of x [rows, padded(D)] as a tile takes them with these weights; `room`: for rows in bfloat16.
static inline const float *inputs(const float *x, int64_t, int64_t, const float *, uint16_t *) { return x; }

#if defined(__AVX512BF16__)
// The same with x in bfloat16 too: one instruction multiplies and adds both numbers of a pair.
TILE tile(const uint16_t *x, int64_t stride, int64_t D, const uint16_t *w, const char *ahead, int lines, Done done) {
    __m512 sums[R][VECTORS];
    for (int i = 0; i < R * VECTORS; i++) sums[i / VECTORS][i % VECTORS] = _mm512_setzero_ps();
    for (int64_t d = 0; d < D; d += 2, w += 2 * PANEL) {
        ahead = ask(ahead, lines);
        __m512bh inputs[R];
        for (int r = 0; r < R; r++) {
            int32_t pair;
            memcpy(&pair, x + r * stride + d, sizeof pair);
            inputs[r] = (__m512bh)_mm512_set1_epi32(pair);
        }
        for (int v = 0; v < VECTORS; v++) {
            const __m512bh weights = (__m512bh)_mm512_loadu_si512(w + 2 * v * LANES);
            for (int r = 0; r < R; r++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], inputs[r], weights);
        }
    }
    for (int r = 0; r < R; r++) {
        vec row[VECTORS];
        for (int v = 0; v < VECTORS; v++) row[v] = (vec)sums[r][v];
        done(r, row);
    }
}

static inline const uint16_t *inputs(const float *x, int64_t rows, int64_t D, const uint16_t *, uint16_t *room) {
    for (int64_t i = 0; i < rows * padded(D); i += LANES) store(room + i, load(x + i));
    return room;
}
extern "C" int rounds_inputs() { return 1; }
#else
static inline const float *inputs(const float *x, int64_t, int64_t, const uint16_t *, uint16_t *) { return x; }
extern "C" int rounds_inputs() { return 0; }
#endif

// x [B, padded(D)] times panels w; then done(row, first column, sums). Threads share the panels. Many rows are cut into
// parts of about a hundred, which stay in a core's cache.
template <class Weight, class Done>
static void multiply(const float *x, int64_t B, int64_t D, const Weight *w, int64_t N, uint16_t *room, Done done) {
    const int64_t tiles = (B + ROWS - 1) / ROWS, parts = (tiles + 15) / 16, most = (tiles + parts - 1) / parts * ROWS;
    const int64_t stride = padded(D);
    decltype(inputs(x, B, D, w, room)) from = nullptr;
    int64_t at = -1;
    #pragma omp for collapse(2) schedule(static)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t column = 0; column < N; column += PANEL) {
            const int64_t start = part * most, stop = start + most < B ? start + most : B;
            if (at != part) from = inputs(x + start * stride, stop - start, D, w, room), at = part;
            // The tiles ask for the next panel together: memory works while they compute.
            const int64_t count = (stop - start + ROWS - 1) / ROWS, lines = (VECTORS + count - 1) / count;
            const Weight *weights = w + column * D;
            const char *next = (const char *)(weights + D * PANEL);
            for (int64_t first = start, asked = 0; first < stop; first += ROWS, asked += lines) {
                auto store_row = [&](int r, const vec *sums) { done(first + r, column, sums); };
                auto run = [&](auto rows) {
                    tile<rows()>(from + (first - start) * stride, stride, D, weights,
                                 next + asked * D * (int64_t)sizeof(Weight) * LANES, asked < VECTORS ? lines : 0, store_row);
                };
                switch (stop - first < ROWS ? stop - first : ROWS) {
                    case 1: run(std::integral_constant<int, 1>()); break;
                    case 2: run(std::integral_constant<int, 2>()); break;
                    case 3: run(std::integral_constant<int, 3>()); break;
                    case 4: run(std::integral_constant<int, 4>()); break;
                    case 5: run(std::integral_constant<int, 5>()); break;
                    default: run(std::integral_constant<int, ROWS>());
                }
            }
        }
}

// The same with weights in bfloat16 on the matrix unit (AMX): 16 rows and a panel at a time, D a multiple of 32.
#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
struct alignas(64) TileConfig {  // eight tiles of 16 rows of 64 bytes
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static void begin_tiles() { TileConfig config; _tile_loadconfig(&config); }
static void end_tiles() { _tile_release(); }

template <class Done>
static void multiply_tiles(const float *x, int64_t B, int64_t D, const uint16_t *w, int64_t N, uint16_t *room, Done done) {
    const int64_t parts = (B + 95) / 96, most = ((B + parts - 1) / parts + 15) / 16 * 16, stride = padded(D);
    int64_t at = -1;
    #pragma omp for collapse(2) schedule(static)
    for (int64_t part = 0; part < parts; part++)
        for (int64_t column = 0; column < N; column += PANEL) {
            const int64_t start = part * most, stop = start + most < B ? start + most : B;
            if (at != part) inputs(x + start * stride, stop - start, D, w, room), at = part;
            for (int64_t first = start; first < stop; first += 16) {
                const uint16_t *from = room + (first - start) * stride, *weights = w + column * D;
                alignas(64) float sums[16][PANEL];
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
                for (int64_t d = 0; d < D; d += 32) {
                    const uint16_t *panel = weights + d * PANEL;
                    _tile_loadd(4, from + d, 2 * stride);
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
static void multiply_tiles(const float *, int64_t, int64_t, const uint16_t *, int64_t, uint16_t *, Done) {}

extern "C" int tiles() { return 0; }
#endif

// A matrix [N, D] in panels: [., D, PANEL], or of bfloat16 (D even) [., D / 2, PANEL, 2]. Columns behind the last are 0.
// gated: the rows are gates and then ups; half of the columns of a panel are gates, half the ups of the same outputs.
template <class Number>
static void pack(const Number *from, int64_t N, int64_t D, bool gated, Number *to, int threads) {
    constexpr int64_t pair = 4 / sizeof(Number);
    const int64_t rows = gated ? N / 2 : N, columns = gated ? PANEL / 2 : PANEL;
    const int64_t panels = (gated ? 2 : 1) * padded(rows) / PANEL;
    #pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t first = 0; first < D; first += LANES)
            for (int64_t j = 0; j < PANEL; j++) {
                const int64_t row = p * columns + j % columns, left = D - first < LANES ? D - first : LANES;
                Number numbers[LANES] = {};
                const Number *source = from + (row + j / columns * rows) * D + first;
                if (row < rows) memcpy(numbers, source, left * sizeof(Number));
                __builtin_prefetch(source + 4 * LANES, 0, 3);
                Number *column = to + (p * D + first) * PANEL + j * pair;
                auto put = [&](int64_t count) {
                    for (int64_t i = 0; i < count; i++) column[i / pair * pair * PANEL + i % pair] = numbers[i];
                };
                if (left == LANES) put(LANES);  // a count that the compiler knows
                else put(left);
            }
}

// Memory that is about to be written for the first time: large pages, where the system has them, come ten times as fast.
extern "C" void large_pages(char *memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const int64_t page = 1 << 21, skip = -(uintptr_t)memory & (page - 1);
    if (memory && bytes >= skip + page) madvise(memory + skip, (bytes - skip) / page * page, MADV_HUGEPAGE);
#endif
}

extern "C" void pack(const void *from, int64_t N, int64_t D, int gated, int bfloat16, void *to, int threads) {
    if (bfloat16) pack((const uint16_t *)from, N, D, gated, (uint16_t *)to, threads);
    else pack((const float *)from, N, D, gated, (float *)to, threads);
}

static inline uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// A number for the bits of some memory. An edit changes it, but for one in 2^64.
extern "C" uint64_t checksum(const char *memory, int64_t bytes, int threads) {
    typedef uint32_t words __attribute__((vector_size(64)));
    const int64_t size = 1 << 20, parts = (bytes + size - 1) / size;
    uint64_t total = 0;
    #pragma omp parallel for num_threads(threads) reduction(+ : total)
    for (int64_t p = 0; p < parts; p++) {
        words state[4] = {};
        uint64_t numbers[32], mixed = p;
        for (int64_t at = p * size; at < bytes && at < (p + 1) * size; at += sizeof state) {
            words next[4] = {};
            memcpy(next, memory + at, bytes - at < (int64_t)sizeof next ? bytes - at : sizeof next);
            for (int i = 0; i < 4; i++) {
                state[i] = (state[i] ^ next[i]) * 0x9e3779b1u;
                state[i] ^= state[i] >> 15;
            }
        }
        memcpy(numbers, state, sizeof state);
        for (uint64_t number : numbers) mixed = mix(mixed ^ number);
        total += mixed;
    }
    return total;
}

// T tokens through the model. Token t has id ids[t] and stands at position[t] of cache row row[t], after tokens that the
// cache holds or that are among the T: a decoding step is one token a row, a prefill the tokens of prompts in order.
// Writes the logits [L, padded(V)] of the tokens last[0 .. L).
// scratch: T * padded(each of D, D, (H + 2 K) E, H E, F) + threads * (2 * capacity + 48 * padded(the widest of D, H E, F))
// floats. Returns -1, or the first token whose id is not below V.
extern "C" int64_t step(const Model *model, const Cache *cache, int64_t T, const int64_t *ids, const int64_t *row,
                        const int64_t *position, int64_t L, const int64_t *last,
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
        if (bfloat16 == 2) multiply_tiles(y, rows, wide, (const uint16_t *)w, N, half, done);
        else if (bfloat16) multiply(y, rows, wide, (const uint16_t *)w, N, half, done);
        else multiply(y, rows, wide, (const float *)w, N, half, done);
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
        if (bfloat16 == 2) begin_tiles();
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
                        rotate(q + h * E, q + h * E, w.cos + n * E / 2, w.sin + n * E / 2, E);
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
        multiply(normed, L, D, head, V, nullptr, put(logits, padded(V), nullptr));
        if (bfloat16 == 2) end_tiles();
    }
    return -1;
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
