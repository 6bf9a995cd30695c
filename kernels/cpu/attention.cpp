// Attention over packed segments on a CPU, forward and backward, rotary embedding included (attention.py calls it).
//
// A family is a segment without parent and its children, who see it whole: one thread takes one key head of one family,
// and copies of its keys and values stay in the core's cache while queries pass, a token at a time. Nothing is padded, no
// scores are kept: the backward makes them again from the logarithm of their sum. Order, and with it every bit of the
// result, does not depend on the threads.

#include "common.h"
#include <vector>

extern "C" {

struct Packed {  // T tokens of segments; members: the segments, family by family, parents first
    int64_t T, families, longest;  // longest: tokens that any token sees, itself included
    const int64_t *position, *start, *length, *parent, *members, *first;  // first [families + 1] into members
};

struct Heads {
    int64_t H, K, E, positions;
    const float *rope;  // [2, positions, E / 2]
};

}

namespace {

struct Room {  // of one thread, for a key head of a family: T tokens, rounded up to whole blocks
    int64_t size;
    std::vector<float> keys, rows, values, value_rows, key_slopes, value_slopes, weights, slopes, q;
    Room(int64_t longest, int64_t G, int64_t E, bool backward) : size((longest + LANES - 1) / LANES * LANES) {
        // what lies behind the last token is multiplied by zero: it must be a number
        keys.resize(size * E), value_rows.resize(size * E), weights.resize(4 * size), q.resize(2 * G * E);
        if (!backward) return;
        rows.resize(size * E), values.resize(size * E), slopes.resize(4 * size);
        key_slopes.resize(size * E), value_slopes.resize(size * E);
    }
};

// Token n of those seen, at `token` of the batch: its key, rotated, and its value, in blocks and in rows.
void take(Room &room, const Heads &h, const float *qkv, int64_t position, int64_t k, int64_t n, bool backward) {
    const int64_t E = h.E;
    const float *key = qkv + (h.H + k) * E, *value = key + h.K * E, *cosine = h.rope + position * E / 2;
    float rotated[E];
    rotate(key, rotated, cosine, cosine + h.positions * E / 2, E);
    for (int64_t e = 0; e < E; e++) room.keys[blocked(n, e, E)] = rotated[e];
    memcpy(&room.value_rows[n * E], value, E * sizeof(float));
    if (!backward) return;
    memcpy(&room.rows[n * E], rotated, E * sizeof(float));
    for (int64_t e = 0; e < E; e++) room.values[blocked(n, e, E)] = value[e];
}

// Up to four queries at once, two heads of two tokens where there are: they share what is read of keys and values.
struct Queries {
    int count = 0;
    const float *q[4], *out[4], *dout[4];
    float *to[4], *lse[4];
    int64_t n[4], token[4];
};

// The slopes of N queries: q (rotated), out, dout, lse -> to [E], before it is turned back; those of keys and values are
// added to the room's.
template <int N>
void slopes(Room &room, const Queries &all, int64_t E) {
    const float scale = 1.0f / std::sqrt((float)E);
    const int64_t longest = all.n[N - 1];
    float delta[N];
    for (int i = 0; i < N; i++) {
        vec products = {};
        for (int64_t e = 0; e < E; e += LANES) products += load(all.out[i] + e) * load(all.dout[i] + e);
        delta[i] = sum(products);
    }
    for (int64_t t = 0; t < longest; t += LANES) {
        vec scores[N] = {}, down[N] = {};
        for (int64_t e = 0; e < E; e++) {
            vec key = load(&room.keys[t * E + e * LANES]), value = load(&room.values[t * E + e * LANES]);
            for (int i = 0; i < N; i++) scores[i] += all.q[i][e] * key, down[i] += all.dout[i][e] * value;
        }
        for (int i = 0; i < N; i++) {
            ivec behind = INDEX + (int)(t - all.n[i]);
            vec weight = exponential(scores[i] * scale - *all.lse[i]);
            weight = behind < 0 ? weight : vec{};
            store(&room.weights[i * room.size + t], weight);
            store(&room.slopes[i * room.size + t], weight * (down[i] - delta[i]) * scale);
        }
    }
    for (int64_t e = 0; e < E; e += LANES) {
        vec sums[N] = {}, query[N], from[N];
        for (int i = 0; i < N; i++) query[i] = load(all.q[i] + e), from[i] = load(all.dout[i] + e);
        for (int64_t t = 0; t < longest; t++) {
            vec key = load(&room.rows[t * E + e]);
            vec key_slope = load(&room.key_slopes[t * E + e]), value_slope = load(&room.value_slopes[t * E + e]);
            for (int i = 0; i < N; i++) {
                float slope = room.slopes[i * room.size + t];
                sums[i] += slope * key;
                key_slope += slope * query[i];
                value_slope += room.weights[i * room.size + t] * from[i];
            }
            store(&room.key_slopes[t * E + e], key_slope), store(&room.value_slopes[t * E + e], value_slope);
        }
        for (int i = 0; i < N; i++) store(all.to[i] + e, sums[i]);
    }
}

// The slopes that have come together for keys and values from token `from` to `to` of those seen go to the batch.
void give(Room &room, const Heads &h, float *dqkv, const int64_t *position, int64_t k, int64_t from, int64_t to) {
    const int64_t E = h.E, all = (h.H + 2 * h.K) * E;
    for (int64_t n = from; n < to; n++) {
        const float *cosine = h.rope + position[n - from] * E / 2;
        float *key = dqkv + (n - from) * all + (h.H + k) * E;
        rotate(&room.key_slopes[n * E], key, cosine, cosine + h.positions * E / 2, E, -1);
        memcpy(key + h.K * E, &room.value_slopes[n * E], E * sizeof(float));
    }
    std::fill(&room.key_slopes[from * E], &room.key_slopes[to * E], 0.0f);
    std::fill(&room.value_slopes[from * E], &room.value_slopes[to * E], 0.0f);
}

// All queries of a segment at key head k, which sees `before` tokens of its parent: four at a time given to `each`.
template <class Each>
void each_query(Room &room, const Packed &packed, const Heads &h, const float *qkv, int64_t k, int64_t s, int64_t before,
                bool backward, Each each) {
    const int64_t E = h.E, G = h.H / h.K, all = (h.H + 2 * h.K) * E, stop = packed.start[s] + packed.length[s];
    for (int64_t first = packed.start[s]; first < stop; first += 2) {
        const int64_t tokens = first + 1 < stop ? 2 : 1;
        for (int64_t j = 0; j < tokens; j++) {
            const float *from = qkv + (first + j) * all;
            const int64_t position = packed.position[first + j];
            const float *cosine = h.rope + position * E / 2, *sine = cosine + h.positions * E / 2;
            take(room, h, from, position, k, before + first + j - packed.start[s], backward);
            for (int64_t g = 0; g < G; g++) rotate(from + (k * G + g) * E, &room.q[(j * G + g) * E], cosine, sine, E);
        }
        for (int64_t g = 0; g < G; g += 2) {
            Queries queries;
            for (int64_t j = 0; j < tokens; j++)
                for (int64_t i = g; i < g + 2 && i < G; i++) {
                    queries.q[queries.count] = &room.q[(j * G + i) * E];
                    queries.n[queries.count] = before + first + j - packed.start[s] + 1;
                    queries.token[queries.count++] = (first + j) * h.H + k * G + i;  // in [T, H]
                }
            each(queries);
        }
    }
}

// each(room, key head, segment, tokens of the parent) for all families, then end(room, key head, parent).
template <class Each, class End>
void each_segment(const Packed &packed, const Heads &h, bool backward, int threads, Each each, End end) {
    #pragma omp parallel num_threads(threads)
    {
        Room room(packed.longest, h.H / h.K, h.E, backward);
        #pragma omp for collapse(2) schedule(dynamic)
        for (int64_t f = 0; f < packed.families; f++)
            for (int64_t k = 0; k < h.K; k++) {
                const int64_t *members = packed.members + packed.first[f], *stop = packed.members + packed.first[f + 1];
                for (const int64_t *s = members; s < stop; s++)
                    each(room, k, *s, s == members ? 0 : packed.length[*members]);
                end(room, k, *members);
            }
    }
}

}

// qkv [T, H + 2 K, E] before rotation -> out [T, H, E] and lse [T, H].
extern "C" void attention(const Packed *packed, const Heads *heads, const float *qkv, float *out, float *lse, int threads) {
    const int64_t E = heads->E;
    each_segment(*packed, *heads, false, threads, [=](Room &room, int64_t k, int64_t s, int64_t before) {
        each_query(room, *packed, *heads, qkv, k, s, before, false, [&](Queries &some) {
            for (int i = 0; i < some.count; i++) some.to[i] = out + some.token[i] * E, some.lse[i] = lse + some.token[i];
            const float *keys = room.keys.data(), *values = room.value_rows.data();
            auto run = [&](auto count) {
                attend<count()>(some.q, keys, values, keys, room.weights.data(), some.to, some.lse, some.n, E, room.size);
            };
            if (some.count == 4) run(std::integral_constant<int, 4>());
            else if (some.count == 2) run(std::integral_constant<int, 2>());
            else run(std::integral_constant<int, 1>());
        });
    }, [](Room &, int64_t, int64_t) {});
}

// dqkv [T, H + 2 K, E] from dout [T, H, E].
extern "C" void attention_backward(const Packed *packed, const Heads *heads, const float *qkv, const float *out,
                                   float *lse, const float *dout, float *dqkv, int threads) {
    const int64_t H = heads->H, E = heads->E, all = (H + 2 * heads->K) * E;
    each_segment(*packed, *heads, true, threads, [=](Room &room, int64_t k, int64_t s, int64_t before) {
        const int64_t start = packed->start[s], length = packed->length[s];
        float dq[4 * E];
        each_query(room, *packed, *heads, qkv, k, s, before, true, [&](Queries &some) {
            for (int i = 0; i < some.count; i++) {
                some.out[i] = out + some.token[i] * E, some.dout[i] = dout + some.token[i] * E;
                some.lse[i] = lse + some.token[i], some.to[i] = dq + i * E;
            }
            if (some.count == 4) slopes<4>(room, some, E);
            else if (some.count == 2) slopes<2>(room, some, E);
            else slopes<1>(room, some, E);
            for (int i = 0; i < some.count; i++) {
                const int64_t token = some.token[i] / H, head = some.token[i] % H;
                const float *cosine = heads->rope + packed->position[token] * E / 2;
                rotate(dq + i * E, dqkv + token * all + head * E, cosine, cosine + heads->positions * E / 2, E, -1);
            }
        });
        if (before) give(room, *heads, dqkv + start * all, packed->position + start, k, before, before + length);
    }, [=](Room &room, int64_t k, int64_t s) {
        const int64_t start = packed->start[s];
        give(room, *heads, dqkv + start * all, packed->position + start, k, 0, packed->length[s]);
    });
}
