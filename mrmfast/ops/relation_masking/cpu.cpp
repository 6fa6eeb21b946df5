/* Relation masking on the CPU: forward and backward of one (batch, head) at a time, nothing of N x N kept.
 *
 * A head's keys and values are packed once; then tiles of query rows go through scores, selection, softmax and the
 * products with V while they lie in the second-level cache. The backward pass computes the scores again from q and k.
 * A head belongs to one thread, which adds up its key and value gradients in the order of rows: results do not depend
 * on the number of threads. Arithmetic is float32 throughout; bfloat16 is rounded once, on the way out. */
#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu_rows.h"

extern "C" {

struct Problem {
    int64_t batch, heads, queries, keys, width, value_width, threads;
    Guess guess; /* count is int64_t too: m, how many entries of a row are masked */
    float scale; /* 1 / sqrt(d) */
    int32_t is_bfloat16;
};
}

constexpr long TILE = 4 * ROWS * (ROWS == 6 ? 2 : 1); /* query rows at a time */

/* Length of a row of scores: whole panels, and no multiple of 512 bytes, or the rows of a tile fight for cache sets. */
static long score_pitch(long keys) {
    long pitch = round_up(keys, COLUMNS);
    return pitch % 128 ? pitch : pitch + COLUMNS;
}

/* Buffers of one thread, cut from one piece of memory in this order. */
struct Workspace {
    long pitch, width, value_width; /* padded lengths of rows */
    float *keys_across, *keys, *values, *keys_gradient, *values_gradient, *queries, *outputs, *scores, *products, *end;

    Workspace(const Problem &p, float *memory)
        : pitch(score_pitch(p.keys)), width(round_up(p.width, COLUMNS)), value_width(round_up(p.value_width, COLUMNS)) {
        /* The kernel reads up to ROWS beyond the last row or column of its left factor. */
        const long rows = 2 * TILE + ROWS, keys_padded = round_up(p.keys, COLUMNS) + ROWS;
        auto cut = [&memory](long floats) {
            float *start = memory;
            memory += round_up(floats, 64);
            return start;
        };
        keys_across = cut(keys_padded * width);
        keys = cut(keys_padded * width);
        values = cut(keys_padded * value_width);
        keys_gradient = cut(keys_padded * width);
        values_gradient = cut(keys_padded * value_width);
        queries = cut(rows * width);
        outputs = cut(rows * (width > value_width ? width : value_width));
        scores = cut(rows * pitch);
        products = cut(rows * pitch);
        end = memory;
    }
};

/* Scores of query rows [first, last) with all keys, -inf beyond the last key. */
template <class T>
static void score(const Problem &p, const Workspace &w, const Slice<T> &q, long first, long last) {
    long rows = last - first, padded = round_up(p.keys, COLUMNS);
    take_rows(q, first, last, p.width, w.queries, w.width);
    product<PLAIN, false>(rows, p.keys, p.width, w.queries, w.width, w.keys_across, COLUMNS, p.width * COLUMNS, w.scores,
                          w.pitch, p.scale);
    for (long i = 0; i < rows; i++)
        for (long j = p.keys; j < padded; j++) w.scores[i * w.pitch + j] = -INF;
}

template <class T>
static void forward(const Problem &p, const Workspace &w, const Slice<T> &q, const Slice<T> &k, const Slice<T> &v,
                    const Slice<T> &intact, const Slice<T> &masked, Row *rows) {
    pack_transposed(k, p.keys, p.width, w.keys_across);
    pack(v, p.keys, p.value_width, w.values);
    float inverse[TILE];
    for (long first = 0; first < p.queries; first += TILE) {
        long last = first + TILE < p.queries ? first + TILE : p.queries, here = last - first;
        score(p, w, q, first, last);
        /* Masked relations follow the intact ones, so that one product makes both outputs. */
        long below = intact.data && masked.data ? here : 0;
        for (long i = 0; i < here; i++) {
            float *s = w.scores + i * w.pitch;
            Row row = relate(s, p.keys, p.guess, intact.data ? s : nullptr, masked.data ? s + below * w.pitch : nullptr);
            inverse[i] = row.inverse_sum == row.inverse_sum ? row.inverse_sum : 1.0f; /* NaN is in the row already */
            rows[first + i] = row;
        }
        product<PLAIN, false>(below + here, p.value_width, p.keys, w.scores, w.pitch, w.values, COLUMNS, p.keys * COLUMNS,
                              w.outputs, w.value_width, 1.0f);
        for (long i = 0; i < here; i++) {
            const float *out = w.outputs + i * w.value_width;
            if (intact.data) give_rows(out, 0, intact, first + i, first + i + 1, p.value_width, inverse[i]);
            out += below * w.value_width;
            if (masked.data) give_rows(out, 0, masked, first + i, first + i + 1, p.value_width, inverse[i]);
        }
    }
}

template <class T>
static void backward(const Problem &p, const Workspace &w, const Slice<T> &q, const Slice<T> &k, const Slice<T> &v,
                     const Slice<T> &d_intact, const Slice<T> &d_masked, const Row *rows, const Slice<T> &dq,
                     const Slice<T> &dk, const Slice<T> &dv) {
    pack_transposed(k, p.keys, p.width, w.keys_across);
    pack(k, p.keys, p.width, w.keys);
    pack_transposed(v, p.keys, p.value_width, w.values);
    memset(w.keys_gradient, 0, sizeof(float) * (round_up(p.keys, COLUMNS) + ROWS) * w.width);
    memset(w.values_gradient, 0, sizeof(float) * (round_up(p.keys, COLUMNS) + ROWS) * w.value_width);
    for (long first = 0; first < p.queries; first += TILE) {
        long last = first + TILE < p.queries ? first + TILE : p.queries, here = last - first;
        /* The masked output's gradients, products and relations follow the intact one's. */
        long below = d_intact.data && d_masked.data ? here : 0;
        if (d_intact.data) take_rows(d_intact, first, last, p.value_width, w.outputs, w.value_width);
        float *under = w.outputs + below * w.value_width;
        if (d_masked.data) take_rows(d_masked, first, last, p.value_width, under, w.value_width);
        product<PLAIN, false>(below + here, p.keys, p.value_width, w.outputs, w.value_width, w.values, COLUMNS,
                              p.value_width * COLUMNS, w.products, w.pitch, 1.0f);
        score(p, w, q, first, last);
        for (long i = 0; i < here; i++) {
            float *s = w.scores + i * w.pitch, *g = w.products + i * w.pitch;
            float *other = s + here * w.pitch; /* of intact or masked, the one that follows or that dV does not need */
            relate_backward(s, p.keys, rows[first + i], d_intact.data ? g : nullptr,
                            d_masked.data ? g + below * w.pitch : nullptr, d_intact.data ? s : other,
                            d_intact.data ? other : s, g);
        }
        product<TRANSPOSED, true>(p.keys, p.value_width, below + here, w.scores, w.pitch, w.outputs, w.value_width,
                                  COLUMNS, w.values_gradient, w.value_width, 1.0f);
        product<TRANSPOSED, true>(p.keys, p.width, here, w.products, w.pitch, w.queries, w.width, COLUMNS,
                                  w.keys_gradient, w.width, 1.0f);
        product<PLAIN, false>(here, p.width, p.keys, w.products, w.pitch, w.keys, COLUMNS, p.keys * COLUMNS, w.outputs,
                              w.width, 1.0f);
        give_rows(w.outputs, w.width, dq, first, last, p.width, p.scale);
    }
    give_rows(w.keys_gradient, w.width, dk, 0, p.keys, p.width, p.scale);
    give_rows(w.values_gradient, w.value_width, dv, 0, p.keys, p.value_width, 1.0f);
}

/* Run `head(batch, head, workspace)` for all heads, shared among threads. */
template <class Head> static void all_heads(const Problem &p, float *memory, long floats, Head head) {
#pragma omp parallel num_threads((int)p.threads)
    {
#pragma omp for schedule(dynamic)
        for (long i = 0; i < p.batch * p.heads; i++) {
#ifdef _OPENMP
            Workspace w(p, memory + omp_get_thread_num() * floats);
#else
            Workspace w(p, memory);
#endif
            head(i / p.heads, i % p.heads, w);
        }
    }
}

template <class T>
static void forward_all(const Problem &p, const Tensor4 *t, Row *rows, float *memory, long floats) {
    all_heads(p, memory, floats, [&](long b, long h, const Workspace &w) {
        Slice<T> q(t[0], b, h), k(t[1], b, h), v(t[2], b, h), intact(t[3], b, h), masked(t[4], b, h);
        forward(p, w, q, k, v, intact, masked, rows + (b * p.heads + h) * p.queries);
    });
}

template <class T>
static void backward_all(const Problem &p, const Tensor4 *t, const Row *rows, float *memory, long floats) {
    all_heads(p, memory, floats, [&](long b, long h, const Workspace &w) {
        Slice<T> q(t[0], b, h), k(t[1], b, h), v(t[2], b, h), d_intact(t[3], b, h), d_masked(t[4], b, h);
        Slice<T> dq(t[5], b, h), dk(t[6], b, h), dv(t[7], b, h);
        backward(p, w, q, k, v, d_intact, d_masked, rows + (b * p.heads + h) * p.queries, dq, dk, dv);
    });
}

extern "C" {

/* Floats of workspace that a thread needs. */
int64_t relation_workspace(const Problem *p) { return Workspace(*p, nullptr).end - (float *)nullptr; }

/* tensors: q, k, v, intact, masked; an output without data is not wanted. rows: (batch, heads, queries) of Row. */
void relation_forward(const Problem *p, const Tensor4 *tensors, float *rows, float *memory, int64_t floats) {
    if (p->is_bfloat16)
        forward_all<bfloat16>(*p, tensors, (Row *)rows, memory, floats);
    else
        forward_all<float>(*p, tensors, (Row *)rows, memory, floats);
}

/* tensors: q, k, v, gradients of intact and masked (without data: none), gradients of q, k, v. */
void relation_backward(const Problem *p, const Tensor4 *tensors, const float *rows, float *memory, int64_t floats) {
    if (p->is_bfloat16)
        backward_all<bfloat16>(*p, tensors, (const Row *)rows, memory, floats);
    else
        backward_all<float>(*p, tensors, (const Row *)rows, memory, floats);
}
}
