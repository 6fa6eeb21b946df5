// One bilinear warp of an RGB picture: rotation, flip, crop and the last of the resizing in one pass over the output.
// The readable reference is warp_reference in cpu_images.py; coordinates and borders are DALI's warp_affine's.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSSE3__
#include <immintrin.h>
#endif

enum { FRACTION = 16, WEIGHT = 7 };  // binary places of coordinates; of weights: 255 * 2^7 fits a signed 16-bit sum

static inline void tap(const uint8_t *in, ptrdiff_t width, ptrdiff_t height, ptrdiff_t x, ptrdiff_t y, int weight,
                       int *sum) {
    if (x < 0 || y < 0 || x >= width || y >= height) return;  // black outside
    const uint8_t *pixel = in + (y * width + x) * 3;
    for (int c = 0; c < 3; c++) sum[c] += weight * pixel[c];
}

// A pixel any of whose four neighbours may lie outside.
static inline void edge_pixel(const uint8_t *in, ptrdiff_t width, ptrdiff_t height, int64_t sx, int64_t sy,
                              uint8_t *out) {
    ptrdiff_t x = (ptrdiff_t)(sx >> FRACTION), y = (ptrdiff_t)(sy >> FRACTION);
    int fx = (int)(sx >> (FRACTION - WEIGHT)) & 127, fy = (int)(sy >> (FRACTION - WEIGHT)) & 127;
    int sum[3] = {1 << (2 * WEIGHT - 1), 1 << (2 * WEIGHT - 1), 1 << (2 * WEIGHT - 1)};
    tap(in, width, height, x, y, (128 - fx) * (128 - fy), sum);
    tap(in, width, height, x + 1, y, fx * (128 - fy), sum);
    tap(in, width, height, x, y + 1, (128 - fx) * fy, sum);
    tap(in, width, height, x + 1, y + 1, fx * fy, sum);
    for (int c = 0; c < 3; c++) out[c] = (uint8_t)(sum[c] >> (2 * WEIGHT));
}

#ifdef __AVX2__
// Two pixels whose neighbours are all inside, one a lane; reads 8 bytes of two rows each, writes 4 + 4 one after another.
static inline void inner_pair(const uint8_t *in, ptrdiff_t stride, int64_t sx, int64_t sy, int64_t step_x,
                              int64_t step_y, uint8_t *out) {
    int64_t tx = sx + step_x, ty = sy + step_y;
    const uint8_t *a = in + (sy >> FRACTION) * stride + (sx >> FRACTION) * 3;
    const uint8_t *b = in + (ty >> FRACTION) * stride + (tx >> FRACTION) * 3;
    int ax = (int)(sx >> (FRACTION - WEIGHT)) & 127, ay = (int)(sy >> (FRACTION - WEIGHT)) & 127;
    int bx = (int)(tx >> (FRACTION - WEIGHT)) & 127, by = (int)(ty >> (FRACTION - WEIGHT)) & 127;
    // (r0 r1 g0 g1 b0 b1) of both rows as 16-bit numbers: the upper row in the low half of a lane, the lower in the high.
    const __m128i pair = _mm_setr_epi8(0, 3, 1, 4, 2, 5, -1, -1, 8, 11, 9, 12, 10, 13, -1, -1);
    __m128i pa = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)a), _mm_loadl_epi64((const __m128i *)(a + stride)));
    __m128i pb = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)b), _mm_loadl_epi64((const __m128i *)(b + stride)));
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_shuffle_epi8(pa, pair)), _mm_shuffle_epi8(pb, pair), 1);
    __m256i weigh_x = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_set1_epi32((128 - ax) | (ax << 16))),
                                              _mm_set1_epi32((128 - bx) | (bx << 16)), 1);
    __m256i weigh_y = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_set1_epi32((128 - ay) | (ay << 16))),
                                              _mm_set1_epi32((128 - by) | (by << 16)), 1);
    __m256i above = _mm256_madd_epi16(_mm256_unpacklo_epi8(both, _mm256_setzero_si256()), weigh_x);
    __m256i below = _mm256_madd_epi16(_mm256_unpackhi_epi8(both, _mm256_setzero_si256()), weigh_x);
    __m256i sum = _mm256_madd_epi16(_mm256_or_si256(above, _mm256_slli_epi32(below, 16)), weigh_y);
    sum = _mm256_srli_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << (2 * WEIGHT - 1))), 2 * WEIGHT);
    const __m128i take = _mm_setr_epi8(0, 4, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    int first = _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm256_castsi256_si128(sum), take));
    int second = _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm256_extracti128_si256(sum, 1), take));
    memcpy(out, &first, 4);
    memcpy(out + 3, &second, 4);
}
#endif

#ifdef __SSSE3__
// The same for a pixel whose neighbours are all inside; reads 8 bytes of two rows, writes 4.
static inline void inner_pixel(const uint8_t *in, ptrdiff_t stride, int64_t sx, int64_t sy, uint8_t *out) {
    const uint8_t *at = in + (sy >> FRACTION) * stride + (sx >> FRACTION) * 3;
    int fx = (int)(sx >> (FRACTION - WEIGHT)) & 127, fy = (int)(sy >> (FRACTION - WEIGHT)) & 127;
    const __m128i pair = _mm_setr_epi8(0, 3, 1, 4, 2, 5, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m128i top = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)at), pair);
    __m128i bottom = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)(at + stride)), pair);
    __m128i low = _mm_unpacklo_epi8(top, _mm_setzero_si128());
    __m128i high = _mm_unpacklo_epi8(bottom, _mm_setzero_si128());
    __m128i weights = _mm_set1_epi32((128 - fx) | (fx << 16));
    __m128i above = _mm_madd_epi16(low, weights);    // r g b, 32 bits each, 15 used
    __m128i below = _mm_madd_epi16(high, weights);
    __m128i both = _mm_or_si128(above, _mm_slli_epi32(below, 16));
    __m128i sum = _mm_madd_epi16(both, _mm_set1_epi32((128 - fy) | (fy << 16)));
    sum = _mm_srli_epi32(_mm_add_epi32(sum, _mm_set1_epi32(1 << (2 * WEIGHT - 1))), 2 * WEIGHT);
    const __m128i take = _mm_setr_epi8(0, 4, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    int rgb = _mm_cvtsi128_si32(_mm_shuffle_epi8(sum, take));
    memcpy(out, &rgb, 4);
}
#else
static inline void inner_pixel(const uint8_t *in, ptrdiff_t stride, int64_t sx, int64_t sy, uint8_t *out) {
    const uint8_t *at = in + (sy >> FRACTION) * stride + (sx >> FRACTION) * 3;
    int fx = (int)(sx >> (FRACTION - WEIGHT)) & 127, fy = (int)(sy >> (FRACTION - WEIGHT)) & 127;
    for (int c = 0; c < 3; c++) {
        int above = at[c] * (128 - fx) + at[c + 3] * fx, below = at[stride + c] * (128 - fx) + at[stride + c + 3] * fx;
        out[c] = (uint8_t)((above * (128 - fy) + below * fy + (1 << (2 * WEIGHT - 1))) >> (2 * WEIGHT));
    }
}
#endif

// Narrow [*first, *last) to the x for which low <= start + x * step < high.
static void clip(int64_t start, int64_t step, int64_t low, int64_t high, ptrdiff_t *first, ptrdiff_t *last) {
    while (*first < *last && (start + *first * step < low || start + *first * step >= high)) ++*first;
    while (*first < *last && (start + (*last - 1) * step < low || start + (*last - 1) * step >= high)) --*last;
}

// in: (height, width, 3), with 16 bytes to spare after it. out: (size, size, 3). matrix: (2, 3), output to input, pixel
// centres at halves.
void warp(const uint8_t *in, ptrdiff_t width, ptrdiff_t height, const float *matrix, uint8_t *out, ptrdiff_t size) {
    const double one = 1 << FRACTION;
    int64_t step_x = llrint(matrix[0] * one), step_y = llrint(matrix[3] * one);
    for (ptrdiff_t row = 0; row < size; row++, out += size * 3) {
        // Half a weight's place is added so that weights round instead of being cut.
        double x = matrix[0] * 0.5 + matrix[1] * (row + 0.5) + matrix[2] - 0.5 + 0.5 / (1 << WEIGHT);
        double y = matrix[3] * 0.5 + matrix[4] * (row + 0.5) + matrix[5] - 0.5 + 0.5 / (1 << WEIGHT);
        int64_t sx = llrint(x * one), sy = llrint(y * one);
        ptrdiff_t first = 0, last = size, begin = 0, end = size;
        // Some neighbour inside: [begin, end); all inside: [first, last). Both are intervals, since lines are straight.
        clip(sx, step_x, -(1 << FRACTION), (int64_t)width << FRACTION, &begin, &end);
        clip(sy, step_y, -(1 << FRACTION), (int64_t)height << FRACTION, &begin, &end);
        first = begin, last = end;
        clip(sx, step_x, 0, (int64_t)(width - 1) << FRACTION, &first, &last);
        clip(sy, step_y, 0, (int64_t)(height - 1) << FRACTION, &first, &last);
        if (first >= last) first = last = end;
        memset(out, 0, begin * 3);
        for (ptrdiff_t i = begin; i < first; i++)
            edge_pixel(in, width, height, sx + i * step_x, sy + i * step_y, out + i * 3);
        // The fast pixel writes a byte too many: the next one mends it, and the row's last is done the slow way.
        ptrdiff_t fast = last == size ? last - 1 : last;
        ptrdiff_t i = first;
#ifdef __AVX2__
        for (; i + 1 < fast; i += 2)
            inner_pair(in, width * 3, sx + i * step_x, sy + i * step_y, step_x, step_y, out + i * 3);
#endif
        for (; i < fast; i++)
            inner_pixel(in, width * 3, sx + i * step_x, sy + i * step_y, out + i * 3);
        for (; i < end; i++)
            edge_pixel(in, width, height, sx + i * step_x, sy + i * step_y, out + i * 3);
        memset(out + end * 3, 0, (size - end) * 3);
    }
}

// Left-right mirror of (size, size, 3).
void mirror(const uint8_t *in, uint8_t *out, ptrdiff_t size) {
    for (ptrdiff_t row = 0; row < size; row++, in += size * 3, out += size * 3) {
        ptrdiff_t i = 0;
#ifdef __SSSE3__
        const __m128i turn = _mm_setr_epi8(-1, 12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2);
        for (; i + 6 <= size; i += 5) {  // five pixels a time, stored one byte early: that byte is the next five's
            __m128i five = _mm_loadu_si128((const __m128i *)(in + i * 3));
            _mm_storeu_si128((__m128i *)(out + (size - i - 5) * 3 - 1), _mm_shuffle_epi8(five, turn));
        }
#endif
        for (; i < size; i++) memcpy(out + (size - 1 - i) * 3, in + i * 3, 3);
    }
}
