/* Two-bit genotype codes, variant-major in, sample-major out: the loops of twobit.py, which documents the functions. */

#define _POSIX_C_SOURCE 200809L /* pread */

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define LOW 0x5555555555555555ULL

/* Read `bytes` bytes of each of `count` rows; return the number of completely read rows. */
int64_t read_rows(int file, int64_t offset, int64_t row_bytes, const int64_t *columns, int64_t count, int64_t bytes,
                  uint8_t *out, int64_t stride) {
    for (int64_t row = 0; row < count; row++) {
        int64_t done = 0;
        while (done < bytes) {
            ssize_t got = pread(file, out + row * stride + done, (size_t)(bytes - done),
                                (off_t)(offset + columns[row] * row_bytes + done));
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) return row;
            done += got;
        }
    }
    return count;
}

static uint64_t load(const uint8_t *from, int64_t bytes) {
    uint64_t word = 0;
    memcpy(&word, from, (size_t)bytes);
    return word;
}

static uint64_t code_of(uint64_t raw, uint64_t turned) {
    const uint64_t low = raw & LOW, either = low ^ (raw >> 1 & LOW);
    return (low ^ (~either & turned)) << 1 | either;
}

/* PLINK 1 pairs to codes, in place. */
void from_plink1(uint8_t *rows, int64_t stride, int64_t count, int64_t bytes, const uint8_t *count_a1) {
    for (int64_t row = 0; row < count; row++) {
        uint8_t *at = rows + row * stride;
        const uint64_t turned = count_a1[row] ? LOW : 0;
        int64_t i = 0;
        for (; i + 8 <= bytes; i += 8) {
            const uint64_t code = code_of(load(at + i, 8), turned);
            memcpy(at + i, &code, 8);
        }
        const uint64_t code = code_of(load(at + i, bytes - i), turned);
        memcpy(at + i, &code, (size_t)(bytes - i));
    }
}

/* For each row: the numbers of chosen samples with the lower bit, the upper bit, both. */
void count_bits(const uint8_t *rows, int64_t stride, int64_t count, int64_t bytes, const uint8_t *chosen,
                int64_t *out) {
    for (int64_t row = 0; row < count; row++) {
        const uint8_t *at = rows + row * stride;
        int64_t lows = 0, highs = 0, boths = 0, i = 0;
        for (; i + 8 <= bytes; i += 8) {
            const uint64_t word = load(at + i, 8), mask = load(chosen + i, 8);
            const uint64_t low = word & mask, high = word >> 1 & mask;
            lows += __builtin_popcountll(low);
            highs += __builtin_popcountll(high);
            boths += __builtin_popcountll(low & high);
        }
        const uint64_t word = load(at + i, bytes - i), mask = load(chosen + i, bytes - i);
        const uint64_t low = word & mask, high = word >> 1 & mask;
        out[3 * row] = lows + __builtin_popcountll(low);
        out[3 * row + 1] = highs + __builtin_popcountll(high);
        out[3 * row + 2] = boths + __builtin_popcountll(low & high);
    }
}

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint32_t words4 __attribute__((vector_size(16)));

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (bytes16){__VA_ARGS__})
#endif
#define FIRST(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define SECOND(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)

/* A word holds 4 variants x 4 samples. Code (v, s) is at bit 8 v + 2 s and moves to bit 8 s + 2 v by two rounds of
   swaps (Warren, Hacker's Delight, 7-3): first inside 2 x 2 blocks, then between the blocks. */
static bytes16 turn(bytes16 given) {
    words4 words = (words4)given;
    words4 swap = (words >> 6 ^ words) & 0x00CC00CCu;
    words ^= swap ^ swap << 6;
    swap = (words >> 12 ^ words) & 0x0000F0F0u;
    words ^= swap ^ swap << 12;
    return (bytes16)words;
}

/* 64 variants x 64 samples: 64 rows of 16 bytes in, 64 rows of 16 bytes out. */
static void block(const uint8_t *in, int64_t in_stride, uint8_t *out, int64_t out_stride) {
    bytes16 quads[4][16]; /* [16 samples of the block][4 variants]: one byte per sample */
    for (int quad = 0; quad < 16; quad++) {
        bytes16 row[4];
        for (int i = 0; i < 4; i++) memcpy(&row[i], in + (4 * quad + i) * in_stride, 16);
        const bytes16 a = FIRST(row[0], row[2]), b = FIRST(row[1], row[3]);
        const bytes16 c = SECOND(row[0], row[2]), d = SECOND(row[1], row[3]);
        quads[0][quad] = turn(FIRST(a, b));
        quads[1][quad] = turn(SECOND(a, b));
        quads[2][quad] = turn(FIRST(c, d));
        quads[3][quad] = turn(SECOND(c, d));
    }
    for (int part = 0; part < 4; part++) {
        bytes16 *x = quads[part], y[16];
        /* Four rounds of interleaving the first half with the second transpose 16 x 16 bytes. */
        for (int round = 0; round < 4; round++) {
            for (int i = 0; i < 8; i++) {
                y[2 * i] = FIRST(x[i], x[i + 8]);
                y[2 * i + 1] = SECOND(x[i], x[i + 8]);
            }
            memcpy(x, y, sizeof y);
        }
        for (int i = 0; i < 16; i++) memcpy(out + (16 * part + i) * out_stride, &x[i], 16);
    }
}

/* Variants x ceil(samples / 4) bytes to samples x ceil(variants / 4) bytes. */
void transpose(const uint8_t *in, int64_t in_stride, int64_t variants, int64_t samples, uint8_t *out,
               int64_t out_stride) {
    const int64_t in_bytes = (samples + 3) / 4, out_bytes = (variants + 3) / 4;
    for (int64_t s = 0; s < samples; s += 64) {
        for (int64_t v = 0; v < variants; v += 64) {
            if (s + 64 <= samples && v + 64 <= variants) {
                block(in + v * in_stride + s / 4, in_stride, out + s * out_stride + v / 4, out_stride);
                continue;
            }
            /* At the edges through a block of zeros. */
            uint8_t from[64 * 16] = {0}, to[64 * 16];
            const int64_t rows = variants - v < 64 ? variants - v : 64, columns = samples - s < 64 ? samples - s : 64;
            const int64_t width = in_bytes - s / 4 < 16 ? in_bytes - s / 4 : 16;
            const int64_t wide = out_bytes - v / 4 < 16 ? out_bytes - v / 4 : 16;
            for (int64_t i = 0; i < rows; i++) memcpy(from + 16 * i, in + (v + i) * in_stride + s / 4, (size_t)width);
            block(from, 16, to, 16);
            for (int64_t i = 0; i < columns; i++)
                memcpy(out + (s + i) * out_stride + v / 4, to + 16 * i, (size_t)wide);
        }
    }
}
