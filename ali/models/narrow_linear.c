/* Matrix products of linear layers on one CPU thread, and their gradients; see narrow.py.

One factor is packed into rows of PAIR × lanes first, converted from float if it is the weights; a
block of rows of the other times a few registers of it stays in registers until it is summed. */

#include "narrow.h"

enum { PACKED, ROWS, CONVERTED, BIAS, DIAGONAL };

/* a (rows, k), each from `a_row` on and PAIR by PAIR `a_pair` apart, times the packed matrix
(pairs, lanes); up to `many` rows and `wide` registers at once. To float or to numbers. */
typedef struct {
    const number *a;
    long a_row, a_pair, rows, pairs, n, lanes;
    const number *matrix;
    const float *bias;
    void *out;
} product;

INLINE void put_lanes(product p, long at, int count, vector v, const int to_float) {
    if (to_float) {
        float part[LANES], *to = (float *)p.out + at;
        store(count < LANES ? part : to, v);
        if (count < LANES) memcpy(to, part, count * sizeof(float));
    } else {
        number part[LANES], *to = (number *)p.out + at;
        put_vector(count < LANES ? part : to, v);
        if (count < LANES) memcpy(to, part, count * sizeof(number));
    }
}

INLINE void block(product p, long first, const int wide, const int many, const int to_float) {
    for (long m = 0; m < p.rows; m += many) {
        vector sums[ACROSS];
        const number *from[ACROSS], *w = p.matrix + first * PAIR;
        UNROLL for (int j = 0; j < many; j++) {
            from[j] = p.a + (m + j < p.rows ? m + j : p.rows - 1) * p.a_row;
            UNROLL for (int l = 0; l < wide; l++)
                sums[j * wide + l] = p.bias ? load(p.bias + first + l * LANES) : (vector){0};
        }
        for (long k = 0; k < p.pairs; k++, w += p.lanes * PAIR) {
            row weights[4];
            UNROLL for (int l = 0; l < wide; l++) weights[l] = load_row(w + LANES * PAIR * l);
            UNROLL for (int j = 0; j < many; j++)
                UNROLL for (int l = 0; l < wide; l++)
                    sums[j * wide + l] =
                        add_product(sums[j * wide + l], from[j] + k * p.a_pair, weights[l]);
        }
        UNROLL for (int j = 0; j < many; j++)
            UNROLL for (int l = 0; l < wide; l++) {
                long lane = first + l * LANES;
                if (m + j >= p.rows || lane >= p.n) break;
                put_lanes(p, (m + j) * p.n + lane, least(LANES, (int)(p.n - lane)), sums[j * wide + l], to_float);
            }
    }
}

INLINE void multiply(product p, const int to_float) {
    for (long lane = 0; lane < p.lanes;) {
        long left = (p.lanes - lane) / LANES;
        if (left >= 4) block(p, lane, 4, ACROSS / 4, to_float), lane += 4 * LANES;
        else if (left >= 2) block(p, lane, 2, ACROSS / 3, to_float), lane += 2 * LANES;
        else block(p, lane, 1, ACROSS / 2, to_float), lane += LANES;
    }
}

/* a (rows, k) with rows of whole pairs: a copy if k is odd, so that no row reads the next one's. */
static const number *paired(const number *a, long rows, long k, long *a_row) {
    *a_row = up((int)k, PAIR);
    if (*a_row == k) return a;
    number *copy = zeros(ROWS, rows * *a_row * sizeof(number));
    for (long m = 0; m < rows; m++) memcpy(copy + m * *a_row, a + m * k, k * sizeof(number));
    return copy;
}

/* With few numbers a row, f rows are taken as one, so that they fill a register; f divides b. */
static long rows_together(long b, long k, long n) {
    long f = 1;
    while (b % (2 * f) == 0 && 2 * f * n <= LANES && 2 * f * k <= 2 * LANES) f *= 2;
    return f;
}

/* The matrix for f rows at once: w (m, n) f times along the diagonal of (f m, f n). */
static float *diagonal(const float *w, long m, long n, long f) {
    float *matrix = zeros(DIAGONAL, f * m * f * n * sizeof(float));
    for (long q = 0; q < f; q++)
        for (long i = 0; i < m; i++)
            memcpy(matrix + ((q * m + i) * f + q) * n, w + i * n, n * sizeof(float));
    return matrix;
}

/* out (B, N) = h (B, K) wᵀ + bias, w (N, K) */
void linear(const number *h, const float *w, const float *bias, number *out, long b, long k, long n) {
    long f = rows_together(b, k, n), apart = n;
    if (f > 1) w = diagonal(w, n, k, f), b /= f, k *= f, n *= f;
    long lanes = up((int)n, LANES), pairs = up((int)k, PAIR) / PAIR, a_row;
    number *matrix = zeros(PACKED, pairs * lanes * PAIR * sizeof(number));
    number *one = zeros(CONVERTED, pairs * PAIR * sizeof(number));
    for (long o = 0; o < n; o++, w += k) {
        put_row(w, one, k);
        for (long i = 0; i < pairs; i++)
            memcpy(matrix + (i * lanes + o) * PAIR, one + i * PAIR, PAIR * sizeof(number));
    }
    float *padded = bias ? zeros(BIAS, lanes * sizeof(float)) : NULL;
    for (long o = 0; bias && o < n; o++) padded[o] = bias[o % apart];
    h = paired(h, b, k, &a_row);
    multiply((product){h, a_row, PAIR, b, pairs, n, lanes, matrix, padded, out}, 0);
}

/* k rows of n numbers, packed into pairs of rows with zeros up to `lanes` */
static number *pack(const number *rows, long k, long n, long lanes, int which) {
    number *packed = buffer(which, up((int)k, PAIR) * lanes * sizeof(number));
    for (long i = 0; i < k; i += PAIR) {
        number *to = packed + i * lanes;
        interleave(rows + i * n, i + 1 < k ? rows + (i + 1) * n : NULL, to, n);
        memset(to + n * PAIR, 0, (lanes - n) * PAIR * sizeof(number));
    }
    return packed;
}

/* out (B, N) = g (B, K) w, w (K, N) */
void linear_transposed(const number *g, const float *w, number *out, long b, long k, long n) {
    long f = rows_together(b, k, n);
    if (f > 1) w = diagonal(w, k, n, f), b /= f, k *= f, n *= f;
    long lanes = up((int)n, LANES), pairs = up((int)k, PAIR) / PAIR, a_row;
    number *rows = buffer(CONVERTED, k * n * sizeof(number));
    put_row(w, rows, k * n);
    number *matrix = pack(rows, k, n, lanes, PACKED);
    g = paired(g, b, k, &a_row);
    multiply((product){g, a_row, PAIR, b, pairs, n, lanes, matrix, NULL, out}, 0);
}

/* gw (M, N) = gᵀ h of g (B, M) and h (B, N); gb (M) = Σ g where it is not NULL */
void linear_weights(const number *g, const number *h, float *gw, float *gb, long b, long m, long n) {
    long f = rows_together(b, m, n), fm = f * m, fn = f * n, rows = b / f;
    long lanes = up((int)fn, LANES), pairs = up((int)rows, PAIR) / PAIR;
    const number *matrix = pack(h, rows, fn, lanes, PACKED), *a = pack(g, rows, fm, fm, ROWS);
    float *all = f > 1 ? buffer(DIAGONAL, fm * fn * sizeof(float)) : gw;
    multiply((product){a, PAIR, fm * PAIR, fm, pairs, fn, lanes, matrix, NULL, all}, 1);
    for (long i = 0; f > 1 && i < m; i++)
        for (long j = 0; j < n; j++) {
            gw[i * n + j] = 0;
            for (long q = 0; q < f; q++) gw[i * n + j] += all[((q * m + i) * f + q) * n + j];
        }
    for (long j = 0; gb && j < m; j++) gb[j] = 0;
    for (long i = 0; gb && i < b; i++)
        for (long j = 0; j < m; j++) gb[j] += get(g[i * m + j]);
}
