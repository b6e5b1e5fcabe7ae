/* Nearest codebook vector of every latent: the index of the least ‖x - e_j‖², ties to the lowest index.
 *
 * Three tiers. The first scores all codes in 16-bit integers, twice as many products an instruction as float32, and
 * bounds its own error. A code that no other one reaches within twice that bound is the answer; a few that do are
 * compared by their distances in float64; a row where more may do so goes to the second tier, the same in float32, and
 * from there, if ever, to a scan in float64. So the answer is that of float64, and only the time depends on the data.
 *
 * Scores are ½‖e_j‖² - x·e_j, which order codes as distances do, of latents and codes about a common center. A tile of
 * ROWS latents meets a block of codes in registers; of each block, only the least score in each lane is kept, and later
 * the few codes of that lane and block are looked at again.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && !defined(HVQ_NARROW)
#include <immintrin.h>
#define LANES 16
#define VECTORS 4
#define ROWS 6
typedef __m512i ints;
typedef __m512 floats;
#define INT_LOAD(p) _mm512_load_si512((const void *)(p))
#define INT_STORE(p, v) _mm512_store_si512((void *)(p), v)
#define INT_SET(x) _mm512_set1_epi32(x)
#define INT_MIN(a, b) _mm512_min_epi32(a, b)
#define INT_MAX(a, b) _mm512_max_epi32(a, b)
#define INT_CHOOSE_LESS(a, b, yes, no) _mm512_mask_mov_epi32(no, _mm512_cmplt_epi32_mask(a, b), yes)
#ifdef __AVX512VNNI__
/* Not the intrinsic: GCC 12 copies every sum before it adds to it. */
#define INT_DOT(acc, a, b) ({ ints sum_ = acc; __asm__("vpdpwssd %2, %1, %0" : "+v"(sum_) : "v"(a), "v"(b)); sum_; })
#else
#define INT_DOT(acc, a, b) _mm512_add_epi32(acc, _mm512_madd_epi16(a, b))
#endif
#define FLOAT_LOAD(p) _mm512_load_ps(p)
#define FLOAT_STORE(p, v) _mm512_store_ps(p, v)
#define FLOAT_SET(x) _mm512_set1_ps(x)
#define FLOAT_MIN(a, b) _mm512_min_ps(a, b)
#define FLOAT_MAX(a, b) _mm512_max_ps(a, b)
#define FLOAT_CHOOSE_LESS(a, b, yes, no) _mm512_mask_mov_epi32(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes)
#define FLOAT_FNMA(a, b, acc) _mm512_fnmadd_ps(a, b, acc)
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define LANES 8
#define VECTORS 2
#define ROWS 6
typedef __m256i ints;
typedef __m256 floats;
#define INT_LOAD(p) _mm256_load_si256((const __m256i *)(p))
#define INT_STORE(p, v) _mm256_store_si256((__m256i *)(p), v)
#define INT_SET(x) _mm256_set1_epi32(x)
#define INT_MIN(a, b) _mm256_min_epi32(a, b)
#define INT_MAX(a, b) _mm256_max_epi32(a, b)
#define INT_CHOOSE_LESS(a, b, yes, no) _mm256_blendv_epi8(no, yes, _mm256_cmpgt_epi32(b, a))
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define INT_DOT(acc, a, b) _mm256_dpwssd_epi32(acc, a, b)
#else
#define INT_DOT(acc, a, b) _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
#endif
#define FLOAT_LOAD(p) _mm256_load_ps(p)
#define FLOAT_STORE(p, v) _mm256_store_ps(p, v)
#define FLOAT_SET(x) _mm256_set1_ps(x)
#define FLOAT_MIN(a, b) _mm256_min_ps(a, b)
#define FLOAT_MAX(a, b) _mm256_max_ps(a, b)
#define FLOAT_CHOOSE_LESS(a, b, yes, no)                                                                              \
    _mm256_blendv_epi8(no, yes, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)))
#define FLOAT_FNMA(a, b, acc) _mm256_fnmadd_ps(a, b, acc)
#else
#error "needs AVX2 with FMA, or AVX-512"
#endif

#define GROUP (LANES * VECTORS) /* codes that meet a tile at a time */
#define CHUNK (32 * ROWS)       /* latents that share a scale and go through all blocks together */
#define ALIGNMENT 64
/* Norms of codes and latents in 16-bit integers, with one to spare for rounding. So scores of the integer tier stay below
 * 2^30, half of what 32 bits hold; sums may pass through larger values, since additions wrap around. */
#define LARGEST_CODE 32767.0
#define LARGEST_LATENT 32766.0
#define LARGEST_SCORE (LARGEST_CODE * LARGEST_LATENT)
#define FAR_INT 2147483647
/* Scores of longer vectors would not fit float32, nor those of a codebook of shorter ones. */
#define LARGEST_NORM 1e18
#define LEAST_NORM 1e-15
/* Share of a chunk's latents that may need the second tier before the first is given up. */
#define MOST_UNSETTLED 0.25

typedef struct {
    int64_t size, dimension;     /* K and D */
    int64_t blocks, block_size;  /* of codes; K is padded to whole blocks */
    int64_t pairs;               /* pairs of dimensions, D / 2 rounded up */
    int64_t row;                 /* D padded to whole vectors of 16-bit integers */
    const float *vectors;        /* [K, D] as given */
    const float *center;         /* [D] */
    float *centered;             /* [K, D] */
    double *half_norms;          /* [K] */
    double largest_norm;
    /* integer tier */
    double scale;
    double largest_rounded_norm, largest_residual; /* ‖ê‖ and ‖ê - scale e‖ over all codes */
    int16_t *int_rows;           /* [K, row] */
    int16_t *int_panels;         /* [blocks, block / GROUP, pairs, VECTORS, LANES, 2] */
    /* float tier */
    float *float_panels;         /* [blocks, block / GROUP, D, VECTORS, LANES] */
    float *float_half_norms;     /* [blocks * block] */
} Codes;

/* What one thread holds of a chunk. */
typedef struct {
    int64_t rows[CHUNK];         /* which latents */
    double norms[CHUNK];         /* ‖x‖, about the center */
    double residuals[CHUNK];     /* ‖x̂ - scale x‖ */
    float *centered;             /* [CHUNK, D] */
    int16_t *int_rows;           /* [CHUNK, row] */
    int32_t *int_tiles;          /* [CHUNK / ROWS, pairs, ROWS] */
    float *float_tiles;          /* [CHUNK / ROWS, D, ROWS] */
    int32_t *biases;             /* [blocks * block] */
    union { int32_t i[LANES]; float f[LANES]; } *best, *second; /* [CHUNK] */
    int32_t *block;              /* [CHUNK, LANES] */
} Chunk;

static void *allocate(size_t bytes) {
    size_t whole = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return aligned_alloc(ALIGNMENT, whole ? whole : ALIGNMENT);
}

static double distance(const float *restrict a, const float *restrict b, int64_t dimension) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dimension; d++) {
        double difference = (double)a[d] - (double)b[d];
        sum += difference * difference;
    }
    return sum;
}

/* Wraps around, as in the kernel; `length` is a multiple of 32. */
static int32_t int_dot(const int16_t *restrict a, const int16_t *restrict b, int64_t length) {
    int32_t sums[LANES] __attribute__((aligned(ALIGNMENT)));
    ints sum = INT_SET(0);
    for (int64_t d = 0; d < length; d += 2 * LANES) sum = INT_DOT(sum, INT_LOAD(a + d), INT_LOAD(b + d));
    INT_STORE(sums, sum);
    uint32_t total = 0;
    for (int lane = 0; lane < LANES; lane++) total += (uint32_t)sums[lane];
    return (int32_t)total;
}

static double norm(const float *x, int64_t dimension) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dimension; d++) sum += (double)x[d] * (double)x[d];
    return sqrt(sum);
}

/* Rounds scale * x to 16-bit integers; returns ‖rounded - scale x‖. */
static double quantize(const float *x, double scale, int64_t dimension, int64_t row, int16_t *rounded) {
    double residual = 0;
    float factor = (float)scale;
#pragma omp simd reduction(+ : residual)
    for (int64_t d = 0; d < dimension; d++) {
        float exact = x[d] * factor, nearest = rintf(exact);
        rounded[d] = (int16_t)nearest;
        double error = (double)nearest - (double)x[d] * scale;
        residual += error * error;
    }
    for (int64_t d = dimension; d < row; d++) rounded[d] = 0;
    return sqrt(residual);
}

/* ---------------------------------------------------------------- codes */

static void pack_ints(Codes *codes, int threads) {
    codes->scale = LARGEST_CODE / codes->largest_norm;
    double largest_rounded = 0, largest_residual = 0;
#pragma omp parallel for schedule(static) reduction(max : largest_rounded, largest_residual) num_threads(threads)
    for (int64_t b = 0; b < codes->blocks; b++) {
        for (int64_t i = 0; i < codes->block_size; i++) {
            int64_t j = b * codes->block_size + i;
            int16_t *panel = codes->int_panels +
                             (b * (codes->block_size / GROUP) + i / GROUP) * codes->pairs * GROUP * 2 + (i % GROUP) * 2;
            if (j >= codes->size) {
                for (int64_t p = 0; p < codes->pairs; p++) panel[p * GROUP * 2] = panel[p * GROUP * 2 + 1] = 0;
                continue;
            }
            int16_t *rounded = codes->int_rows + j * codes->row;
            double residual = quantize(codes->centered + j * codes->dimension, codes->scale, codes->dimension, codes->row, rounded);
            double length = norm(codes->centered + j * codes->dimension, codes->dimension) * codes->scale + residual;
            if (residual > largest_residual) largest_residual = residual;
            if (length > largest_rounded) largest_rounded = length;
            for (int64_t p = 0; p < codes->pairs; p++) {
                panel[p * GROUP * 2] = rounded[2 * p];
                panel[p * GROUP * 2 + 1] = 2 * p + 1 < codes->row ? rounded[2 * p + 1] : 0;
            }
        }
    }
    codes->largest_rounded_norm = largest_rounded;
    codes->largest_residual = largest_residual;
}

static void pack_floats(Codes *codes, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < codes->blocks; b++) {
        for (int64_t i = 0; i < codes->block_size; i++) {
            int64_t j = b * codes->block_size + i;
            float *panel = codes->float_panels +
                           (b * (codes->block_size / GROUP) + i / GROUP) * codes->dimension * GROUP + i % GROUP;
            int beyond = j >= codes->size;
            for (int64_t d = 0; d < codes->dimension; d++)
                panel[d * GROUP] = beyond ? 0.0f : codes->centered[j * codes->dimension + d];
            codes->float_half_norms[j] = beyond ? INFINITY : (float)codes->half_norms[j];
        }
    }
}

/* ---------------------------------------------------------------- kernels: one tile of latents, one block of codes */

/* A group of codes against a tile, whose numbers stand next to each other: [pairs or D, ROWS]. Written out over rows, so
 * that compilers keep every sum in a register. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#if VECTORS == 2
#define EACH_VECTOR(DO, r) DO(r, 0) DO(r, 1)
#else
#define EACH_VECTOR(DO, r) DO(r, 0) DO(r, 1) DO(r, 2) DO(r, 3)
#endif

static __attribute__((noinline)) void int_tile(const Codes *codes, const int32_t *latents, const int16_t *panel,
                                               const int32_t *biases, int32_t *minima) {
    int64_t pairs = codes->pairs, groups = codes->block_size / GROUP;
    for (int64_t g = 0; g < groups; g++) {
        const int16_t *code = panel + g * pairs * GROUP * 2;
        const int32_t *latent = latents;
#define START(r, v) ints s##r##v = INT_LOAD(biases + g * GROUP + v * LANES);
#define START_ROW(r) EACH_VECTOR(START, r)
        EACH_ROW(START_ROW)
        for (int64_t p = 0; p < pairs; p++, code += GROUP * 2, latent += ROWS) {
#define ADD(r, v) s##r##v = INT_DOT(s##r##v, x, INT_LOAD(code + v * LANES * 2));
#define ADD_ROW(r)                                                                                                     \
    {                                                                                                                  \
        ints x = INT_SET(latent[r]);                                                                                   \
        EACH_VECTOR(ADD, r)                                                                                            \
    }
            EACH_ROW(ADD_ROW)
        }
#define LEAST(r, v) least = INT_MIN(least, s##r##v);
#define LEAST_ROW(r)                                                                                                   \
    {                                                                                                                  \
        ints least = g ? INT_LOAD(minima + r * LANES) : INT_SET(FAR_INT);                                              \
        EACH_VECTOR(LEAST, r)                                                                                          \
        INT_STORE(minima + r * LANES, least);                                                                          \
    }
        EACH_ROW(LEAST_ROW)
    }
}

static __attribute__((noinline)) void float_tile(const Codes *codes, const float *latents, const float *panel,
                                                 const float *half_norms, float *minima) {
    int64_t dimension = codes->dimension, groups = codes->block_size / GROUP;
    for (int64_t g = 0; g < groups; g++) {
        const float *code = panel + g * dimension * GROUP, *latent = latents;
#define FLOAT_START(r, v) floats s##r##v = FLOAT_LOAD(half_norms + g * GROUP + v * LANES);
#define FLOAT_START_ROW(r) EACH_VECTOR(FLOAT_START, r)
        EACH_ROW(FLOAT_START_ROW)
        for (int64_t d = 0; d < dimension; d++, code += GROUP, latent += ROWS) {
#define FLOAT_ADD(r, v) s##r##v = FLOAT_FNMA(x, FLOAT_LOAD(code + v * LANES), s##r##v);
#define FLOAT_ADD_ROW(r)                                                                                               \
    {                                                                                                                  \
        floats x = FLOAT_SET(latent[r]);                                                                               \
        EACH_VECTOR(FLOAT_ADD, r)                                                                                      \
    }
            EACH_ROW(FLOAT_ADD_ROW)
        }
#define FLOAT_LEAST(r, v) least = FLOAT_MIN(least, s##r##v);
#define FLOAT_LEAST_ROW(r)                                                                                             \
    {                                                                                                                  \
        floats least = g ? FLOAT_LOAD(minima + r * LANES) : FLOAT_SET(INFINITY);                                       \
        EACH_VECTOR(FLOAT_LEAST, r)                                                                                    \
        FLOAT_STORE(minima + r * LANES, least);                                                                        \
    }
        EACH_ROW(FLOAT_LEAST_ROW)
    }
}

/* Keeps the least and the second least block minimum of every lane, and whose the least is. */
static inline void update_ints(Chunk *chunk, int64_t i, int32_t block, const int32_t *minima) {
    int32_t *best = chunk->best[i].i, *second = chunk->second[i].i, *owner = chunk->block + i * LANES;
    ints value = INT_LOAD(minima), old = INT_LOAD(best);
    INT_STORE(owner, INT_CHOOSE_LESS(value, old, INT_SET(block), INT_LOAD(owner)));
    INT_STORE(second, INT_MIN(INT_LOAD(second), INT_MAX(value, old)));
    INT_STORE(best, INT_MIN(value, old));
}

static inline void update_floats(Chunk *chunk, int64_t i, int32_t block, const float *minima) {
    float *best = chunk->best[i].f, *second = chunk->second[i].f;
    int32_t *owner = chunk->block + i * LANES;
    floats value = FLOAT_LOAD(minima), old = FLOAT_LOAD(best);
    INT_STORE(owner, FLOAT_CHOOSE_LESS(value, old, INT_SET(block), INT_LOAD(owner)));
    FLOAT_STORE(second, FLOAT_MIN(FLOAT_LOAD(second), FLOAT_MAX(value, old)));
    FLOAT_STORE(best, FLOAT_MIN(value, old));
}

/* ---------------------------------------------------------------- tiers */

typedef struct {
    const Codes *codes;
    const float *latent;
    int64_t code;    /* the nearest so far, -1 for none */
    double distance; /* its squared distance; negative while nobody asked for it */
} Answer;

/* Another code that may be the nearest: distances are needed from the second one on. */
static void consider(Answer *answer, int64_t code) {
    const Codes *codes = answer->codes;
    if (answer->code < 0) {
        answer->code = code;
        return;
    }
    if (answer->distance < 0)
        answer->distance = distance(answer->latent, codes->vectors + answer->code * codes->dimension, codes->dimension);
    double other = distance(answer->latent, codes->vectors + code * codes->dimension, codes->dimension);
    if (other < answer->distance || (other == answer->distance && code < answer->code)) {
        answer->code = code;
        answer->distance = other;
    }
}

static int64_t scan(const Codes *codes, const float *latent) {
    int64_t best = 0;
    double least = INFINITY;
    for (int64_t j = 0; j < codes->size; j++) {
        double other = distance(latent, codes->vectors + j * codes->dimension, codes->dimension);
        if (other < least) least = other, best = j;
    }
    return best;
}

/* First tier; returns how many of the chunk's latents it could not settle, which then come first in chunk->rows. */
static int64_t int_chunk(const Codes *codes, Chunk *chunk, int64_t count, const float *latents, int64_t *result) {
    int64_t dimension = codes->dimension, block_size = codes->block_size;
    double largest = 0;
    for (int64_t i = 0; i < count; i++)
        if (chunk->norms[i] > largest) largest = chunk->norms[i];
    double scale = LARGEST_SCORE / (LARGEST_CODE * (0.5 * codes->largest_norm + largest));
    for (int64_t i = 0; i < count; i++)
        chunk->residuals[i] = quantize(chunk->centered + i * dimension, -scale, dimension, codes->row, chunk->int_rows + i * codes->row);
    double both = scale * codes->scale;
    for (int64_t j = 0; j < codes->size; j++) chunk->biases[j] = (int32_t)lrint(codes->half_norms[j] * both);
    for (int64_t j = codes->size; j < codes->blocks * block_size; j++) chunk->biases[j] = FAR_INT;
    for (int64_t i = 0; i < count; i++)
        for (int lane = 0; lane < LANES; lane++) chunk->best[i].i[lane] = chunk->second[i].i[lane] = FAR_INT;
    for (int64_t i = 0; i < (count + ROWS - 1) / ROWS * ROWS; i++)
        for (int64_t p = 0; p < codes->pairs; p++)
            memcpy(chunk->int_tiles + ((i / ROWS) * codes->pairs + p) * ROWS + i % ROWS,
                   chunk->int_rows + (i < count ? i : count - 1) * codes->row + 2 * p, sizeof(int32_t));
    for (int64_t b = 0; b < codes->blocks; b++) {
        const int16_t *panel = codes->int_panels + b * block_size * codes->pairs * 2;
        for (int64_t i = 0; i < count; i += ROWS) {
            int32_t minima[ROWS * LANES] __attribute__((aligned(ALIGNMENT)));
            int_tile(codes, chunk->int_tiles + i * codes->pairs, panel, chunk->biases + b * block_size, minima);
            for (int r = 0; r < ROWS && i + r < count; r++) update_ints(chunk, i + r, (int32_t)b, minima + r * LANES);
        }
    }
    int64_t unsettled = 0;
    for (int64_t i = 0; i < count; i++) {
        const int32_t *best = chunk->best[i].i, *second = chunk->second[i].i;
        int32_t least = FAR_INT, next = FAR_INT;
        for (int lane = 0; lane < LANES; lane++) {
            least = best[lane] < least ? best[lane] : least;
            next = second[lane] < next ? second[lane] : next;
        }
        /* A score is off by at most ‖x̂ - s x‖ ‖ê‖ + ‖s x‖ ‖ê - s e‖, and the rounding of its bias; centering in float32
         * adds what the last term allows for. */
        double error = chunk->residuals[i] * codes->largest_rounded_norm +
                       scale * chunk->norms[i] * codes->largest_residual + 1.0 + LARGEST_SCORE * 4 * FLT_EPSILON;
        double limit = (double)least + 2.0 * error;
        if (!(limit < (double)next)) {
            chunk->rows[unsettled++] = chunk->rows[i];
            continue;
        }
        Answer answer = {codes, latents + chunk->rows[i] * dimension, -1, -1.0};
        for (int lane = 0; lane < LANES; lane++) {
            if ((double)best[lane] > limit) continue;
            int64_t first = chunk->block[i * LANES + lane] * block_size + lane;
            for (int64_t j = first; j < first - lane + block_size && j < codes->size; j += LANES) {
                uint32_t score = (uint32_t)chunk->biases[j] +
                                 (uint32_t)int_dot(chunk->int_rows + i * codes->row, codes->int_rows + j * codes->row, codes->row);
                if ((double)(int32_t)score <= limit) consider(&answer, j);
            }
        }
        result[chunk->rows[i]] = answer.code;
    }
    return unsettled;
}

/* Second tier, and the third for what it cannot settle. */
static void float_chunk(const Codes *codes, Chunk *chunk, int64_t count, const float *latents, int64_t *result) {
    int64_t dimension = codes->dimension, block_size = codes->block_size;
    for (int64_t i = 0; i < count; i++)
        for (int lane = 0; lane < LANES; lane++) chunk->best[i].f[lane] = chunk->second[i].f[lane] = INFINITY;
    for (int64_t i = 0; i < (count + ROWS - 1) / ROWS * ROWS; i++)
        for (int64_t d = 0; d < dimension; d++)
            chunk->float_tiles[((i / ROWS) * dimension + d) * ROWS + i % ROWS] =
                chunk->centered[(i < count ? i : count - 1) * dimension + d];
    for (int64_t b = 0; b < codes->blocks; b++) {
        const float *panel = codes->float_panels + b * block_size * dimension;
        for (int64_t i = 0; i < count; i += ROWS) {
            float minima[ROWS * LANES] __attribute__((aligned(ALIGNMENT)));
            float_tile(codes, chunk->float_tiles + i * dimension, panel, codes->float_half_norms + b * block_size, minima);
            for (int r = 0; r < ROWS && i + r < count; r++) update_floats(chunk, i + r, (int32_t)b, minima + r * LANES);
        }
    }
    for (int64_t i = 0; i < count; i++) {
        const float *best = chunk->best[i].f, *second = chunk->second[i].f;
        float least = INFINITY, next = INFINITY;
        for (int lane = 0; lane < LANES; lane++) {
            least = best[lane] < least ? best[lane] : least;
            next = second[lane] < next ? second[lane] : next;
        }
        /* Each of D products and sums rounds by half a unit in the last place of at most the largest score. */
        double reach = codes->largest_norm * (0.5 * codes->largest_norm + chunk->norms[i]);
        double limit = (double)least + 2.0 * (double)(dimension + 8) * FLT_EPSILON * reach;
        const float *latent = latents + chunk->rows[i] * dimension;
        if (!(limit < (double)next)) {
            result[chunk->rows[i]] = scan(codes, latent);
            continue;
        }
        Answer answer = {codes, latent, -1, -1.0};
        for (int lane = 0; lane < LANES; lane++) {
            if ((double)best[lane] > limit) continue;
            int64_t first = chunk->block[i * LANES + lane] * block_size + lane;
            for (int64_t j = first; j < first - lane + block_size && j < codes->size; j += LANES) {
                const float *x = chunk->centered + i * dimension, *e = codes->centered + j * dimension;
                float score = 0;
#pragma omp simd reduction(+ : score)
                for (int64_t d = 0; d < dimension; d++) score += x[d] * e[d];
                if (codes->half_norms[j] - (double)score <= limit) consider(&answer, j);
            }
        }
        result[chunk->rows[i]] = answer.code;
    }
}

/* Latents about the center, and their norms; those that are not finite get code 0 and are left out. */
static int64_t load_chunk(const Codes *codes, Chunk *chunk, int64_t count, const float *latents, int64_t *result) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        const float *x = latents + chunk->rows[i] * codes->dimension;
        float *centered = chunk->centered + kept * codes->dimension;
        for (int64_t d = 0; d < codes->dimension; d++) centered[d] = x[d] - codes->center[d];
        double length = norm(centered, codes->dimension);
        if (!(length < LARGEST_NORM)) {
            result[chunk->rows[i]] = isfinite(length) ? scan(codes, x) : 0;
            continue;
        }
        chunk->rows[kept] = chunk->rows[i];
        chunk->norms[kept++] = length;
    }
    return kept;
}

static int allocate_codes(Codes *codes, int with_ints) {
    int64_t padded = codes->blocks * codes->block_size;
    codes->centered = allocate(sizeof(float) * codes->size * codes->dimension);
    codes->half_norms = allocate(sizeof(double) * codes->size);
    codes->float_panels = allocate(sizeof(float) * padded * codes->dimension);
    codes->float_half_norms = allocate(sizeof(float) * padded);
    codes->int_rows = with_ints ? allocate(sizeof(int16_t) * codes->size * codes->row) : NULL;
    codes->int_panels = with_ints ? allocate(sizeof(int16_t) * padded * codes->pairs * 2) : NULL;
    return codes->centered && codes->half_norms && codes->float_panels && codes->float_half_norms &&
           (!with_ints || (codes->int_rows && codes->int_panels));
}

static void free_codes(Codes *codes) {
    free(codes->centered), free(codes->half_norms), free(codes->float_panels), free(codes->float_half_norms);
    free(codes->int_rows), free(codes->int_panels);
}

static int allocate_chunk(Chunk *chunk, const Codes *codes) {
    chunk->centered = allocate(sizeof(float) * CHUNK * codes->dimension);
    chunk->int_rows = allocate(sizeof(int16_t) * CHUNK * codes->row);
    chunk->int_tiles = allocate(sizeof(int32_t) * CHUNK * codes->pairs);
    chunk->float_tiles = allocate(sizeof(float) * CHUNK * codes->dimension);
    chunk->biases = allocate(sizeof(int32_t) * codes->blocks * codes->block_size);
    chunk->best = allocate(sizeof(*chunk->best) * CHUNK);
    chunk->second = allocate(sizeof(*chunk->second) * CHUNK);
    chunk->block = allocate(sizeof(int32_t) * CHUNK * LANES);
    return chunk->centered && chunk->int_rows && chunk->int_tiles && chunk->float_tiles && chunk->biases && chunk->best && chunk->second && chunk->block;
}

static void free_chunk(Chunk *chunk) {
    free(chunk->centered), free(chunk->int_rows), free(chunk->int_tiles);
    free(chunk->float_tiles), free(chunk->biases);
    free(chunk->best), free(chunk->second), free(chunk->block);
}

/* The nearest of K codes `[K, D]` for each of N latents `[N, D]`. `first_tier` 1 starts with 16-bit integers, 0 with
 * float32. Returns 0, or 1 where there was no memory. */
int hvq_nearest(const float *latents, int64_t number, const float *vectors, int64_t size, int64_t dimension,
                const float *center, int first_tier, int threads, int64_t *result) {
    Codes codes = {.size = size, .dimension = dimension, .vectors = vectors, .center = center};
    codes.block_size = size <= 1024 ? GROUP : 4 * GROUP;
    codes.blocks = (size + codes.block_size - 1) / codes.block_size;
    codes.pairs = (dimension + 1) / 2;
    codes.row = (dimension + 31) / 32 * 32;
    if (!allocate_codes(&codes, first_tier)) {
        free_codes(&codes);
        return 1;
    }
    double largest = 0;
#pragma omp parallel for schedule(static) reduction(max : largest) num_threads(threads)
    for (int64_t j = 0; j < size; j++) {
        float *centered = codes.centered + j * dimension;
        for (int64_t d = 0; d < dimension; d++) centered[d] = vectors[j * dimension + d] - center[d];
        double length = norm(centered, dimension);
        codes.half_norms[j] = 0.5 * length * length;
        if (length > largest) largest = length;
    }
    codes.largest_norm = largest;
    if (!(largest > LEAST_NORM && largest < LARGEST_NORM)) {
#pragma omp parallel for schedule(dynamic, CHUNK) num_threads(threads)
        for (int64_t i = 0; i < number; i++) result[i] = scan(&codes, latents + i * dimension);
        free_codes(&codes);
        return 0;
    }
    if (first_tier) pack_ints(&codes, threads);
    pack_floats(&codes, threads);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Chunk chunk;
        int use_ints = first_tier, ready = allocate_chunk(&chunk, &codes);
        if (!ready) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (int64_t start = 0; start < number; start += CHUNK) {
            if (!ready) continue;
            int64_t count = number - start < CHUNK ? number - start : CHUNK;
            for (int64_t i = 0; i < count; i++) chunk.rows[i] = start + i;
            count = load_chunk(&codes, &chunk, count, latents, result);
            if (use_ints && count) {
                int64_t unsettled = int_chunk(&codes, &chunk, count, latents, result);
                if ((double)unsettled > MOST_UNSETTLED * (double)count) use_ints = 0;
                count = load_chunk(&codes, &chunk, unsettled, latents, result);
            }
            if (count) float_chunk(&codes, &chunk, count, latents, result);
        }
        free_chunk(&chunk);
    }
    free_codes(&codes);
    return failed;
}
