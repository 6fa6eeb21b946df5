/* Matrix products of one head: packing into panels, a register-blocked kernel, and conversion to the tensors' types.
 *
 * The code uses the vector extensions of GCC and Clang: no intrinsics, any processor. Buffers are padded to multiples of
 * COLUMNS columns and ROWS rows, so the kernel has no edge cases; results in the padding are never read. Strides and
 * pitches are in elements.
 *
 * Example with COLUMNS = 4: a matrix of 3 rows and 6 columns is packed into two panels of 3 x 4,
 *
 *     a b c d e f        panel 0: a b c d  g h i j  m n o p
 *     g h i j k l   ->   panel 1: e f 0 0  k l 0 0  q r 0 0
 *     m n o p q r
 *
 * so that a product reads the right factor from consecutive addresses. */
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr long VECTOR_WIDTH = 16, ROWS = 12; /* floats per vector; rows of a register block */
#else
constexpr long VECTOR_WIDTH = 8, ROWS = 6; /* 12 accumulators, 2 columns and 1 broadcast fill 16 registers */
#endif
constexpr long COLUMNS = 2 * VECTOR_WIDTH;

typedef float vec __attribute__((vector_size(4 * VECTOR_WIDTH)));
typedef float loose_vec __attribute__((vector_size(4 * VECTOR_WIDTH), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * VECTOR_WIDTH)));

static inline vec load(const float *from) { return *(const loose_vec *)from; }
static inline void store(float *to, vec x) { *(loose_vec *)to = x; }
static inline long round_up(long n, long step) { return (n + step - 1) / step * step; }

/* Indices first <= i < last. */
struct Range {
    long first, last;
    long size() const { return last - first; }
};

/* A row-major matrix of floats in a buffer: consecutive rows are `pitch` apart. */
struct Matrix {
    float *data;
    long pitch;
    float *row(long i) const { return data + i * pitch; }
    Matrix from_row(long i) const { return {row(i), pitch}; }
};

/* A matrix in panels of COLUMNS columns: element (r, c) lies at (c / COLUMNS) * panel + r * row + c % COLUMNS. */
struct Panels {
    const float *data;
    long row, panel;
    Panels(const float *data, long row, long panel) : data(data), row(row), panel(panel) {}
    explicit Panels(const Matrix &from) : Panels(from.data, from.pitch, COLUMNS) {}
};

/* Sizes of a product: (rows, inner) times (inner, columns). */
struct ProductSize {
    long rows, columns, inner;
};

/* A tensor of shape (batch, heads, tokens, width). */
struct Tensor4 {
    void *data;
    ptrdiff_t stride[4];
};

/* One head of a tensor, (tokens, width), with its strides. */
template <class T> struct Slice {
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
static inline void narrow(float x, bfloat16 &to) { /* round to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    to.bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Copy one row as float32. Contiguous rows, the common case, have their own loop, which vectorises. */
template <class T> static inline void take_row(const T *__restrict row, ptrdiff_t column, long width, float *__restrict to) {
    if (column == 1)
        for (long c = 0; c < width; c++) to[c] = widen(row[c]);
    else
        for (long c = 0; c < width; c++) to[c] = widen(row[c * column]);
}

/* Copy a range of rows into the first rows of a matrix; columns from `width` to its pitch become zero. */
template <class T> static void take_rows(const Slice<T> &from, Range rows, long width, Matrix matrix) {
    float *to = matrix.data;
    for (long r = rows.first; r < rows.last; r++, to += matrix.pitch) {
        take_row(from.data + r * from.row, from.column, width, to);
        for (long c = width; c < matrix.pitch; c++) to[c] = 0;
    }
}

/* Pack a matrix of (rows, width) into panels: element (r, c) lies at [c / COLUMNS][r][c % COLUMNS]. */
template <class T> static Panels pack(const Slice<T> &from, long rows, long width, float *to) {
    const Panels packed(to, COLUMNS, rows * COLUMNS);
    for (long left = 0; left < width; left += COLUMNS, to += rows * COLUMNS) {
        Slice<T> part = from;
        part.data += left * from.column;
        if (width - left >= COLUMNS) /* a constant length, so that it unrolls */
            for (long r = 0; r < rows; r++) take_row(part.data + r * part.row, part.column, COLUMNS, to + r * COLUMNS);
        else
            take_rows(part, {0, rows}, width - left, {to, COLUMNS});
    }
    return packed;
}

/* Pack the transposed matrix into panels: element (r, c) lies at [r / COLUMNS][c][r % COLUMNS]. */
template <class T> static Panels pack_transposed(const Slice<T> &from, long rows, long width, float *to) {
    const Panels packed(to, COLUMNS, width * COLUMNS);
    for (long top = 0; top < rows; top += COLUMNS, to += width * COLUMNS) {
        long count = rows - top < COLUMNS ? rows - top : COLUMNS;
        if (count < COLUMNS) memset(to, 0, sizeof *to * width * COLUMNS);
        for (long r = 0; r < count; r++) {
            const T *row = from.data + (top + r) * from.row;
            for (long c = 0; c < width; c++) to[c * COLUMNS + r] = widen(row[c * from.column]);
        }
    }
    return packed;
}

/* Write the first rows of a matrix, times a factor, to a range of rows in the tensor's type. */
template <class T> static void give_rows(Matrix matrix, Slice<T> to, Range rows, long width, float factor) {
    const float *__restrict from = matrix.data;
    for (long r = rows.first; r < rows.last; r++, from += matrix.pitch) {
        T *__restrict row = to.data + r * to.row;
        if (to.column == 1)
            for (long c = 0; c < width; c++) narrow(from[c] * factor, row[c]);
        else
            for (long c = 0; c < width; c++) narrow(from[c] * factor, row[c * to.column]);
    }
}

/* Layout of the left factor: its element (i, k) lies at a[i * pitch + k] (PLAIN) or a[k * pitch + i] (TRANSPOSED). */
enum Left { PLAIN, TRANSPOSED };

/* One block of ROWS x COLUMNS of C, which stays in registers while k runs. */
template <Left left, bool add>
static inline void kernel(long inner, Matrix left_factor, Panels right, Matrix out, float factor) {
    const float *a = left_factor.data, *b = right.data;
    float *c = out.data;
    const long a_pitch = left_factor.pitch, b_pitch = right.row, c_pitch = out.pitch;
    vec sum[ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
        sum[i][0] = add ? load(c + i * c_pitch) : vec{};
        sum[i][1] = add ? load(c + i * c_pitch + VECTOR_WIDTH) : vec{};
    }
    for (long k = 0; k < inner; k++, b += b_pitch) {
        vec b0 = load(b), b1 = load(b + VECTOR_WIDTH);
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
        store(c + i * c_pitch + VECTOR_WIDTH, add ? sum[i][1] : sum[i][1] * factor);
    }
}

/* C = factor A B, or C += A B.
 *
 * Every element is summed in the order of k by the same instructions, independent of its position in a tile. Scores that
 * the backward pass computes again therefore equal the saved thresholds exactly. */
template <Left left, bool add>
__attribute__((noinline)) static void product(ProductSize size, Matrix a, Panels b, Matrix c, float factor) {
    for (long j = 0; j < size.columns; j += COLUMNS, b.data += b.panel)
        for (long i = 0; i < size.rows; i += ROWS)
            kernel<left, add>(size.inner, {left == PLAIN ? a.row(i) : a.data + i, a.pitch}, b, {c.row(i) + j, c.pitch},
                              factor);
}
