/* Relation masking on the CPU: forward and backward of one (batch, head) at a time, without N x N matrices in memory.
 *
 * The keys and values of a head are packed once. Then each tile of query rows passes through scores, selection, softmax
 * and the products with V while it lies in the second-level cache. The backward pass computes the scores again from q
 * and k. One thread processes a head and sums its key and value gradients in the order of rows, so results do not depend
 * on the number of threads. Arithmetic is float32; bfloat16 outputs are rounded once. The equations are in README.md. */
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

constexpr long TILE = 4 * ROWS * (ROWS == 6 ? 2 : 1); /* query rows of a tile */

/* Length of a row of scores: whole panels, and no multiple of 512 bytes, which would map the rows of a tile to the same
 * cache sets. */
static long score_pitch(long keys) {
    long pitch = round_up(keys, COLUMNS);
    return pitch % 128 ? pitch : pitch + COLUMNS;
}

/* Inputs of a head, or their gradients. */
template <class T> struct Inputs {
    Slice<T> q, k, v;
};

/* Outputs of a head, or their gradients; an absent one has no data. */
template <class T> struct Outputs {
    Slice<T> intact, masked;
};

/* Buffers of one thread, cut from one piece of memory in this order. */
struct Workspace {
    float *keys_transposed, *keys, *values; /* memory of panels */
    Matrix keys_gradient, values_gradient, queries, outputs, queries_gradient, scores, products;
    float *end;

    Workspace(const Problem &p, float *memory) {
        /* The kernel reads up to ROWS beyond the last row or column of its left factor. */
        const long rows = 2 * TILE + ROWS, keys_padded = round_up(p.keys, COLUMNS) + ROWS, pitch = score_pitch(p.keys);
        const long width = round_up(p.width, COLUMNS), value_width = round_up(p.value_width, COLUMNS);
        auto cut = [&memory](long floats) {
            float *start = memory;
            memory += round_up(floats, 64);
            return start;
        };
        keys_transposed = cut(keys_padded * width);
        keys = cut(keys_padded * width);
        values = cut(keys_padded * value_width);
        keys_gradient = {cut(keys_padded * width), width};
        values_gradient = {cut(keys_padded * value_width), value_width};
        queries = {cut(rows * width), width};
        outputs = {cut(rows * (width > value_width ? width : value_width)), value_width};
        queries_gradient = {outputs.data, width}; /* overwrites the outputs after their last use */
        scores = {cut(rows * pitch), pitch};
        products = {cut(rows * pitch), pitch};
        end = memory;
    }
};

/* Scores of a tile of query rows with all keys, -inf beyond the last key. */
template <class T>
static void score(const Problem &p, const Workspace &w, const Slice<T> &q, Range tile, const Panels &keys_transposed) {
    take_rows(q, tile, p.width, w.queries);
    product<PLAIN, false>({tile.size(), p.keys, p.width}, w.queries, keys_transposed, w.scores, p.scale);
    const long padded = round_up(p.keys, COLUMNS);
    for (long i = 0; i < tile.size(); i++)
        for (long j = p.keys; j < padded; j++) w.scores.row(i)[j] = -INF;
}

/* The tile of query rows that starts at `first`. */
static inline Range tile_from(long first, long queries) {
    return {first, first + TILE < queries ? first + TILE : queries};
}

template <class T>
static void forward(const Problem &p, const Workspace &w, const Inputs<T> &in, const Outputs<T> &out, Row *rows) {
    const Panels keys_transposed = pack_transposed(in.k, p.keys, p.width, w.keys_transposed);
    const Panels values = pack(in.v, p.keys, p.value_width, w.values);
    float inverse[TILE];
    for (long first = 0; first < p.queries; first += TILE) {
        const Range tile = tile_from(first, p.queries);
        const long count = tile.size();
        score(p, w, in.q, tile, keys_transposed);
        /* The rows of masked relations follow those of intact relations, so that one product computes both outputs. */
        const long masked_row = out.intact.data && out.masked.data ? count : 0;
        for (long i = 0; i < count; i++) {
            float *s = w.scores.row(i), *masked = w.scores.row(i + masked_row);
            Row row = relate(s, p.keys, p.guess, out.intact.data ? s : nullptr, out.masked.data ? masked : nullptr);
            inverse[i] = row.inverse_sum == row.inverse_sum ? row.inverse_sum : 1.0f; /* the relations are NaN already */
            rows[first + i] = row;
        }
        product<PLAIN, false>({masked_row + count, p.value_width, p.keys}, w.scores, values, w.outputs, 1.0f);
        for (long i = 0; i < count; i++) {
            const Range row = {first + i, first + i + 1};
            const Matrix intact = w.outputs.from_row(i), masked = w.outputs.from_row(i + masked_row);
            if (out.intact.data) give_rows(intact, out.intact, row, p.value_width, inverse[i]);
            if (out.masked.data) give_rows(masked, out.masked, row, p.value_width, inverse[i]);
        }
    }
}

template <class T>
static void backward(const Problem &p, const Workspace &w, const Inputs<T> &in, const Outputs<T> &d_out, const Row *rows,
                     const Inputs<T> &d_in) {
    const Panels keys_transposed = pack_transposed(in.k, p.keys, p.width, w.keys_transposed);
    const Panels keys = pack(in.k, p.keys, p.width, w.keys);
    const Panels values_transposed = pack_transposed(in.v, p.keys, p.value_width, w.values);
    const long keys_padded = round_up(p.keys, COLUMNS) + ROWS;
    memset(w.keys_gradient.data, 0, sizeof(float) * keys_padded * w.keys_gradient.pitch);
    memset(w.values_gradient.data, 0, sizeof(float) * keys_padded * w.values_gradient.pitch);
    for (long first = 0; first < p.queries; first += TILE) {
        const Range tile = tile_from(first, p.queries);
        const long count = tile.size();
        /* The rows of the masked output's gradients, products and relations follow those of the intact output. */
        const long masked_row = d_out.intact.data && d_out.masked.data ? count : 0, all = masked_row + count;
        if (d_out.intact.data) take_rows(d_out.intact, tile, p.value_width, w.outputs);
        if (d_out.masked.data) take_rows(d_out.masked, tile, p.value_width, w.outputs.from_row(masked_row));
        product<PLAIN, false>({all, p.keys, p.value_width}, w.outputs, values_transposed, w.products, 1.0f);
        score(p, w, in.q, tile, keys_transposed);
        for (long i = 0; i < count; i++) {
            float *s = w.scores.row(i), *g = w.products.row(i);
            /* dV needs the relations of each output with a gradient, in the order of the outputs: the first overwrites
             * the scores. The relations that dV does not need, or the second ones, go `count` rows below. */
            float *below = w.scores.row(i + count);
            relate_backward(s, p.keys, rows[first + i], d_out.intact.data ? g : nullptr,
                            d_out.masked.data ? w.products.row(i + masked_row) : nullptr, d_out.intact.data ? s : below,
                            d_out.intact.data ? below : s, g);
        }
        product<TRANSPOSED, true>({p.keys, p.value_width, all}, w.scores, Panels(w.outputs), w.values_gradient, 1.0f);
        product<TRANSPOSED, true>({p.keys, p.width, count}, w.products, Panels(w.queries), w.keys_gradient, 1.0f);
        product<PLAIN, false>({count, p.width, p.keys}, w.products, keys, w.queries_gradient, 1.0f);
        give_rows(w.queries_gradient, d_in.q, tile, p.width, p.scale);
    }
    give_rows(w.keys_gradient, d_in.k, {0, p.keys}, p.width, p.scale);
    give_rows(w.values_gradient, d_in.v, {0, p.keys}, p.value_width, 1.0f);
}

/* Call `head(batch, head, workspace)` for all heads, in parallel. */
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
        const Inputs<T> in = {{t[0], b, h}, {t[1], b, h}, {t[2], b, h}};
        const Outputs<T> out = {{t[3], b, h}, {t[4], b, h}};
        forward(p, w, in, out, rows + (b * p.heads + h) * p.queries);
    });
}

template <class T>
static void backward_all(const Problem &p, const Tensor4 *t, const Row *rows, float *memory, long floats) {
    all_heads(p, memory, floats, [&](long b, long h, const Workspace &w) {
        const Inputs<T> in = {{t[0], b, h}, {t[1], b, h}, {t[2], b, h}};
        const Inputs<T> d_in = {{t[5], b, h}, {t[6], b, h}, {t[7], b, h}};
        const Outputs<T> d_out = {{t[3], b, h}, {t[4], b, h}};
        backward(p, w, in, d_out, rows + (b * p.heads + h) * p.queries, d_in);
    });
}

extern "C" {

/* Size of one thread's workspace, in floats. */
int64_t relation_workspace(const Problem *p) { return Workspace(*p, nullptr).end - (float *)nullptr; }

/* tensors: q, k, v, intact, masked; an output without data is not computed. rows: Row per (batch, head, query). */
void relation_forward(const Problem *p, const Tensor4 *tensors, float *rows, float *memory, int64_t floats) {
    if (p->is_bfloat16)
        forward_all<bfloat16>(*p, tensors, (Row *)rows, memory, floats);
    else
        forward_all<float>(*p, tensors, (Row *)rows, memory, floats);
}

/* tensors: q, k, v, gradients of intact and masked (no data: no gradient), gradients of q, k, v. */
void relation_backward(const Problem *p, const Tensor4 *tensors, const float *rows, float *memory, int64_t floats) {
    if (p->is_bfloat16)
        backward_all<bfloat16>(*p, tensors, (const Row *)rows, memory, floats);
    else
        backward_all<float>(*p, tensors, (const Row *)rows, memory, floats);
}
}
