/* Sparse weights x genotypes, summed in float64. sparse_product.py documents the functions. */

#define _POSIX_C_SOURCE 200112L /* posix_memalign */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Participants per tile: 2,048 variants of a tile in float64 are 512 KiB and stay in the L2 cache for all scores. The
   sums of a score are eight registers of four doubles; the weight takes one more register. */
#define PEOPLE 32

typedef double vector __attribute__((vector_size(32)));
#define VECTORS (PEOPLE / 4)

/* Values of int8 (negative: missing) or float32 (NaN, negative: missing). The comparison is false for NaN. */
#define DEFINE(NAME, TYPE)                                                                                         \
    /* Sum and count the values of the chosen participants, for each variant. */                                   \
    void fit_##NAME(const TYPE *values, int64_t stride, int64_t variants, int64_t people, const uint8_t *chosen,   \
                    double *total, int64_t *known) {                                                               \
        for (int64_t v = 0; v < variants; v++) {                                                                   \
            const TYPE *row = values + v * stride;                                                                 \
            double sum = 0;                                                                                        \
            int64_t count = 0;                                                                                     \
            for (int64_t first = 0; first < people; first += 4096) {                                               \
                const int64_t last = people - first < 4096 ? people : first + 4096;                                \
                NAME##_sum part = 0;                                                                               \
                int32_t seen = 0;                                                                                  \
                for (int64_t i = first; i < last; i++) {                                                           \
                    const int use = (row[i] >= 0) & chosen[i];                                                     \
                    part += use ? (NAME##_sum)row[i] : 0;                                                          \
                    seen += use;                                                                                   \
                }                                                                                                  \
                sum += (double)part, count += seen;                                                                \
            }                                                                                                      \
            total[v] = sum, known[v] = count;                                                                      \
        }                                                                                                          \
    }                                                                                                              \
                                                                                                                   \
    /* Add weights x values to sums[score][person]; return the number of missing values, -1 if out of memory. */   \
    int64_t add_##NAME(const TYPE *values, int64_t stride, int64_t variants, int64_t people,                       \
                       const double *expected, int64_t scores, const int64_t *begin, const int32_t *variant,       \
                       const double *weight, const int64_t *score, double *sums, int64_t sums_stride) {            \
        void *memory;                                                                                              \
        if (posix_memalign(&memory, 64, (size_t)(variants * PEOPLE) * sizeof(double))) return -1;                  \
        double *tile = memory;                                                                                     \
        int64_t missing = 0;                                                                                       \
        for (int64_t first = 0; first < people; first += PEOPLE) {                                                 \
            const int64_t width = people - first < PEOPLE ? people - first : PEOPLE;                               \
            for (int64_t v = 0; v < variants; v++) {                                                               \
                const TYPE *row = values + v * stride + first;                                                     \
                double *to = tile + v * PEOPLE;                                                                    \
                const double filling = expected[v];                                                                \
                int32_t lacking = 0;                                                                               \
                for (int64_t i = 0; i < width; i++) {                                                              \
                    const int there = row[i] >= 0;                                                                 \
                    to[i] = there ? (double)row[i] : filling;                                                      \
                    lacking += !there;                                                                             \
                }                                                                                                  \
                for (int64_t i = width; i < PEOPLE; i++) to[i] = 0;                                                \
                missing += lacking;                                                                                \
            }                                                                                                      \
            for (int64_t s = 0; s < scores; s++) add_row(tile, begin[s], begin[s + 1], variant, weight,            \
                                                         sums + score[s] * sums_stride + first, width);            \
        }                                                                                                          \
        free(memory);                                                                                              \
        return missing;                                                                                            \
    }

static void add_row(const double *tile, int64_t begin, int64_t end, const int32_t *variant, const double *weight,
                    double *sums, int64_t width) {
    vector sum[VECTORS] = {{0}};
    for (int64_t n = begin; n < end; n++) {
        const vector *values = (const vector *)(tile + (int64_t)variant[n] * PEOPLE);
        for (int i = 0; i < VECTORS; i++) sum[i] += weight[n] * values[i];
    }
    double out[PEOPLE];
    memcpy(out, sum, sizeof out);
    for (int64_t i = 0; i < width; i++) sums[i] += out[i];
}

typedef int32_t int8_sum;
typedef double float32_sum;
DEFINE(int8, int8_t)
DEFINE(float32, float)
