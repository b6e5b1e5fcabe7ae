/* What sampling computes again and again for a few rows at a time: products with weights that are laid out once, and
 * attention from one position to those before it. All in float32.
 *
 * Libraries of matrix products are made for large matrices. Here a product has as many rows as there are samples, so
 * what counts is that each weight is read from memory once, in order, and is met by all rows while it is in a register.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for madvise */
#endif
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define LANES 16
#define TILE 12 /* rows that meet a panel in registers: 24 sums, 2 weights */
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define TILE 6
#elif defined(__aarch64__)
#include <arm_neon.h>
#define LANES 4
#define TILE 12
#else
#error "needs AVX2, AVX-512 or NEON"
#endif

#define PANEL (2 * LANES) /* outputs whose weights lie side by side */
#define BLOCK 512         /* inputs that a tile is packed for at a time */
#define PITCH (BLOCK + 16) /* of a packed row; no multiple of 4 KiB, so that rows do not fight for the same cache lines */
#define LONG_BLOCK 8192   /* the same of a single row */

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS vector all(float value) { return value - (vector){0}; }

ALWAYS vector choose(integers mask, vector yes, vector no) {
    return (vector)(((integers)yes & mask) | ((integers)no & ~mask));
}

/* e^x to some two units in the last place; x is cut to where float32 has an answer. */
ALWAYS vector exponential(vector x) {
    x = choose(x < -87.0f, all(-87.0f), x);
    x = choose(x > 88.0f, all(88.0f), x);
    vector shifted = x * 1.44269504f + 12582912.0f; /* rounds to an integer in the low bits */
    vector whole = shifted - 12582912.0f;
    vector rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vector p = all(1.9875691500e-4f);
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    integers exponent = ((integers)shifted - 0x4B400000 + 127) << 23;
    return p * (vector)exponent;
}

/* --- the input of a product ------------------------------------------------------------------------------------------
 *
 * Row m = sample·positions + position. Its numbers lie in `segments` runs of `length`, one in each slot of a ring of
 * `slots` rows of features, from the slot `first` on. What is done to them on the way: */
enum { AS_THEY_ARE, ELU, NORMALIZED, GATED_SILU };

typedef struct {
    const float *numbers;
    int64_t positions, sample_stride, position_stride;
    int64_t segments, slots, first, slot_stride, length;
    int64_t change;
    const float *scale, *shift; /* of NORMALIZED, a row for each sample, or one for all where the stride is 0 */
    int64_t scale_stride, shift_stride;
    float epsilon;
} input;

ALWAYS const float *row_of(const input *x, int64_t m) {
    return x->numbers + m / x->positions * x->sample_stride + m % x->positions * x->position_stride;
}

ALWAYS float sum_of(vector value) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)value);
#elif LANES == 8
    __m256 wide = (__m256)value;
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(wide), _mm256_extractf128_ps(wide, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
    return vaddvq_f32((float32x4_t)value);
#endif
}

/* The sums of four vectors at once, which takes less than half of what they take one by one. */
ALWAYS void four_sums(vector a, vector b, vector c, vector d, float *out) {
#if LANES == 16
    __m512 w = (__m512)a, x = (__m512)b, y = (__m512)c, z = (__m512)d;
    __m512 first = _mm512_add_ps(_mm512_unpacklo_ps(w, x), _mm512_unpackhi_ps(w, x));
    __m512 second = _mm512_add_ps(_mm512_unpacklo_ps(y, z), _mm512_unpackhi_ps(y, z));
    __m512 all_four = _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44), _mm512_shuffle_ps(first, second, 0xEE));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all_four), _mm512_extractf32x8_ps(all_four, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif LANES == 8
    __m256 w = (__m256)a, x = (__m256)b, y = (__m256)c, z = (__m256)d;
    __m256 first = _mm256_add_ps(_mm256_unpacklo_ps(w, x), _mm256_unpackhi_ps(w, x));
    __m256 second = _mm256_add_ps(_mm256_unpacklo_ps(y, z), _mm256_unpackhi_ps(y, z));
    __m256 all_four = _mm256_add_ps(_mm256_shuffle_ps(first, second, 0x44), _mm256_shuffle_ps(first, second, 0xEE));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all_four), _mm256_extractf128_ps(all_four, 1)));
#else
    float32x4_t first = vpaddq_f32((float32x4_t)a, (float32x4_t)b);
    vst1q_f32(out, vpaddq_f32(first, vpaddq_f32((float32x4_t)c, (float32x4_t)d)));
#endif
}

static float inverse_rms(const float *row, int64_t length, float epsilon) {
    vector a = {0}, b = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= length; i += 2 * LANES) {
        vector first = *(const vector *)(row + i), second = *(const vector *)(row + i + LANES);
        a += first * first;
        b += second * second;
    }
    float total = sum_of(a + b);
    for (; i < length; i++) total += row[i] * row[i];
    return 1.0f / sqrtf(total / (float)length + epsilon);
}

ALWAYS vector changed(int64_t change, vector value, vector gate) {
    if (change == ELU) return choose(value > 0.0f, value, exponential(value) - 1.0f);
    return value / (1.0f + exponential(-value)) * gate;
}

/* `count` numbers of a row from `start` of a segment on, changed, into `packed`. */
static void pack_row(const input *x, const float *row, int64_t sample, float factor, int64_t start, int64_t count,
                     float *packed) {
    const float *from = row + start;
    switch (x->change) {
    case AS_THEY_ARE:
        memcpy(packed, from, (size_t)count * sizeof(float));
        return;
    case NORMALIZED: {
        const float *scale = x->scale + sample * x->scale_stride + start;
        const float *shift = x->shift ? x->shift + sample * x->shift_stride + start : NULL;
        for (int64_t i = 0; i < count; i++) packed[i] = from[i] * factor * scale[i];
        if (shift)
            for (int64_t i = 0; i < count; i++) packed[i] += shift[i];
        return;
    }
    }
    const float *other = from + x->length;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        *(vector *)(packed + i) = changed(x->change, *(const vector *)(from + i),
                                          x->change == ELU ? all(0.0f) : *(const vector *)(other + i));
    if (i < count) {
        size_t bytes = (size_t)(count - i) * sizeof(float);
        float part[LANES] = {0}, gate[LANES] = {0};
        memcpy(part, from + i, bytes);
        if (x->change == GATED_SILU) memcpy(gate, other + i, bytes);
        *(vector *)part = changed(x->change, *(vector *)part, *(vector *)gate);
        memcpy(packed + i, part, bytes);
    }
}

/* --- the product ---------------------------------------------------------------------------------------------------*/

typedef struct {
    float *numbers;
    int64_t stride;
    const float *bias, *gate, *add; /* out = add + gate · (product + bias), each left out where NULL */
    int64_t gate_stride, add_stride;
} output;

/* One tile of rows with one panel of weights over `count` inputs. Meanwhile the weights at `ahead`, as many, are brought
 * near: all of them where `lines` is 2, half of them where it is 1. The hardware looks ahead too little, and where several
 * tiles meet the same panel, memory would idle in all but the first. */
ALWAYS void tile(int rows, const float *packed, const float *weights, int64_t count, const float *ahead, int lines,
                 float sums[TILE][PANEL]) {
    vector a[TILE], b[TILE];
    for (int r = 0; r < rows; r++) a[r] = b[r] = (vector){0};
    for (int64_t c = 0; c < count; c++) {
        const float *at = weights + c * PANEL;
        vector left = *(const vector *)at, right = *(const vector *)(at + LANES);
        if (lines > 0) __builtin_prefetch(ahead + c * lines * LANES, 0, 2);
        if (lines > 1) __builtin_prefetch(ahead + c * lines * LANES + LANES, 0, 2);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            float value = packed[r * PITCH + c];
            a[r] += left * value;
            b[r] += right * value;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        *(vector *)sums[r] = a[r];
        *(vector *)(sums[r] + LANES) = b[r];
    }
}

/* The same for a single row, with four sums for each output, since one would wait for the product before. */
ALWAYS void single(const float *packed, const float *weights, int64_t count, float sums[TILE][PANEL]) {
    vector a[4], b[4];
    for (int i = 0; i < 4; i++) a[i] = b[i] = (vector){0};
    int64_t c = 0;
    for (; c + 4 <= count; c += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const float *at = weights + (c + i) * PANEL;
            __builtin_prefetch(at + 64 * PANEL);
            __builtin_prefetch(at + 64 * PANEL + LANES);
            a[i] += *(const vector *)at * packed[c + i];
            b[i] += *(const vector *)(at + LANES) * packed[c + i];
        }
    }
    for (; c < count; c++) {
        a[0] += *(const vector *)(weights + c * PANEL) * packed[c];
        b[0] += *(const vector *)(weights + c * PANEL + LANES) * packed[c];
    }
    *(vector *)sums[0] = (a[0] + a[1]) + (a[2] + a[3]);
    *(vector *)(sums[0] + LANES) = (b[0] + b[1]) + (b[2] + b[3]);
}

static void any_tile(int64_t rows, const float *packed, const float *weights, int64_t count, const float *ahead,
                     int lines, float sums[TILE][PANEL]) {
    switch (rows) {
    case 1: single(packed, weights, count, sums); return;
#define OF(n) case n: tile(n, packed, weights, count, ahead, lines, sums); return;
    OF(2) OF(3) OF(4) OF(5) OF(6)
#if TILE > 6
    OF(7) OF(8) OF(9) OF(10) OF(11) OF(12)
#endif
#undef OF
    }
}

/* What a block of inputs adds to one row of the output; the last block brings bias, gate and addend. */
ALWAYS void store_row(const output *y, int64_t m, int64_t sample, int64_t start, int64_t count, const float *sums,
                      int is_first, int is_last) {
    float *out = y->numbers + m * y->stride + start;
    float value[PANEL];
    for (int64_t i = 0; i < count; i++) value[i] = is_first ? sums[i] : out[i] + sums[i];
    if (is_last) {
        if (y->bias)
            for (int64_t i = 0; i < count; i++) value[i] += y->bias[start + i];
        if (y->gate)
            for (int64_t i = 0; i < count; i++) value[i] *= y->gate[sample * y->gate_stride + start + i];
        if (y->add)
            for (int64_t i = 0; i < count; i++) value[i] += y->add[m * y->add_stride + start + i];
    }
    for (int64_t i = 0; i < count; i++) out[i] = value[i];
}

static void store(const output *y, int64_t m, int64_t sample, int64_t start, int64_t count, const float *sums,
                  int is_first, int is_last) {
    /* Twice, so that the compiler knows how long the usual case is. */
    if (count == PANEL)
        store_row(y, m, sample, start, PANEL, sums, is_first, is_last);
    else
        store_row(y, m, sample, start, count, sums, is_first, is_last);
}

int64_t hvq_panel(void) { return PANEL; }

/* Ask for large pages, of which a walk through weights and caches needs few; before the memory is first used. */
void hvq_large_pages(void *start, int64_t bytes) {
#if defined(__linux__)
    uintptr_t size = 1 << 21, first = ((uintptr_t)start + size - 1) & ~(size - 1);
    uintptr_t end = ((uintptr_t)start + (uintptr_t)bytes) & ~(size - 1);
    if (first < end) madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

/* out = add + gate · (W x + bias) for `rows` rows; `weights` [panels][segments·length][PANEL]. Returns 0, or 1 without
 * memory. */
int hvq_product(const float *numbers, int64_t rows, int64_t positions, int64_t sample_stride, int64_t position_stride,
                int64_t segments, int64_t slots, int64_t first, int64_t slot_stride, int64_t length, int64_t change,
                const float *scale, int64_t scale_stride, const float *shift, int64_t shift_stride, float epsilon,
                const float *weights, int64_t outputs, const float *bias, const float *gate, int64_t gate_stride,
                const float *add, int64_t add_stride, float *out, int64_t out_stride, int threads) {
    const input x = {numbers, positions, sample_stride, position_stride, segments, slots,        first,
                     slot_stride, length, change, scale, shift, scale_stride, shift_stride, epsilon};
    const output y = {out, out_stride, bias, gate, add, gate_stride, add_stride};
    if (rows <= 0) return 0;
    int64_t tiles = (rows + TILE - 1) / TILE, height = (rows + tiles - 1) / tiles;
    int64_t panels = (outputs + PANEL - 1) / PANEL, inputs = segments * length;
    int64_t block = rows == 1 ? LONG_BLOCK : BLOCK;
    float *packed = aligned_alloc(64, (size_t)(rows == 1 ? block : tiles * height * PITCH) * sizeof(float));
    float *factors = malloc((size_t)(tiles * height) * sizeof(float));
    if (!packed || !factors) {
        free(packed);
        free(factors);
        return 1;
    }
    /* Two threads for less than this many products cost more than they bring. */
    if (rows * inputs * outputs < 20000) threads = 1;
#pragma omp parallel num_threads(threads)
    for (int64_t segment = 0; segment < segments; segment++) {
        for (int64_t start = 0; start < length; start += block) {
            int64_t count = length - start < block ? length - start : block;
            int64_t done = segment * length + start, ring = (first + segment) % slots * slot_stride;
            int is_first = done == 0, is_last = done + count == inputs;
#pragma omp for schedule(static)
            for (int64_t m = 0; m < tiles * height; m++) {
                if (m >= rows) {
                    memset(packed + m * PITCH, 0, (size_t)count * sizeof(float));
                    continue;
                }
                const float *row = row_of(&x, m) + ring;
                if (is_first) factors[m] = change == NORMALIZED ? inverse_rms(row, length, epsilon) : 1.0f;
                pack_row(&x, row, m / positions, factors[m], start, count, packed + m * PITCH);
            }
#pragma omp for schedule(static)
            for (int64_t panel = 0; panel < panels; panel++) {
                const float *from = weights + (panel * inputs + done) * PANEL;
                int64_t begin = panel * PANEL, many = outputs - begin < PANEL ? outputs - begin : PANEL;
                float sums[TILE][PANEL];
                for (int64_t t = 0; t < tiles; t++) {
                    const float *ahead = from + inputs * PANEL + t * count * LANES;
                    int lines = panel + 1 == panels || t > 1 ? 0 : tiles == 1 ? 2 : 1;
                    any_tile(height, packed + t * height * PITCH, from, count, ahead, lines, sums);
                    for (int64_t r = 0; r < height && t * height + r < rows; r++) {
                        int64_t m = t * height + r;
                        store(&y, m, m / positions, begin, many, sums[r], is_first, is_last);
                    }
                }
            }
        }
    }
    free(packed);
    free(factors);
    return 0;
}

/* --- attention -----------------------------------------------------------------------------------------------------*/

/* One head's query or key: normalised to a root mean square of `scale`, then pairs (i, i + half) turned by the angle of
 * the position, then all multiplied by `factor`. Norm and turn are left out where their numbers are NULL. */
static void turn(const float *from, int64_t width, const float *scale, float epsilon, const float *cosine,
                 const float *sine, float factor, float *to) {
    if (scale) {
        factor *= inverse_rms(from, width, epsilon);
        for (int64_t i = 0; i < width; i++) to[i] = from[i] * factor * scale[i];
    } else {
        for (int64_t i = 0; i < width; i++) to[i] = from[i] * factor;
    }
    if (!cosine) return;
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = to[i], b = to[i + half];
        to[i] = a * cosine[i] - b * sine[i];
        to[i + half] = b * cosine[i] + a * sine[i];
    }
}

/* Scores of `seen` positions, whose keys lie one behind the other; four at a time, since one would wait for itself.
 * Meanwhile as many numbers at `ahead`, which are wanted next, are brought near. */
static void score(const float *query, const float *keys, int64_t width, int64_t seen, const float *ahead,
                  float *scores) {
    int64_t whole = width / LANES * LANES, t = 0;
    for (; t + 4 <= seen; t += 4) {
        const float *at = keys + t * width;
        vector sums[4] = {{0}, {0}, {0}, {0}};
        for (int64_t i = 0; i < whole; i += LANES) {
            vector part = *(const vector *)(query + i);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __builtin_prefetch(ahead + (t + j) * width + i, 0, 2);
                sums[j] += *(const vector *)(at + j * width + i) * part;
            }
        }
        four_sums(sums[0], sums[1], sums[2], sums[3], scores + t);
    }
    for (; t < seen; t++) {
        vector sum = {0};
        for (int64_t i = 0; i < whole; i += LANES)
            sum += *(const vector *)(keys + t * width + i) * *(const vector *)(query + i);
        scores[t] = sum_of(sum);
    }
    for (int64_t i = whole; i < width; i++)
        for (t = 0; t < seen; t++) scores[t] += keys[t * width + i] * query[i];
}

/* Softmax of the first `seen` scores, in place, without the division, whose divisor is returned. */
static float soften(float *scores, int64_t seen) {
    int64_t blocks = (seen + LANES - 1) / LANES;
    for (int64_t t = seen; t < blocks * LANES; t++) scores[t] = -INFINITY;
    vector most = *(vector *)scores, total = {0};
    for (int64_t block = 1; block < blocks; block++) {
        vector value = *(vector *)(scores + block * LANES);
        most = choose(value > most, value, most);
    }
    float largest = most[0];
    for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
    for (int64_t block = 0; block < blocks; block++) {
        /* What lies behind the last score becomes some 1e-38, which no sum notices. */
        vector value = exponential(*(vector *)(scores + block * LANES) - largest);
        *(vector *)(scores + block * LANES) = value;
        total += value;
    }
    return sum_of(total);
}

/* `vectors` times LANES channels of values [seen][width], weighted and added; two positions at a time, since one sum
 * would wait for the one before. Meanwhile as many numbers at `ahead` are brought near. */
ALWAYS void blend_part(int vectors, const float *weights, float factor, const float *values, int64_t width,
                       int64_t seen, const float *ahead, float *out) {
    vector even[4], odd[4];
    for (int j = 0; j < vectors; j++) even[j] = odd[j] = (vector){0};
    int64_t t = 0;
    for (; t + 2 <= seen; t += 2) {
        const float *at = values + t * width;
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) {
            __builtin_prefetch(ahead + t * width + j * LANES, 0, 2);
            __builtin_prefetch(ahead + (t + 1) * width + j * LANES, 0, 2);
            even[j] += *(const vector *)(at + j * LANES) * weights[t];
            odd[j] += *(const vector *)(at + width + j * LANES) * weights[t + 1];
        }
    }
    if (t < seen)
        for (int j = 0; j < vectors; j++) even[j] += *(const vector *)(values + t * width + j * LANES) * weights[t];
    for (int j = 0; j < vectors; j++) *(vector *)(out + j * LANES) = (even[j] + odd[j]) * factor;
}

/* All channels. */
static void blend(const float *weights, float divisor, const float *values, int64_t width, int64_t seen,
                  const float *ahead, float *out) {
    float factor = 1.0f / divisor;
    int64_t start = 0;
    for (; start + 4 * LANES <= width; start += 4 * LANES)
        blend_part(4, weights, factor, values + start, width, seen, ahead + start, out + start);
    for (; start + LANES <= width; start += LANES)
        blend_part(1, weights, factor, values + start, width, seen, ahead + start, out + start);
    for (; start < width; start++) {
        float sum = 0;
        for (int64_t t = 0; t < seen; t++) sum += weights[t] * values[t * width + start];
        out[start] = sum * factor;
    }
}

/* Writes key and value of one position into slot `slot` of the cache, and attends from its query to the first `seen`
 * slots. Rows of queries `[B, heads·width]`, keys and values `[B, key_heads·width]`; cached ones
 * [B][key_heads][length][width]. Returns 0, or 1 without memory. */
int hvq_attend(const float *query, int64_t query_stride, const float *key, int64_t key_stride, const float *value,
               int64_t value_stride, int64_t batch, int64_t heads, int64_t key_heads, int64_t width,
               const float *query_scale, const float *key_scale, float epsilon, const float *cosine, const float *sine,
               float *keys, float *values, int64_t length, int64_t slot, int64_t seen, float *out, int64_t out_stride,
               int threads) {
    int64_t blocks = (length + LANES - 1) / LANES, group = heads / key_heads, failed = 0;
    if (batch * heads * seen * width < 8192) threads = 1;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        /* Both parts in whole lines of 64 bytes, as the allocation asks for. */
        int64_t scores = (blocks * LANES + 15) / 16 * 16, channels = (width + 15) / 16 * 16;
        float *scratch = aligned_alloc(64, (size_t)(scores + channels) * sizeof(float));
        float *turned = scratch ? scratch + scores : NULL;
        failed |= scratch == NULL;
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < batch * key_heads; pair++) {
            if (!scratch) continue;
            int64_t sample = pair / key_heads, head = pair % key_heads;
            float *own_keys = keys + pair * length * width, *own_values = values + pair * length * width;
            turn(key + sample * key_stride + head * width, width, key_scale, epsilon, cosine, sine, 1.0f,
                 own_keys + slot * width);
            memcpy(own_values + slot * width, value + sample * value_stride + head * width,
                   (size_t)width * sizeof(float));
            for (int64_t h = head * group; h < (head + 1) * group; h++) {
                float *result = out + sample * out_stride + h * width;
                if (seen == 0) {
                    memset(result, 0, (size_t)width * sizeof(float));
                    continue;
                }
                turn(query + sample * query_stride + h * width, width, query_scale, epsilon, cosine, sine,
                     1.0f / sqrtf((float)width), turned);
                score(turned, own_keys, width, seen, own_values, scratch);
                blend(scratch, soften(scratch, seen), own_values, width, seen, own_keys + length * width, result);
            }
        }
        free(scratch);
    }
    return (int)failed;
}
