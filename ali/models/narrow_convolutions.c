/* Convolutions of narrow networks on one CPU thread, and their gradients; see narrow.py.

A map of 4 or 8 channels leaves most of a vector register empty. Here the lanes of one are neighbour
pixels and their channels: in channels-last memory f pixels of C channels are f·C numbers in a row,
and so are the (s(f − 1) + k)·C inputs that a row of a kernel needs for them. A convolution of width
k and stride s is then, for each row of the kernel, a product of that run of inputs with a matrix
(run × f·O) that repeats the kernel's weights, and so are its gradients. */

#include "narrow.h"

enum { MATRIX, BIAS, PLACES, IMAGE, LANED }; /* buffers */
enum { SLACK = 64 }; /* numbers that may be read behind the last, and count for nothing */

/* Convolutions: (B, H, W, C) → (B, H', W', O), kernel k × k, valid, weights (O, k, k, C) -------- */

typedef struct {
    int batch, height, width, in, out, k, stride;
} shape;

INLINE int shrunk(int size, shape s) { return (size - s.k) / s.stride + 1; }

/* Where groups of pixels begin in the input and in the output, and how many lanes they fill. */
typedef struct {
    int count, *from, *to, *lanes;
} places;

static places new_places(int most) {
    int *memory = buffer(PLACES, (size_t)most * 3 * sizeof(int));
    return (places){0, memory, memory + most, memory + 2 * most};
}
static void add_place(places *p, int from, int to, int lanes) {
    p->from[p->count] = from, p->to[p->count] = to, p->lanes[p->count++] = lanes;
}

/* Pixels a group for the least work, where f of them need a run of stride (f − 1) + k. */
static int pixels_a_group(int width, int k, int stride, int maps) {
    int best = 1;
    long cost, cheapest = 0;
    for (int f = 1; f <= 16; f++) {
        cost = (long)((width + f - 1) / f) * (stride * (f - 1) + k) * up(f * maps, LANES);
        if (f == 1 || cost < cheapest) best = f, cheapest = cost;
    }
    return best;
}

/* Element (r, i, lane) of a packed matrix of `rows` × run × n: PAIR of i lie side by side. */
INLINE number *packed(number *matrix, int run, int n, int r, int i, int lane) {
    return matrix + ((long)r * run + i / PAIR * PAIR) * n + lane * PAIR + i % PAIR;
}

/* The kernel's weights as numbers. */
static const number *converted(const float *w, shape s) {
    long n = (long)s.out * s.k * s.k * s.in;
    number *to = buffer(LANED, n * sizeof(number));
    put_row(w, to, n);
    return to;
}

/* out[to + lane] = bias[lane] + Σ_r Σ_i a[from + step[r] + i] · matrix[r][i][lane], of `many` places
at once and `wide` registers, from lane `first` on. */
INLINE void products_block(
    const number *a, places at, int m, const int *step, int rows, int run, const number *matrix, int n,
    const float *bias, number *out, int first, const int wide, const int many
) {
    vector sums[ACROSS];
    UNROLL for (int j = 0; j < many; j++)
        UNROLL for (int l = 0; l < wide; l++)
            sums[j * wide + l] = bias ? load(bias + first + LANES * l) : (vector){0};
    for (int r = 0; r < rows; r++) {
        const number *from[ACROSS], *w = matrix + (long)r * run * n + first * PAIR;
        UNROLL for (int j = 0; j < many; j++) from[j] = a + at.from[least(m + j, at.count - 1)] + step[r];
        for (int i = 0; i < run; i += PAIR) {
            row weights[4];
            UNROLL for (int l = 0; l < wide; l++)
                weights[l] = load_row(w + (long)i * n + LANES * PAIR * l);
            UNROLL for (int j = 0; j < many; j++)
                UNROLL for (int l = 0; l < wide; l++)
                    sums[j * wide + l] = add_product(sums[j * wide + l], from[j] + i, weights[l]);
        }
    }
    UNROLL for (int j = 0; j < many; j++)
        UNROLL for (int l = 0; l < wide; l++) {
            if (m + j >= at.count) break;
            int lane = first + LANES * l, left = at.lanes[m + j] - lane;
            number part[LANES], *to = out + at.to[m + j] + lane;
            if (left >= LANES) put_vector(to, sums[j * wide + l]);
            else if (left > 0) {
                put_vector(part, sums[j * wide + l]);
                memcpy(to, part, left * sizeof(number));
            }
        }
}

/* Blocks of as many places as fill the registers; of fewer, or two thirds twice, for the last. */
static void products(
    const number *a, places at, const int *step, int rows, int run, const number *matrix, int n,
    const float *bias, number *out
) {
#define BLOCK(wide, many) \
    products_block(a, at, m, step, rows, run, matrix, n, bias, out, lane, wide, many), m += many
    for (int lane = 0, wide; lane < n; lane += wide * LANES) {
        int left = (n - lane) / LANES;
        wide = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (int m = 0, rest; rest = at.count - m, rest > 0;)
            if (wide == 4) {
                if (rest > ACROSS / 8) BLOCK(4, ACROSS / 4);
                else BLOCK(4, ACROSS / 8);
            } else if (wide == 2) {
                if (rest > ACROSS / 6) BLOCK(2, ACROSS / 3);
                else BLOCK(2, ACROSS / 6);
            } else {
                int some = rest > ACROSS / 2 && rest <= ACROSS / 3 * 2;
                if (rest > ACROSS / 3 && !some) BLOCK(1, ACROSS / 2);
                else if (rest > ACROSS / 6) BLOCK(1, ACROSS / 3);
                else BLOCK(1, ACROSS / 6);
            }
    }
}

/* An image with memory behind it that may be read. */
static const number *with_slack(const number *image, size_t size) {
    number *copy = buffer(IMAGE, (size + SLACK * 64) * sizeof(number));
    memcpy(copy, image, size * sizeof(number));
    return memset(copy + size, 0, SLACK * 64 * sizeof(number)), copy;
}

void convolve(const number *h, const float *w, const float *bias, number *out, shape s) {
    int rows = shrunk(s.height, s), width = shrunk(s.width, s);
    int f = pixels_a_group(width, s.k, s.stride, s.out), n = up(f * s.out, LANES);
    int run = up((s.stride * (f - 1) + s.k) * s.in, PAIR);
    number *matrix = zeros(MATRIX, (size_t)s.k * run * n * sizeof(number));
    int together = s.in % PAIR == 0 ? PAIR : 1; /* inputs that lie side by side there, too */
    const number *from = converted(w, s);
    for (int o = 0; o < s.out; o++)
        for (int y = 0; y < s.k; y++)
            for (int q = 0; q < f; q++) {
                const number *v = from + (o * s.k + y) * s.k * s.in;
                for (int i = 0; i < s.k * s.in; i += together)
                    memcpy(
                        packed(matrix, run, n, y, q * s.stride * s.in + i, q * s.out + o), v + i,
                        together * sizeof(number)
                    );
            }
    float *wide = bias ? zeros(BIAS, n * sizeof(float)) : NULL;
    for (int lane = 0; bias && lane < f * s.out; lane++) wide[lane] = bias[lane % s.out];

    places at = new_places(rows * width);
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < width; x += f)
            add_place(
                &at, (y * s.width + x) * s.stride * s.in, (y * width + x) * s.out,
                least(f, width - x) * s.out
            );
    int step[16];
    for (int y = 0; y < s.k; y++) step[y] = y * s.width * s.in;
    size_t image = (size_t)s.height * s.width * s.in;
    for (int b = 0; b < s.batch; b++, h += image, out += (size_t)rows * width * s.out)
        products(b < s.batch - 1 ? h : with_slack(h, image), at, step, s.k, run, matrix, n, wide, out);
}

/* The gradient gh of h from that of the output, g; or a transposed convolution of g, which is the
same. `stride` neighbours in gh see the same pixels of g, each with other weights of the kernel. */
void convolve_transposed(const number *g, const float *w, number *gh, shape s) {
    int rows = shrunk(s.height, s), width = shrunk(s.width, s), st = s.stride;
    int taps = (s.k + st - 1) / st; /* pixels of g that a pixel of gh sees, each way */
    int high = (s.height + st - 1) / st, across = (s.width + st - 1) / st;
    int f = pixels_a_group(across, taps, 1, st * s.in), n = up(f * st * s.in, LANES);
    int run = up((f + taps - 1) * s.out, PAIR);
    size_t size = (size_t)taps * run * n;
    number *matrix = zeros(MATRIX, st * size * sizeof(number));
    const number *from = converted(w, s);
    long apart = (long)s.k * s.k * s.in;
    int together = s.out % PAIR == 0 ? PAIR : 1; /* outputs that lie side by side there */
    for (int o = 0; o < s.out; o += together)
        for (int y = 0; y < s.k; y++)
            for (int x = 0; x < s.k; x++)
                for (int q = 0; q < f; q++) {
                    int i = (q - x / st + taps - 1) * s.out + o, lane = (q * st + x % st) * s.in;
                    number *to = packed(matrix + y % st * size, run, n, y / st, i, lane);
                    const number *v = from + o * apart + (y * s.k + x) * s.in;
                    if (together == PAIR) interleave(v, v + (PAIR - 1) * apart, to, s.in);
                    else
                        for (int c = 0; c < s.in; c++) to[c * PAIR] = v[c];
                }

    /* g in zeros, so that the first and the last pixels of gh see as many as the others */
    int border = taps - 1, padded = up(across, f) + border, tall = high + border;
    if (padded < width + border) padded = width + border;
    if (tall < rows + border) tall = rows + border;
    number *image = zeros(IMAGE, ((size_t)tall * padded * s.out + SLACK) * sizeof(number));
    int step[16];
    for (int y = 0; y < taps; y++) step[y] = (border - y) * padded * s.out;
    places row = new_places(high * across);
    for (int b = 0; b < s.batch; b++, gh += (size_t)s.height * s.width * s.in) {
        for (int y = 0; y < rows; y++, g += width * s.out)
            memcpy(image + ((y + border) * padded + border) * s.out, g, width * s.out * sizeof(number));
        for (int offset = 0; offset < st; offset++)
            for (int y = 0; y * st + offset < s.height; y++) {
                int first = y < rows ? 0 : y - rows + 1, end = least(taps, y + 1);
                row = (places){0, row.from, row.to, row.lanes};
                int last = y; /* of the rows that see the same taps */
                while (first == 0 && end == taps && last + 1 < rows && (last + 1) * st + offset < s.height)
                    last++;
                for (int v = y; v <= last; v++)
                    for (int x = 0; x < across; x += f)
                        add_place(
                            &row, (v * padded + x) * s.out, ((v * st + offset) * s.width + x * st) * s.in,
                            least(f * st, s.width - x * st) * s.in
                        );
                const number *part = matrix + offset * size + (long)first * run * n;
                if (first < end)
                    products(image, row, step + first, end - first, run, part, n, NULL, gh);
                else { /* the convolution did not see it */
                    size_t line = (size_t)s.width * s.in;
                    memset(gh + (y * st + offset) * line, 0, line * sizeof(number));
                }
                y = last;
            }
    }
}

/* A matrix of rows × groups × run numbers; in bfloat16 two groups side by side (PAIR). */
typedef struct {
    const number *at;
    long row, group;
} grid;

/* sums[i][lane] += Σ a[i] · g[lane] over all rows and groups, i < many: one product a register. */
INLINE void outer_block(grid a, grid g, int rows, int groups, float *sums, int n, const int many) {
    vector sum[ACROSS];
    UNROLL for (int i = 0; i < many; i++) sum[i] = (vector){0};
    for (int v = 0; v < rows; v++, a.at += a.row, g.at += g.row) {
        const number *x = a.at, *y = g.at;
        for (int u = 0; u < groups; u++, x += a.group, y += g.group) {
            row lanes = load_row(y);
            UNROLL for (int i = 0; i < many; i++) sum[i] = add_product(sum[i], x + i * PAIR, lanes);
        }
    }
    UNROLL for (int i = 0; i < many; i++) {
        vector total = load(sums + (long)i * n) + sum[i];
        memcpy(sums + (long)i * n, &total, sizeof total);
    }
}

/* Up to three products more than the run has; what they read is there, and nobody reads them. */
static void outer(grid a, grid g, int rows, int groups, float *sums, int n, int run) {
    for (int i = 0, many; i < run; i += many, a.at += many * PAIR) {
        float *to = sums + (long)i * n;
        many = least(ACROSS, up(run - i, 4));
#define OUTER(many) outer_block(a, g, rows, groups, to, n, many)
        switch (many / 4) {
            case 1: OUTER(4); break;
            case 2: OUTER(8); break;
            case 3: OUTER(12); break;
            case 4: OUTER(least(16, ACROSS)); break;
            case 5: OUTER(least(20, ACROSS)); break;
            default: OUTER(ACROSS);
        }
    }
}

/* A row of groups of `size` numbers, `last` in the last, that begin `apart` numbers from each other,
as a row of a grid with `room` numbers a group. What is not written there stays zero. */
static void spread(
    const number *from, int groups, int apart, int size, int last, number *restrict to, int room
) {
    int u = 0;
    for (; u + PAIR < groups; u += PAIR, from += PAIR * apart, to += PAIR * room)
        interleave(from, from + (PAIR - 1) * apart, to, size);
    for (int j = 0; u < groups; u++, j++, from += apart)
        for (int i = 0; i < (u < groups - 1 ? size : last); i++) to[i * PAIR + j] = from[i];
}

/* The gradient gw (O, k, k, C) of the weights, and gb (O) of the bias where there is one. */
void convolve_weights(const number *h, const number *g, float *gw, float *gb, shape s) {
    int rows = shrunk(s.height, s), width = shrunk(s.width, s);
    int f = pixels_a_group(width, s.k, s.stride, s.out), n = up(f * s.out, LANES);
    int run = (s.stride * (f - 1) + s.k) * s.in, groups = (width + f - 1) / f;
    int apart = f * s.stride * s.in, before = (groups - 1) * f, pairs = up(groups, PAIR) / PAIR;
    int h_last = least(run, (s.width - before * s.stride) * s.in), g_last = (width - before) * s.out;
    long h_row = (long)pairs * run * PAIR, g_row = (long)pairs * n * PAIR;
    long part = (long)up(run, 4) * n; /* sums of a row of the kernel */
    float *sums = zeros(MATRIX, s.k * part * sizeof(float));
    number *hs = zeros(IMAGE, (s.height * h_row + SLACK) * sizeof(number));
    number *gs = zeros(LANED, rows * g_row * sizeof(number));
    for (int o = 0; gb && o < s.out; o++) gb[o] = 0;
    for (int b = 0; b < s.batch; b++) {
        for (int y = 0; y < s.height; y++, h += s.width * s.in)
            spread(h, groups, apart, run, h_last, hs + y * h_row, run);
        for (int y = 0; y < rows; y++, g += width * s.out) {
            spread(g, groups, f * s.out, f * s.out, g_last, gs + y * g_row, n);
            for (int x = 0; gb && x < width; x++)
                for (int o = 0; o < s.out; o++) gb[o] += get(g[x * s.out + o]);
        }
        for (int lane = 0; lane < n; lane += LANES)
            for (int y = 0; y < s.k; y++) {
                grid a = {hs + y * h_row, s.stride * h_row, (long)run * PAIR};
                grid lanes = {gs + (long)lane * PAIR, g_row, (long)n * PAIR};
                outer(a, lanes, rows, pairs, sums + y * part + lane, n, run);
            }
    }
    for (int o = 0; o < s.out; o++)
        for (int y = 0; y < s.k; y++)
            for (int x = 0; x < s.k; x++)
                for (int c = 0; c < s.in; c++, gw++) {
                    *gw = 0;
                    for (int q = 0; q < f; q++)
                        *gw += sums[y * part + ((q * s.stride + x) * s.in + c) * n + q * s.out + o];
                }
}
