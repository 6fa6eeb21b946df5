// One bilinear warp of an RGB image: rotation, flip, crop and the last of the resizing in one pass over the output, then
// the bytes as they are or normalised floats, while the row is still in the nearest cache.
// The readable reference is warp_reference in reference.py; coordinates and borders are DALI's warp_affine's.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { FRACTION = 16, WEIGHT = 7, GROUP = 8, SPARE = 32 };  // binary places of coordinates, of weights; pixels at a time

static inline void tap(const uint8_t *in, ptrdiff_t width, ptrdiff_t height, ptrdiff_t x, ptrdiff_t y, int weight,
                       int *sum) {
    if (x < 0 || y < 0 || x >= width || y >= height) return;  // black outside
    const uint8_t *pixel = in + (y * width + x) * 3;
    for (int c = 0; c < 3; c++) sum[c] += weight * pixel[c];
}

// A pixel any of whose four neighbours may lie outside.
static inline void any_pixel(const uint8_t *in, ptrdiff_t width, ptrdiff_t height, int64_t sx, int64_t sy, uint8_t *out) {
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
// Pixels 0, 1 of a group in the low half and 4, 5 in the high half: 8 bytes each, two neighbours and a little more.
static inline __m256i four(const uint8_t *in, const int32_t *at) {
    __m128i low = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)(in + at[0])),
                                     _mm_loadl_epi64((const __m128i *)(in + at[1])));
    __m128i high = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)(in + at[4])),
                                      _mm_loadl_epi64((const __m128i *)(in + at[5])));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// Four pixels as signed 16-bit numbers less 128: weights are unsigned bytes up to 128, so pixels are the signed factor.
static inline __m256i blend(__m256i above, __m256i below, __m256i weigh_x, __m256i weigh_y) {
    const __m256i pair = _mm256_setr_epi8(0, 3, 1, 4, 2, 5, -1, -1, 8, 11, 9, 12, 10, 13, -1, -1,
                                          0, 3, 1, 4, 2, 5, -1, -1, 8, 11, 9, 12, 10, 13, -1, -1);
    const __m256i sign = _mm256_set1_epi8((char)0x80);
    __m256i top = _mm256_maddubs_epi16(weigh_x, _mm256_xor_si256(_mm256_shuffle_epi8(above, pair), sign));
    __m256i bottom = _mm256_maddubs_epi16(weigh_x, _mm256_xor_si256(_mm256_shuffle_epi8(below, pair), sign));
    __m256i sum = _mm256_add_epi16(top, _mm256_mulhrs_epi16(_mm256_sub_epi16(bottom, top), weigh_y));
    return _mm256_srai_epi16(_mm256_add_epi16(sum, _mm256_set1_epi16(1 << (WEIGHT - 1))), WEIGHT);
}

// GROUP pixels whose neighbours are all inside. Reads 8 bytes at each neighbour on the left, writes 28 for 24.
static inline void group(const uint8_t *in, int32_t stride, __m256i sx, __m256i sy, uint8_t *out) {
    const __m256i places = _mm256_set1_epi32(127);
    int32_t at[GROUP];
    __m256i x = _mm256_srai_epi32(sx, FRACTION), y = _mm256_srai_epi32(sy, FRACTION);
    x = _mm256_add_epi32(x, _mm256_add_epi32(x, x));
    _mm256_storeu_si256((__m256i *)at, _mm256_add_epi32(x, _mm256_mullo_epi32(y, _mm256_set1_epi32(stride))));
    __m256i fx = _mm256_and_si256(_mm256_srai_epi32(sx, FRACTION - WEIGHT), places);
    __m256i fy = _mm256_and_si256(_mm256_srai_epi32(sy, FRACTION - WEIGHT), places);
    __m256i weigh_x = _mm256_or_si256(_mm256_sub_epi32(_mm256_set1_epi32(128), fx), _mm256_slli_epi32(fx, 8));
    __m256i weigh_y = _mm256_slli_epi32(fy, 8);  // a factor of 2^15, as mulhrs has it
    const __m256i first = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 4, 5, 4, 5, 4, 5, 4, 5,
                                           0, 1, 0, 1, 0, 1, 0, 1, 4, 5, 4, 5, 4, 5, 4, 5);
    const __m256i second = _mm256_add_epi8(first, _mm256_set1_epi8(8));
    __m256i even = blend(four(in, at), four(in + stride, at), _mm256_shuffle_epi8(weigh_x, first),
                         _mm256_shuffle_epi8(weigh_y, first));
    __m256i odd = blend(four(in, at + 2), four(in + stride, at + 2), _mm256_shuffle_epi8(weigh_x, second),
                        _mm256_shuffle_epi8(weigh_y, second));
    __m256i bytes = _mm256_xor_si256(_mm256_packs_epi16(even, odd), _mm256_set1_epi8((char)0x80));
    const __m256i take = _mm256_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1,
                                          0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    bytes = _mm256_shuffle_epi8(bytes, take);
    _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(bytes));
    _mm_storeu_si128((__m128i *)(out + 12), _mm256_extracti128_si256(bytes, 1));
}
#endif

// `count` pixels whose neighbours are all inside; may write 4 bytes too many.
static void inner(const uint8_t *in, ptrdiff_t width, ptrdiff_t height, int64_t sx, int64_t sy, int64_t step_x,
                  int64_t step_y, uint8_t *out, ptrdiff_t count) {
#ifdef __AVX2__
    if (count >= GROUP && width < (1 << 15) && height < (1 << 15) && width * height < INT32_MAX / 3) {
        const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        __m256i off_x = _mm256_mullo_epi32(number, _mm256_set1_epi32((int32_t)step_x));
        __m256i off_y = _mm256_mullo_epi32(number, _mm256_set1_epi32((int32_t)step_y));
        for (ptrdiff_t i = 0;; i += GROUP) {
            if (i + GROUP > count) i = count - GROUP;  // the last group overlaps the one before
            group(in, (int32_t)width * 3, _mm256_add_epi32(off_x, _mm256_set1_epi32((int32_t)(sx + i * step_x))),
                  _mm256_add_epi32(off_y, _mm256_set1_epi32((int32_t)(sy + i * step_y))), out + i * 3);
            if (i + GROUP == count) return;
        }
    }
#endif
    for (ptrdiff_t i = 0; i < count; i++)
        any_pixel(in, width, height, sx + i * step_x, sy + i * step_y, out + i * 3);
}

// Narrow [*first, *last) to the x for which low <= start + x * step < high.
static void clip(int64_t start, int64_t step, int64_t low, int64_t high, ptrdiff_t *first, ptrdiff_t *last) {
    while (*first < *last && (start + *first * step < low || start + *first * step >= high)) ++*first;
    while (*first < *last && (start + (*last - 1) * step < low || start + (*last - 1) * step >= high)) --*last;
}

static void warp_row(const uint8_t *in, ptrdiff_t width, ptrdiff_t height, const float *matrix, ptrdiff_t row,
                     uint8_t *out, ptrdiff_t size) {
    const double one = 1 << FRACTION;
    int64_t step_x = llrint(matrix[0] * one), step_y = llrint(matrix[3] * one);
    // Half a weight's place is added so that weights round instead of being cut.
    double x = matrix[0] * 0.5 + matrix[1] * (row + 0.5) + matrix[2] - 0.5 + 0.5 / (1 << WEIGHT);
    double y = matrix[3] * 0.5 + matrix[4] * (row + 0.5) + matrix[5] - 0.5 + 0.5 / (1 << WEIGHT);
    int64_t sx = llrint(x * one), sy = llrint(y * one);
    ptrdiff_t begin = 0, end = size;
    // Some neighbour inside: [begin, end); all inside: [first, last). Both are intervals, since lines are straight.
    clip(sx, step_x, -(1 << FRACTION), (int64_t)width << FRACTION, &begin, &end);
    clip(sy, step_y, -(1 << FRACTION), (int64_t)height << FRACTION, &begin, &end);
    ptrdiff_t first = begin, last = end;
    clip(sx, step_x, 0, (int64_t)(width - 1) << FRACTION, &first, &last);
    clip(sy, step_y, 0, (int64_t)(height - 1) << FRACTION, &first, &last);
    if (first >= last) first = last = end;
    memset(out, 0, begin * 3);
    for (ptrdiff_t i = begin; i < first; i++) any_pixel(in, width, height, sx + i * step_x, sy + i * step_y, out + i * 3);
    inner(in, width, height, sx + first * step_x, sy + first * step_y, step_x, step_y, out + first * 3, last - first);
    for (ptrdiff_t i = last; i < end; i++) any_pixel(in, width, height, sx + i * step_x, sy + i * step_y, out + i * 3);
    memset(out + end * 3, 0, (size - end) * 3);
}

static void mirror_row(const uint8_t *in, uint8_t *out, ptrdiff_t size) {
    ptrdiff_t i = 0;
#ifdef __AVX2__
    const __m128i turn = _mm_setr_epi8(-1, 12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2);
    for (; i + 6 <= size; i += 5) {  // five pixels a time, stored one byte early: that byte is the next five's
        __m128i five = _mm_loadu_si128((const __m128i *)(in + i * 3));
        _mm_storeu_si128((__m128i *)(out + (size - i - 5) * 3 - 1), _mm_shuffle_epi8(five, turn));
    }
#endif
    for (; i < size; i++) memcpy(out + (size - 1 - i) * 3, in + i * 3, 3);
}

// A row of bytes to three rows of floats, one a plane: byte * scale + shift. Reads SPARE bytes beyond the row at most.
static void floats(const uint8_t *line, const float *scale, float *out, ptrdiff_t size, ptrdiff_t plane) {
    const float *shift = scale + 3;
    ptrdiff_t i = 0;
#ifdef __AVX2__
    // Past the caches where lines of 32 bytes allow it: nobody reads a batch of floats until it is whole. Plane by plane,
    // so that whole cache lines are written one after another.
    int past = ((uintptr_t)out | (uintptr_t)(plane * 4)) % 32 == 0;
    for (int c = 0; c < 3; c++) {
        const __m256i channel = _mm256_add_epi32(_mm256_set1_epi32(c), _mm256_setr_epi32(
            0x80808000, 0x80808003, 0x80808006, 0x80808009, 0x80808000, 0x80808003, 0x80808006, 0x80808009));
        const __m256 times = _mm256_set1_ps(scale[c]), plus = _mm256_set1_ps(shift[c]);
        for (i = 0; i + GROUP <= size; i += GROUP) {
            __m256i pixels = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(line + i * 3))),
                _mm_loadu_si128((const __m128i *)(line + i * 3 + 12)), 1);
            __m256 value = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(pixels, channel));
            value = _mm256_add_ps(_mm256_mul_ps(value, times), plus);
            if (past)
                _mm256_stream_ps(out + c * plane + i, value);
            else
                _mm256_storeu_ps(out + c * plane + i, value);
        }
    }
#endif
    for (; i < size; i++)
        for (int c = 0; c < 3; c++) out[c * plane + i] = (float)line[i * 3 + c] * scale[c] + shift[c];
}

// in: (height, width, 3), with 32 bytes to spare after it. matrix: (2, 3), output to input, pixel centres at halves.
// out: uint8 (size, size, 3); or, where scale isn't NULL, float32 (3, size, size), by scale (3) and shift (3).
// line: 3 * size + 32 bytes to work in.
void warp(const uint8_t *in, ptrdiff_t width, ptrdiff_t height, const float *matrix, void *out, ptrdiff_t size,
          const float *scale, uint8_t *line) {
    // As it is or its mirror image, pixel for pixel: copied. A mirrored column x + 0.5 comes from size - (x + 0.5).
    int straight = width == size && height == size && matrix[1] == 0 && matrix[3] == 0 && matrix[4] == 1 &&
                   matrix[5] == 0 && ((matrix[0] == 1 && matrix[2] == 0) || (matrix[0] == -1 && matrix[2] == size));
    for (ptrdiff_t row = 0; row < size; row++) {
        const uint8_t *done = line;
        if (straight && matrix[0] == 1)
            done = in + row * size * 3;
        else if (straight)
            mirror_row(in + row * size * 3, line, size);
        else
            warp_row(in, width, height, matrix, row, line, size);
        if (scale)
            floats(done, scale, (float *)out + row * size, size, size * size);
        else
            memcpy((uint8_t *)out + row * size * 3, done, size * 3);
    }
#ifdef __AVX2__
    if (scale) _mm_sfence();
#endif
}

// A group of images of one batch in one call. items: for each its number in the batch, the address of its pixels and
// its side. matrices and out: those of the whole batch, the images of `out` `step` bytes apart. Matrices are between
// images of the output's size; here they are brought to the side of the input.
void warp_group(ptrdiff_t count, const int64_t *items, const float *matrices, uint8_t *out, ptrdiff_t step,
                ptrdiff_t size, const float *scale, uint8_t *line) {
    for (const int64_t *item = items; item < items + 3 * count; item += 3) {
        ptrdiff_t side = item[2];
        float matrix[6], ratio = (float)((double)side / size);
        for (int i = 0; i < 6; i++) matrix[i] = side == size ? matrices[6 * item[0] + i] : matrices[6 * item[0] + i] * ratio;
        warp((const uint8_t *)(intptr_t)item[1], side, side, matrix, out + item[0] * step, size, scale, line);
    }
}

// A mask by nearest neighbour: an output pixel takes the input pixel that its centre falls into, 255 outside. In double
// precision and in the order of warp_mask_reference in reference.py, so that both give the same bytes.
// in: (height, width, channels). matrix: (2, 3), between images of the output's size. out: (channels, size, size).
void warp_mask(const uint8_t *in, ptrdiff_t width, ptrdiff_t height, ptrdiff_t channels, const float *matrix,
               uint8_t *out, ptrdiff_t size) {
    const double across = (double)width / size, down = (double)height / size;
    for (ptrdiff_t row = 0; row < size; row++) {
        for (ptrdiff_t column = 0; column < size; column++) {
            double x = floor(((double)matrix[0] * (column + 0.5) + (double)matrix[1] * (row + 0.5) + matrix[2]) * across);
            double y = floor(((double)matrix[3] * (column + 0.5) + (double)matrix[4] * (row + 0.5) + matrix[5]) * down);
            int inside = x >= 0 && x < width && y >= 0 && y < height;
            const uint8_t *pixel = inside ? in + ((ptrdiff_t)y * width + (ptrdiff_t)x) * channels : NULL;
            for (ptrdiff_t c = 0; c < channels; c++)
                out[(c * size + row) * size + column] = pixel ? pixel[c] : 255;
        }
    }
}
