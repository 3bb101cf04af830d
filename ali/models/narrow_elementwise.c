/* Batch norm, leaky ReLU and dropout of h (N, C) together, and Adam, on one CPU thread; see narrow.py. */

#include "narrow.h"

enum { WIDEST = 4096, CHUNK = 512 }; /* channels; rows that are added up in float, then in double */

/* Rows of C numbers are taken as rows of `period(C)`, a multiple that fills vector registers. */
static int period(int c) {
    int p = c;
    while ((p % 16 || p < 256) && p <= WIDEST - c) p += c;
    return p;
}

/* Of leaky ReLU and dropout, whose multiplier is 0 or 1/(1 − p); NULL: no dropout. */
INLINE float factor(float y, float slope, const number *multiplier, long i, const int drops) {
    float f = y > 0 ? 1.0f : slope;
    return drops ? f * get(multiplier[i]) : f;
}

/* out[c] = Σ (h − mean[c]) over the rows, or Σ (h − mean[c])² */
INLINE void sums_of(const number *h, const float *mean, long n, int c, double *out, const int squared) {
    static _Thread_local float sum[WIDEST], m[WIDEST];
    int p = period(c);
    for (int j = 0; j < p; j++) m[j] = mean[j % c];
    for (int j = 0; j < c; j++) out[j] = 0;
    for (long i = 0; i < n;) {
        long stop = i + (long)CHUNK * p < n ? i + (long)CHUNK * p : n;
        for (int j = 0; j < p; j++) sum[j] = 0;
        for (; i < stop; i += p) {
            int here = stop - i < p ? (int)(stop - i) : p;
            for (int j = 0; j < here; j++) {
                float v = get(h[i + j]) - m[j];
                sum[j] += squared ? v * v : v;
            }
        }
        for (int j = 0; j < p; j++) out[j % c] += sum[j];
    }
}

INLINE void normalise_with(
    const number *restrict h, number *restrict out, const float *restrict a, const float *restrict b,
    long n, int p, float slope, const number *restrict multiplier, const int drops
) {
    for (long i = 0; i < n; i += p) {
        int here = n - i < p ? (int)(n - i) : p;
        for (int j = 0; j < here; j++) {
            float y = get(h[i + j]) * a[j] + b[j];
            out[i + j] = put(y * factor(y, slope, multiplier, i + j, drops));
        }
    }
}

/* saved: mean and 1/σ (2, C), for the way back */
void normalise(
    const number *h, number *out, long n, int c, const float *gamma, const float *beta,
    float *running_mean, float *running_var, float momentum, float eps, float *saved,
    float slope, const number *multiplier
) {
    static _Thread_local float a[WIDEST], b[WIDEST];
    static _Thread_local double sum[WIDEST];
    float *mean = saved, *inverse = saved + c;
    double rows = (double)(n / c);
    for (int j = 0; j < c; j++) mean[j] = 0;
    sums_of(h, mean, n, c, sum, 0);
    for (int j = 0; j < c; j++) mean[j] = (float)(sum[j] / rows);
    sums_of(h, mean, n, c, sum, 1);
    for (int j = 0; j < c; j++) {
        inverse[j] = (float)(1 / sqrt(sum[j] / rows + eps));
        running_mean[j] += momentum * (mean[j] - running_mean[j]);
        running_var[j] += momentum * ((float)(sum[j] / (rows - 1)) - running_var[j]);
    }
    int p = period(c);
    for (int j = 0; j < p; j++) {
        a[j] = gamma[j % c] * inverse[j % c];
        b[j] = beta[j % c] - mean[j % c] * a[j];
    }
    if (multiplier) normalise_with(h, out, a, b, n, p, slope, multiplier, 1);
    else normalise_with(h, out, a, b, n, p, slope, NULL, 0);
}

/* With v the gradient of batch norm's output and x̂ = (h − mean)/σ: g_β = Σ v, g_γ = Σ v x̂ and
gh = γ/σ (v − g_β/N − x̂ g_γ/N). */
INLINE void normalise_backward_with(
    const number *restrict g, const number *restrict h, number *restrict gh, long n, int c,
    const float *gamma, const float *beta, const float *saved, float *g_gamma, float *g_beta,
    float slope, const number *restrict multiplier, const int drops
) {
    static _Thread_local float a[WIDEST], b[WIDEST], mean[WIDEST], sum[WIDEST], product[WIDEST];
    static _Thread_local double sums[WIDEST], products[WIDEST];
    int p = period(c);
    float inverse_rows = 1.0f / (float)(n / c);
    for (int j = 0; j < p; j++) {
        mean[j] = saved[j % c];
        a[j] = gamma[j % c] * saved[c + j % c];
        b[j] = beta[j % c] - mean[j] * a[j];
    }
    for (int j = 0; j < c; j++) sums[j] = products[j] = 0;
    for (long i = 0; i < n;) {
        long stop = i + (long)CHUNK * p < n ? i + (long)CHUNK * p : n;
        for (int j = 0; j < p; j++) sum[j] = product[j] = 0;
        for (; i < stop; i += p) {
            int here = stop - i < p ? (int)(stop - i) : p;
            for (int j = 0; j < here; j++) {
                float x = get(h[i + j]);
                float v = get(g[i + j]) * factor(x * a[j] + b[j], slope, multiplier, i + j, drops);
                sum[j] += v;
                product[j] += v * (x - mean[j]);
            }
        }
        for (int j = 0; j < p; j++) sums[j % c] += sum[j], products[j % c] += product[j];
    }
    for (int j = 0; j < c; j++) {
        g_beta[j] = (float)sums[j];
        g_gamma[j] = (float)products[j] * saved[c + j];
    }
    for (int j = 0; j < p; j++) {
        sum[j] = g_beta[j % c] * inverse_rows;
        product[j] = g_gamma[j % c] * saved[c + j % c] * inverse_rows;
    }
    for (long i = 0; i < n; i += p) {
        int here = n - i < p ? (int)(n - i) : p;
        for (int j = 0; j < here; j++) {
            float x = get(h[i + j]);
            float v = get(g[i + j]) * factor(x * a[j] + b[j], slope, multiplier, i + j, drops);
            gh[i + j] = put(a[j] * (v - sum[j] - (x - mean[j]) * product[j]));
        }
    }
}

void normalise_backward(
    const number *g, const number *h, number *gh, long n, int c, const float *gamma,
    const float *beta, const float *saved, float *g_gamma, float *g_beta, float slope,
    const number *multiplier
) {
    if (multiplier)
        normalise_backward_with(
            g, h, gh, n, c, gamma, beta, saved, g_gamma, g_beta, slope, multiplier, 1
        );
    else
        normalise_backward_with(g, h, gh, n, c, gamma, beta, saved, g_gamma, g_beta, slope, NULL, 0);
}

/* Leaky ReLU and dropout without batch norm: out = g · factor(h); forward g is h itself. */
void activate(
    const number *g, const number *h, number *restrict out, long n, float slope,
    const number *restrict multiplier
) {
    if (multiplier)
        for (long i = 0; i < n; i++)
            out[i] = put(get(g[i]) * factor(get(h[i]), slope, multiplier, i, 1));
    else
        for (long i = 0; i < n; i++) out[i] = put(get(g[i]) * factor(get(h[i]), slope, NULL, i, 0));
}

/* Adam's step of n weights w, gradients g and their moments m and v; torch.optim.Adam's formula. */
void adam(
    float *restrict w, const float *restrict g, float *restrict m, float *restrict v, float *step,
    long n, double lr, double beta1, double beta2, double eps
) {
    *step += 1;
    float b1 = (float)(1 - beta1), decay = (float)beta2, b2 = (float)(1 - beta2), e = (float)eps;
    float size = (float)(lr / (1 - pow(beta1, *step)));
    float root = (float)(1 / sqrt(1 - pow(beta2, *step)));
    for (long i = 0; i < n; i++) {
        m[i] += b1 * (g[i] - m[i]);
        v[i] = decay * v[i] + b2 * g[i] * g[i];
        w[i] -= size * m[i] / (sqrtf(v[i]) * root + e);
    }
}
