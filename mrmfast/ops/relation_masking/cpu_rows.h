/* Operations on a row of scores: its maximum, its m-th largest value, its exponentials, its gradient.
 *
 * A row has `n` scores. -inf pads it to a multiple of VECTOR_WIDTH: -inf is never among the m <= n largest scores, and
 * its exponential is 0. */
#pragma once
#include <cmath>
#include <limits>

#include "cpu_gemm.h"

constexpr float INF = std::numeric_limits<float>::infinity(), NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

/* Values of a row that the forward pass saves for the backward pass. */
struct Row {
    float maximum, inverse_sum, threshold;
};

/* First guess of a threshold: the number m of masked entries, and the m-th largest of n standard normal scores. */
struct Guess {
    int64_t count;
    float quantile, density; /* the guess, and its decrease for one more masked entry */
};

static inline float sum_of(vec x) {
    float sum = 0;
    for (int i = 0; i < VECTOR_WIDTH; i++) sum += x[i];
    return sum;
}
static inline float max_of(vec x) {
    float most = x[0];
    for (int i = 1; i < VECTOR_WIDTH; i++) most = x[i] > most ? x[i] : most;
    return most;
}
static inline long sum_of(ivec x) {
    long sum = 0;
    for (int i = 0; i < VECTOR_WIDTH; i++) sum += x[i];
    return sum;
}

/* exp(x) for x <= 0: argument reduction and polynomial of Cephes' expf, error about one unit in the last place. Results
 * below the smallest normal number are 0; NaN stays NaN. */
static inline vec exponential(vec x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */
    vec shifted = x * 1.44269504f + round;
    vec n = shifted - round;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    vec power = (vec)(((ivec)shifted + 127) << 23);
    return x < -87.3f ? vec{} : p * power;
}

/* Order-preserving maps float <-> int32; -0 counts as 0. */
static inline int32_t ordinal(float x) {
    int32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
static inline float of_ordinal(int32_t bits) {
    float x;
    bits ^= bits >> 31 & 0x7fffffff;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Scores of a row on both sides of a number t. */
struct Probe {
    long count;         /* number of scores >= t */
    float least, below; /* the smallest score >= t, the largest score < t */
};

static inline Probe probe(const float *s, long padded, float t) {
    vec least = vec{} + INF, below = vec{} - INF;
    ivec count = {};
    for (long j = 0; j < padded; j += VECTOR_WIDTH) {
        vec x = load(s + j);
        ivec inside = x >= t;
        vec up = inside ? x : vec{} + INF, down = inside ? vec{} - INF : x;
        count -= inside;
        least = up < least ? up : least;
        below = down > below ? down : below;
    }
    return {sum_of(count), -max_of(-least), max_of(below)};
}

/* The m-th largest of n scores without NaN, exactly, 1 < m < n.
 *
 * A probe counts the scores above a number t. The first t is the quantile of normal scores. The next steps move t by the
 * difference of counts times the inverse density. After `by_density` steps the search bisects the order-preserving
 * integers, which terminates for all scores. The result lies in [low, high]; both are scores of the row.
 *
 * Example: the scores 5 1 4 2 3, m = 2, first guess t = 2.5. The probe finds 3 scores >= 2.5, the smallest of which is 3;
 * so low = 3, and t moves up by one density step, say to 3.7. The next probe finds 2 = m scores, the smallest is 4. */
static float select(const float *s, long padded, float maximum, float mean, float deviation, const Guess &g, long m) {
    const int by_density = 6, at_most = 48;
    float low = -INF, high = maximum, t = mean + deviation * g.quantile, step = deviation * g.density;
    for (int number = 0; number < at_most && low < high; number++) {
        if (number >= by_density || !(t > low && t <= high)) {
            int64_t a = ordinal(low), b = ordinal(high);
            t = of_ordinal((int32_t)(a + (b - a + 1) / 2));
        }
        Probe p = probe(s, padded, t);
        if (p.count == m) return p.least;
        if (p.count == m - 1) return p.below;
        if (p.count >= m)
            t = (low = p.least) + step * (float)(p.count - m);
        else
            t = (high = p.below) - step * (float)(m - p.count - 1);
    }
    return low;
}

/* Threshold of a row: scores >= the threshold are masked. For m = 0 it is NaN, which masks nothing. NaN among the scores
 * counts as the largest score, as in topk. */
static float threshold_of(const float *s, long n, float maximum, float sum, float squares, const Guess &g) {
    long m = g.count, numbers = n;
    if (sum != sum) {
        for (long j = 0; j < n; j++) numbers -= s[j] != s[j];
        m -= n - numbers;
    }
    if (m <= 0) return NOT_A_NUMBER;
    if (m >= numbers) return -INF;
    if (m == 1) return maximum;
    float mean = sum / n, variance = squares / n - mean * mean;
    return select(s, round_up(n, VECTOR_WIDTH), maximum, mean, variance > 0 ? sqrtf(variance) : 0, g, m);
}

/* Compute unnormalised relations from scores. `intact` and `masked` may be null, and one of them may overwrite the
 * scores. */
static Row relate(const float *s, long n, const Guess &g, float *intact, float *masked) {
    long whole = n / VECTOR_WIDTH * VECTOR_WIDTH, padded = round_up(n, VECTOR_WIDTH);
    vec most = vec{} - INF, sums = {}, squares = {};
    for (long j = 0; j < padded; j += VECTOR_WIDTH) {
        vec x = load(s + j);
        most = x > most ? x : most;
        if (j >= whole) x = x == -INF ? vec{} : x; /* padding; a true score of -inf only worsens the guess */
        sums += x;
        squares += x * x;
    }
    float maximum = max_of(most), sum = sum_of(sums), threshold = NOT_A_NUMBER;
    if (masked) threshold = threshold_of(s, n, maximum, sum, sum_of(squares), g);
    if (maximum == INF || maximum == -INF) {
        /* The softmax is undefined: masked relations are 0, all others NaN. A row with a NaN needs no special case: NaN
         * is never masked, and it makes the sum and both outputs NaN. */
        for (long j = 0; j < n; j++) {
            bool removed = s[j] >= threshold;
            if (masked) masked[j] = removed ? 0.0f : NOT_A_NUMBER;
            if (intact) intact[j] = NOT_A_NUMBER;
        }
        return {maximum, NOT_A_NUMBER, threshold};
    }
    vec total = {};
    for (long j = 0; j < padded; j += VECTOR_WIDTH) {
        vec x = load(s + j), e = exponential(x - maximum);
        total += e;
        if (masked) store(masked + j, x >= threshold ? vec{} : e);
        if (intact) store(intact + j, e);
    }
    return {maximum, 1.0f / sum_of(total), threshold};
}

/* One row of the backward pass. Inputs: scores s, and the products of the output gradients with V (`d_intact` of the
 * intact output, `d_masked` of the masked output; null for an output without a gradient). Outputs: both relations, one of
 * which may overwrite the scores, and in `gradient` the gradient of the scores before the factor 1 / sqrt(d). */
static void relate_backward(const float *s, long n, const Row &row, const float *d_intact, const float *d_masked,
                            float *intact, float *masked, float *gradient) {
    long padded = round_up(n, VECTOR_WIDTH);
    vec total = {};
    for (long j = 0; j < padded; j += VECTOR_WIDTH) {
        vec x = load(s + j), p = exponential(x - row.maximum) * row.inverse_sum, g = {};
        if (d_intact) g = load(d_intact + j);
        if (d_masked) {
            ivec removed = x >= row.threshold;
            g += removed ? vec{} : load(d_masked + j);
            store(masked + j, removed ? vec{} : p);
        }
        total += p * g;
        store(intact + j, p);
        store(gradient + j, g);
    }
    float delta = sum_of(total);
    for (long j = 0; j < padded; j += VECTOR_WIDTH) store(gradient + j, load(intact + j) * (load(gradient + j) - delta));
}
