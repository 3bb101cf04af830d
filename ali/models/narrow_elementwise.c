/* Batch norm, leaky ReLU and dropout of h (N, C) together, and Adam, on one CPU thread; see narrow.py. */

#include "narrow.h"

enum { WIDEST = 4096, CHUNK = 512, FEW = 64 }; /* channels; periods added up in float; rows */

/* Rows of C numbers are taken as rows of `period(C)`: a multiple of LANES, up to WIDEST. */
static int period(int c) {
    int p = c;
    while (p % LANES && p <= WIDEST - c) p += c;
    return p;
}

/* Leaky ReLU's slope, then dropout: an element is kept, and multiplied by `scale`, where its random
word is at least `least`; words NULL: no dropout. */
typedef struct {
    float slope;
    const int16_t *words;
    int least;
    float scale;
} activation;

/* v times the derivative of leaky ReLU and dropout at their argument y: of elements i … */
INLINE vector derivative(vector y, vector v, activation a, long i, const int drops) {
    v = where(y > (vector){0}, v, v * a.slope);
    if (!drops) return v;
    shorts words;
    memcpy(&words, a.words + i, sizeof words);
    integers kept = __builtin_convertvector(words, integers) >= (integers){0} + a.least;
    return v * (vector)(kept & (integers)((vector){0} + a.scale));
}
/* … and of element i. */
INLINE float derivative1(float y, float v, activation a, long i, const int drops) {
    v = y > 0 ? v : v * a.slope;
    return drops ? v * (a.words[i] >= a.least ? a.scale : 0.0f) : v;
}

/* What batch norm needs of each channel, repeated over a period of p; sums are kept there too. */
typedef struct {
    int p;
    float *a, *b, *mean, *sum, *product;
} channels;

static channels new_channels(int c) {
    static _Thread_local float memory[5][WIDEST];
    return (channels){period(c), memory[0], memory[1], memory[2], memory[3], memory[4]};
}

/* Calls PASS(…, v) with v the registers that a period fills if they are few, so that what belongs
to a channel stays in them, else 0. A pass goes over n numbers; `v` is constant in it. */
#define BY_PERIOD(at, PASS, ...) \
    switch (at.p % LANES ? 0 : at.p / LANES) { \
        case 1: PASS(__VA_ARGS__, at, 1); break; \
        case 2: PASS(__VA_ARGS__, at, 2); break; \
        case 4: PASS(__VA_ARGS__, at, 4); break; \
        default: PASS(__VA_ARGS__, at, 0); \
    }
#define REGISTERS(v) ((v) ? (v) : WIDEST / LANES)
#define EACH(k, at, v) for (int k = 0; k < ((v) ? (v) : (at).p % LANES ? 0 : (at).p / LANES); k++)

INLINE void load_all(const float *from, channels at, vector *to, const int v) {
    EACH(k, at, v) to[k] = load(from + k * LANES);
}
INLINE void store_all(float *to, channels at, const vector *from, const int v) {
    EACH(k, at, v) store(to + k * LANES, from[k]);
}

/* sum[j] = Σ (h − mean[j]), product[j] = Σ (h − mean[j])² */
INLINE void moments(const number *h, long n, channels at, const int v) {
    vector sum[REGISTERS(v)], product[REGISTERS(v)], mean[REGISTERS(v)];
    load_all(at.mean, at, mean, v);
    EACH(k, at, v) sum[k] = product[k] = (vector){0};
    long i = 0;
    for (; at.p % LANES == 0 && i + at.p <= n; i += at.p)
        EACH(k, at, v) {
            vector x = get_vector(h + i + k * LANES) - mean[k];
            sum[k] += x;
            product[k] += x * x;
        }
    memset(at.sum, 0, at.p * sizeof(float)), memset(at.product, 0, at.p * sizeof(float));
    store_all(at.sum, at, sum, v), store_all(at.product, at, product, v);
    for (int j = 0; i < n; i++, j = j + 1 < at.p ? j + 1 : 0) {
        float x = get(h[i]) - at.mean[j];
        at.sum[j] += x;
        at.product[j] += x * x;
    }
}

INLINE void normalise_with(
    const number *h, number *out, long n, activation how, const int drops, channels at, const int v
) {
    vector a[REGISTERS(v)], b[REGISTERS(v)];
    load_all(at.a, at, a, v), load_all(at.b, at, b, v);
    long i = 0;
    for (; at.p % LANES == 0 && i + at.p <= n; i += at.p)
        EACH(k, at, v) {
            vector y = get_vector(h + i + k * LANES) * a[k] + b[k];
            put_vector(out + i + k * LANES, derivative(y, y, how, i + k * LANES, drops));
        }
    for (int j = 0; i < n; i++, j = j + 1 < at.p ? j + 1 : 0) {
        float y = get(h[i]) * at.a[j] + at.b[j];
        out[i] = put(derivative1(y, y, how, i, drops));
    }
}

/* sums, in double, of what a pass leaves in sum and product: of chunks, each short enough for float */
#define IN_CHUNKS(c, n, at, sums, products, PASS) \
    for (int j = 0; j < (c); j++) (sums)[j] = (products)[j] = 0; \
    for (long first = 0, chunk = (long)CHUNK * (at).p; first < (n); first += chunk) { \
        long many = (n) - first < chunk ? (n) - first : chunk; \
        PASS(first, many); \
        for (int j = 0; j < (at).p; j++) (sums)[j % (c)] += (at).sum[j], (products)[j % (c)] += (at).product[j]; \
    }

/* saved: mean and 1/σ (2, C), for the way back */
void normalise(
    const number *h, number *out, long n, int c, const float *gamma, const float *beta,
    float *running_mean, float *running_var, float momentum, float eps, float *saved, activation how
) {
    static _Thread_local double sums[WIDEST], squares[WIDEST];
    channels at = new_channels(c);
    float *mean = saved, *inverse = saved + c;
    double rows = (double)(n / c);
    long some = n < (long)FEW * c ? n : (long)FEW * c;
    memset(at.mean, 0, at.p * sizeof(float));
    /* Deviations from the mean of the first rows: of all, or squares would cancel */
    BY_PERIOD(at, moments, h, some);
    for (int j = 0; j < c; j++) sums[j] = 0;
    for (int j = 0; j < at.p; j++) sums[j % c] += at.sum[j];
    for (int j = 0; j < at.p; j++) at.mean[j] = (float)(sums[j % c] * c / some);
#define PASS(first, many) BY_PERIOD(at, moments, h + first, many)
    IN_CHUNKS(c, n, at, sums, squares, PASS)
#undef PASS
    for (int j = 0; j < c; j++) {
        double off = sums[j] / rows, variance = squares[j] / rows - off * off;
        mean[j] = (float)(at.mean[j] + off);
        inverse[j] = (float)(1 / sqrt((variance > 0 || variance != variance ? variance : 0) + eps));
        running_mean[j] += momentum * (mean[j] - running_mean[j]);
        running_var[j] += momentum * ((float)(variance * rows / (rows - 1)) - running_var[j]);
    }
    for (int j = 0; j < at.p; j++) {
        at.a[j] = gamma[j % c] * inverse[j % c];
        at.b[j] = beta[j % c] - mean[j % c] * at.a[j];
    }
    if (how.words) {
        BY_PERIOD(at, normalise_with, h, out, n, how, 1);
    } else {
        BY_PERIOD(at, normalise_with, h, out, n, how, 0);
    }
}

/* With u the gradient of batch norm's output: sum[j] = Σ u, product[j] = Σ u (h − mean[j]) */
INLINE void gradient_sums(
    const number *g, const number *h, long n, activation how, const int drops, channels at, const int v
) {
    vector a[REGISTERS(v)], b[REGISTERS(v)], mean[REGISTERS(v)], sum[REGISTERS(v)], product[REGISTERS(v)];
    load_all(at.a, at, a, v), load_all(at.b, at, b, v), load_all(at.mean, at, mean, v);
    EACH(k, at, v) sum[k] = product[k] = (vector){0};
    long i = 0;
    for (; at.p % LANES == 0 && i + at.p <= n; i += at.p)
        EACH(k, at, v) {
            long here = i + k * LANES;
            vector x = get_vector(h + here);
            vector u = derivative(x * a[k] + b[k], get_vector(g + here), how, here, drops);
            sum[k] += u;
            product[k] += u * (x - mean[k]);
        }
    memset(at.sum, 0, at.p * sizeof(float)), memset(at.product, 0, at.p * sizeof(float));
    store_all(at.sum, at, sum, v), store_all(at.product, at, product, v);
    for (int j = 0; i < n; i++, j = j + 1 < at.p ? j + 1 : 0) {
        float x = get(h[i]), u = derivative1(x * at.a[j] + at.b[j], get(g[i]), how, i, drops);
        at.sum[j] += u;
        at.product[j] += u * (x - at.mean[j]);
    }
}

/* gh = a (u − sum − (h − mean) product) */
INLINE void gradient_with(
    const number *g, const number *h, number *gh, long n, activation how, const int drops, channels at,
    const int v
) {
    vector a[REGISTERS(v)], b[REGISTERS(v)], mean[REGISTERS(v)], sum[REGISTERS(v)], product[REGISTERS(v)];
    load_all(at.a, at, a, v), load_all(at.b, at, b, v), load_all(at.mean, at, mean, v);
    load_all(at.sum, at, sum, v), load_all(at.product, at, product, v);
    long i = 0;
    for (; at.p % LANES == 0 && i + at.p <= n; i += at.p)
        EACH(k, at, v) {
            long here = i + k * LANES;
            vector x = get_vector(h + here);
            vector u = derivative(x * a[k] + b[k], get_vector(g + here), how, here, drops);
            put_vector(gh + here, a[k] * (u - sum[k] - (x - mean[k]) * product[k]));
        }
    for (int j = 0; i < n; i++, j = j + 1 < at.p ? j + 1 : 0) {
        float x = get(h[i]), u = derivative1(x * at.a[j] + at.b[j], get(g[i]), how, i, drops);
        gh[i] = put(at.a[j] * (u - at.sum[j] - (x - at.mean[j]) * at.product[j]));
    }
}

/* With x̂ = (h − mean)/σ: g_β = Σ u, g_γ = Σ u x̂ and gh = γ/σ (u − g_β/N − x̂ g_γ/N). */
void normalise_backward(
    const number *g, const number *h, number *gh, long n, int c, const float *gamma,
    const float *beta, const float *saved, float *g_gamma, float *g_beta, activation how
) {
    static _Thread_local double sums[WIDEST], products[WIDEST];
    channels at = new_channels(c);
    float inverse_rows = 1.0f / (float)(n / c);
    for (int j = 0; j < at.p; j++) {
        at.mean[j] = saved[j % c];
        at.a[j] = gamma[j % c] * saved[c + j % c];
        at.b[j] = beta[j % c] - at.mean[j] * at.a[j];
    }
    activation there = how;
#define PASS(first, many) \
    if (how.words) { \
        there.words = how.words + first; \
        BY_PERIOD(at, gradient_sums, g + first, h + first, many, there, 1); \
    } else { \
        BY_PERIOD(at, gradient_sums, g + first, h + first, many, how, 0); \
    }
    IN_CHUNKS(c, n, at, sums, products, PASS)
#undef PASS
    for (int j = 0; j < c; j++) {
        g_beta[j] = (float)sums[j];
        g_gamma[j] = (float)products[j] * saved[c + j];
    }
    for (int j = 0; j < at.p; j++) {
        at.sum[j] = g_beta[j % c] * inverse_rows;
        at.product[j] = g_gamma[j % c] * saved[c + j % c] * inverse_rows;
    }
    if (how.words) {
        BY_PERIOD(at, gradient_with, g, h, gh, n, how, 1);
    } else {
        BY_PERIOD(at, gradient_with, g, h, gh, n, how, 0);
    }
}

INLINE void activate_with(
    const number *g, const number *h, number *out, long n, activation how, const int drops
) {
    long i = 0;
    for (; i + LANES <= n; i += LANES)
        put_vector(out + i, derivative(get_vector(h + i), get_vector(g + i), how, i, drops));
    for (; i < n; i++) out[i] = put(derivative1(get(h[i]), get(g[i]), how, i, drops));
}

/* Leaky ReLU and dropout without batch norm: g times their derivative at h; forward g is h itself. */
void activate(const number *g, const number *h, number *out, long n, activation how) {
    if (how.words) activate_with(g, h, out, n, how, 1);
    else activate_with(g, h, out, n, how, 0);
}

/* Adam's step of `count` weights w of n[i] numbers, gradients g and moments m and v, each with its
own number of steps so far; torch.optim.Adam's formula. */
void adam(
    int count, const long *n, float **w, const float **g, float **m, float **v, float **step,
    double lr, double beta1, double beta2, double eps
) {
    float b1 = (float)(1 - beta1), decay = (float)beta2, b2 = (float)(1 - beta2), e = (float)eps;
    for (int k = 0; k < count; k++) {
        float *restrict to = w[k], *restrict first = m[k], *restrict second = v[k];
        const float *restrict from = g[k];
        *step[k] += 1;
        float size = (float)(lr / (1 - pow(beta1, *step[k])));
        float root = (float)(1 / sqrt(1 - pow(beta2, *step[k])));
        for (long i = 0; i < n[k]; i++) {
            first[i] += b1 * (from[i] - first[i]);
            second[i] = decay * second[i] + b2 * from[i] * from[i];
            to[i] -= size * first[i] / (sqrtf(second[i]) * root + e);
        }
    }
}
