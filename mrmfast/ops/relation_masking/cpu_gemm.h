/* Matrix products of one head: packing into panels, a register-blocked kernel, and the way back to the tensors' types.
 *
 * GCC and Clang vector extensions: no intrinsics, any processor. Buffers are padded so that no kernel has edges: columns
 * to COLUMNS, rows to ROWS; what is computed in the padding is never read. Strides are in elements. */
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr long LANES = 16, ROWS = 12;
#else
constexpr long LANES = 8, ROWS = 6; /* 12 accumulators, 2 columns and 1 broadcast fill 16 registers */
#endif
constexpr long COLUMNS = 2 * LANES;

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static inline vec load(const float *from) { return *(const loose_vec *)from; }
static inline void store(float *to, vec x) { *(loose_vec *)to = x; }
static inline long round_up(long n, long step) { return (n + step - 1) / step * step; }

/* A tensor of shape (batch, heads, tokens, width). */
struct Tensor4 {
    void *data;
    ptrdiff_t stride[4];
};

template <class T> struct Slice { /* one head of a tensor */
    T *data;
    ptrdiff_t row, column;
    Slice(const Tensor4 &from, long batch, long head)
        : data((T *)from.data + batch * from.stride[0] + head * from.stride[1]), row(from.stride[2]),
          column(from.stride[3]) {}
};

struct bfloat16 {
    uint16_t bits;
};
static inline float widen(float x) { return x; }
static inline float widen(bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline void narrow(float x, float &to) { to = x; }
static inline void narrow(float x, bfloat16 &to) { /* to nearest, halves to even */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    to.bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Rows [first, last) as float32, `pitch` apart, columns up to the pitch zero. */
template <class T> static void take_rows(const Slice<T> &from, long first, long last, long width, float *to, long pitch) {
    for (long r = first; r < last; r++, to += pitch) {
        const T *row = from.data + r * from.row;
        if (from.column == 1)
            for (long c = 0; c < width; c++) to[c] = widen(row[c]);
        else
            for (long c = 0; c < width; c++) to[c] = widen(row[c * from.column]);
        for (long c = width; c < pitch; c++) to[c] = 0;
    }
}

/* Panels of COLUMNS columns: element (r, c) lies at [c / COLUMNS][r][c % COLUMNS]. */
template <class T> static void pack(const Slice<T> &from, long rows, long width, float *to) {
    for (long left = 0; left < width; left += COLUMNS, to += rows * COLUMNS) {
        Slice<T> part = from;
        part.data += left * from.column;
        take_rows(part, 0, rows, width - left < COLUMNS ? width - left : COLUMNS, to, COLUMNS);
    }
}

/* Panels of the transposed matrix: element (r, c) lies at [r / COLUMNS][c][r % COLUMNS]. */
template <class T> static void pack_transposed(const Slice<T> &from, long rows, long width, float *to) {
    for (long top = 0; top < rows; top += COLUMNS, to += width * COLUMNS) {
        long here = rows - top < COLUMNS ? rows - top : COLUMNS;
        if (here < COLUMNS) memset(to, 0, sizeof *to * width * COLUMNS);
        for (long r = 0; r < here; r++) {
            const T *row = from.data + (top + r) * from.row;
            for (long c = 0; c < width; c++) to[c * COLUMNS + r] = widen(row[c * from.column]);
        }
    }
}

template <class T>
static void give_rows(const float *from, long pitch, Slice<T> to, long first, long last, long width, float factor) {
    for (long r = first; r < last; r++, from += pitch) {
        T *row = to.data + r * to.row;
        if (to.column == 1)
            for (long c = 0; c < width; c++) narrow(from[c] * factor, row[c]);
        else
            for (long c = 0; c < width; c++) narrow(from[c] * factor, row[c * to.column]);
    }
}

/* Which way the left factor lies: its element (i, k) at a[i * pitch + k] or at a[k * pitch + i]. */
enum Left { PLAIN, TRANSPOSED };

template <Left left, bool add>
static inline void kernel(long inner, const float *a, long a_pitch, const float *b, long b_pitch, float *c, long c_pitch,
                          float factor) {
    vec sum[ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
        sum[i][0] = add ? load(c + i * c_pitch) : vec{};
        sum[i][1] = add ? load(c + i * c_pitch + LANES) : vec{};
    }
    for (long k = 0; k < inner; k++, b += b_pitch) {
        vec b0 = load(b), b1 = load(b + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
            float x = left == PLAIN ? a[i * a_pitch + k] : a[k * a_pitch + i];
            sum[i][0] += x * b0;
            sum[i][1] += x * b1;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
        store(c + i * c_pitch, add ? sum[i][0] : sum[i][0] * factor);
        store(c + i * c_pitch + LANES, add ? sum[i][1] : sum[i][1] * factor);
    }
}

/* C = factor A B, or C += A B. B lies in panels: `panel` from one to the next, `b_pitch` from row to row.
 * Every element is summed in the order of k by the same instructions wherever it lies in a tile, so that scores
 * computed again in the backward pass meet the saved thresholds exactly. */
template <Left left, bool add>
__attribute__((noinline)) static void product(long rows, long columns, long inner, const float *a, long a_pitch,
                                              const float *b, long b_pitch, long panel, float *c, long c_pitch,
                                              float factor) {
    for (long j = 0; j < columns; j += COLUMNS, b += panel)
        for (long i = 0; i < rows; i += ROWS)
            kernel<left, add>(inner, left == PLAIN ? a + i * a_pitch : a + i, a_pitch, b, b_pitch, c + i * c_pitch + j,
                              c_pitch, factor);
}
