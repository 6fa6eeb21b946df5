/* Unpack genome rows to float32 with the observed mask: one pass, each output written once.
 *
 * A byte selects four (genotype) or eight (binary) ready floats from a table small enough for the first-level cache,
 * so the loop is bound by writing its output. GCC and Clang vector extensions: no intrinsics, any processor.
 * Strides are in elements. Rows of x and seen have the same stride; seen is 0 or 1. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

static void absent(size_t n, const float *fill, float *x, uint8_t *seen) {
    memcpy(x, fill, n * sizeof *x);
    memset(seen, 0, n);
}

void unpack_genotype(const uint8_t *in, size_t in_stride, const uint8_t *present, size_t present_stride, size_t rows,
                     size_t n, const float *fill, float *x, uint8_t *seen, size_t stride) {
    f4 value[256];
    i4 known[256];
    uint8_t flags[256][4];
    for (int byte = 0; byte < 256; byte++)
        for (int j = 0; j < 4; j++) {
            int code = byte >> 2 * j & 3;
            value[byte][j] = code == 3 ? 0.0f : (float)code;
            known[byte][j] = code == 3 ? 0 : -1;
            flags[byte][j] = code != 3;
        }
    for (size_t row = 0; row < rows; row++, in += in_stride, present += present_stride, x += stride, seen += stride) {
        if (!*present) {
            absent(n, fill, x, seen);
            continue;
        }
        for (size_t f = 0; f + 4 <= n; f += 4) {
            uint8_t byte = in[f / 4];
            f4 filled;
            memcpy(&filled, fill + f, sizeof filled);
            f4 out = (f4)(((i4)value[byte] & known[byte]) | ((i4)filled & ~known[byte]));
            memcpy(x + f, &out, sizeof out);
            memcpy(seen + f, flags[byte], 4);
        }
        for (size_t f = n & ~(size_t)3; f < n; f++) {
            uint8_t byte = in[f / 4];
            seen[f] = flags[byte][f & 3];
            x[f] = seen[f] ? value[byte][f & 3] : fill[f];
        }
    }
}

void unpack_binary(const uint8_t *in, size_t in_stride, const uint8_t *present, size_t present_stride, size_t rows,
                   size_t n, const float *fill, float *x, uint8_t *seen, size_t stride) {
    float value[256][8];
    for (int byte = 0; byte < 256; byte++)
        for (int j = 0; j < 8; j++) value[byte][j] = (float)(byte >> j & 1);
    for (size_t row = 0; row < rows; row++, in += in_stride, present += present_stride, x += stride, seen += stride) {
        if (!*present) {
            absent(n, fill, x, seen);
            continue;
        }
        for (size_t f = 0; f + 8 <= n; f += 8) memcpy(x + f, value[in[f / 8]], 8 * sizeof *x);
        if (n % 8) memcpy(x + n / 8 * 8, value[in[n / 8]], n % 8 * sizeof *x);
        memset(seen, 1, n);
    }
}

void unpack_float(const float *in, size_t in_stride, const uint8_t *present, size_t present_stride, size_t rows,
                  size_t n, const float *fill, float *x, uint8_t *seen, size_t stride) {
    for (size_t row = 0; row < rows; row++, in += in_stride, present += present_stride, x += stride, seen += stride) {
        if (!*present) {
            absent(n, fill, x, seen);
            continue;
        }
        for (size_t f = 0; f < n; f++) {
            seen[f] = in[f] == in[f];
            x[f] = seen[f] ? in[f] : fill[f];
        }
    }
}
