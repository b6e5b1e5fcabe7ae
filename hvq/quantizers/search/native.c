/* Nearest codebook vector of every latent: the index of the least ‖x - e_j‖², ties to the lowest index.
 *
 * Scores are ½‖e_j‖² - x·e_j, which order codes as distances do, of latents and codes about a common center. Up to four
 * tiers, each for the latents that those before it could not settle:
 *
 * reduced  Scores bounded from below by 16 numbers per vector: coordinates x_p along the principal directions of the
 *          codebook, and the length ‖x_r‖ of what they leave, since x·e <= x_p·e_p + ‖x_r‖ ‖e_r‖ (Cauchy-Schwarz).
 *          Trained latents vary along few directions, so that hardly any other code comes below the score of the best.
 * ints     All dimensions in 16-bit integers, twice as many products an instruction as float32.
 * floats   All dimensions in float32.
 * scan     Every code by itself.
 *
 * The first three bound their own error. They leave a few codes that may be the nearest; those are scored in float32, and
 * what is too close even for that is compared by distances in float64. So the answer is that of float64, and only the
 * time depends on the data.
 *
 * In a tier, a tile of ROWS latents meets a block of codes in registers. Of each block only the least score in each lane
 * is kept, and of those the two least; the codes of the few lanes and blocks that matter are looked at again. A latent is
 * not settled where the second least of a lane matters too.
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
#define REDUCED 16              /* numbers per vector in the reduced tier: directions, and the length of the rest */
/* Integers of both sides reach up to LARGEST_INT and scores up to its square, half of what 32 bits hold; sums may pass
 * through larger values, since additions wrap around. */
#define LARGEST_INT 32767.0
#define LARGEST_SCORE (LARGEST_INT * LARGEST_INT)
#define FAR_INT 2147483647
/* Scores of longer vectors would not fit float32. */
#define LARGEST_NORM 1e18
/* Fewer latents than that are not worth the packing of codes. */
#define FEW 8
/* A tier that leaves more than this share of latents unsettled, in so many chunks, is tried on every EIGHTH chunk only. */
#define MOST_UNSETTLED 0.25
#define TRIAL_CHUNKS 2
#define EIGHTH 8

enum { FLOATS, INTS, REDUCED_INTS };

typedef struct {
    int64_t size, dimension;    /* K and D */
    int64_t blocks, block_size; /* of codes; K is padded to whole blocks */
    const float *vectors;       /* [K, D] as given */
    const float *center;        /* [D] */
    const float *directions;    /* [D, REDUCED], orthonormal columns and a last one of zeros */
    float *centered;            /* [K, D] */
    double *norms, *half_norms; /* [K], ‖e‖ and ½‖e‖² about the center */
    double largest_norm;
} Codes;

/* Codes as a tier needs them. */
typedef struct {
    int kind;
    int64_t dimension;                       /* numbers per vector: D or REDUCED */
    int64_t pairs;                           /* half of it, rounded up */
    int16_t *ints;                           /* [blocks, block / GROUP, pairs, VECTORS, LANES, 2] */
    double scale;                            /* of those integers */
    double largest_rounded, largest_residual; /* ‖ê‖ and ‖ê - scale e‖ over all codes */
    float *floats;                           /* [blocks, block / GROUP, D, VECTORS, LANES] */
    float *half_norms;                       /* [blocks * block] */
} Tier;

/* What one thread holds of a chunk. */
typedef struct {
    int64_t rows[CHUNK];   /* which latents */
    double norms[CHUNK];   /* ‖x‖, about the center */
    double errors[CHUNK];  /* by how much a score of the tier may exceed the true one */
    float *centered;       /* [CHUNK, D] */
    float *reduced;        /* [CHUNK, REDUCED] */
    int16_t *rounded;      /* [2 * pairs] */
    int32_t *int_tiles;    /* [CHUNK / ROWS, pairs, ROWS] */
    float *float_tiles;    /* [CHUNK / ROWS, D, ROWS] */
    int32_t *biases;       /* [blocks * block] */
    union { int32_t i[LANES]; float f[LANES]; } *best, *second; /* [CHUNK] */
    int32_t *block;        /* [CHUNK, LANES] */
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

static float dot(const float *restrict a, const float *restrict b, int64_t dimension) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dimension; d++) sum += a[d] * b[d];
    return sum;
}

static double norm(const float *x, int64_t dimension) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < dimension; d++) sum += (double)x[d] * (double)x[d];
    return sqrt(sum);
}

/* Rounds scale * x to 16-bit integers, and fills up with 0; returns ‖rounded - scale x‖. */
static double quantize(const float *x, double scale, int64_t dimension, int64_t padded, int16_t *rounded) {
    double residual = 0;
    float factor = (float)scale;
#pragma omp simd reduction(+ : residual)
    for (int64_t d = 0; d < dimension; d++) {
        float nearest = rintf(x[d] * factor);
        rounded[d] = (int16_t)nearest;
        double error = (double)nearest - (double)x[d] * scale;
        residual += error * error;
    }
    for (int64_t d = dimension; d < padded; d++) rounded[d] = 0;
    return sqrt(residual);
}

/* Share of ‖x‖ by which coordinates in float32 may be off, with directions that are orthonormal but for rounding. */
static double coordinate_error(int64_t dimension) { return (double)(2 * dimension + 32) * FLT_EPSILON; }

/* Coordinates along the directions, and an upper bound of what is left, whatever rounding does. */
static void reduce(const Codes *codes, const float *x, double length, float *reduced) {
    floats sums[REDUCED / LANES];
    for (int v = 0; v < REDUCED / LANES; v++) sums[v] = FLOAT_SET(0.0f);
    for (int64_t d = 0; d < codes->dimension; d++)
        for (int v = 0; v < REDUCED / LANES; v++)
            sums[v] = FLOAT_FNMA(FLOAT_SET(-x[d]), FLOAT_LOAD(codes->directions + d * REDUCED + v * LANES), sums[v]);
    for (int v = 0; v < REDUCED / LANES; v++) FLOAT_STORE(reduced + v * LANES, sums[v]);
    double covered = 0;
    for (int c = 0; c < REDUCED - 1; c++) covered += (double)reduced[c] * (double)reduced[c];
    double rest = length * length - covered;
    rest = (rest > 0 ? rest : 0) + 3 * coordinate_error(codes->dimension) * length * length;
    reduced[REDUCED - 1] = (float)(sqrt(rest) * (1 + FLT_EPSILON));
}

/* ---------------------------------------------------------------- codes */

/* Integers of the codes `[K, dimension]`, whose norms are at most `largest`; a group of codes is turned in the cache. */
static int pack_ints(const Codes *codes, Tier *tier, const float *numbers, double largest, int threads) {
    int64_t width = 2 * tier->pairs, groups = codes->blocks * codes->block_size / GROUP;
    double largest_rounded = 0, largest_residual = 0;
    int failed = 0;
    tier->scale = LARGEST_INT / largest;
#pragma omp parallel reduction(max : largest_rounded, largest_residual) num_threads(threads)
    {
        int16_t *rounded = allocate(sizeof(int16_t) * GROUP * width);
        if (!rounded) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            if (!rounded) continue;
            for (int64_t i = 0; i < GROUP; i++) {
                int64_t j = g * GROUP + i;
                if (j >= codes->size) {
                    memset(rounded + i * width, 0, sizeof(int16_t) * width);
                    continue;
                }
                double residual = quantize(numbers + j * tier->dimension, tier->scale, tier->dimension, width, rounded + i * width);
                double length = norm(numbers + j * tier->dimension, tier->dimension) * tier->scale + residual;
                if (residual > largest_residual) largest_residual = residual;
                if (length > largest_rounded) largest_rounded = length;
            }
            for (int64_t p = 0; p < tier->pairs; p++)
                for (int64_t i = 0; i < GROUP; i++)
                    memcpy(tier->ints + ((g * tier->pairs + p) * GROUP + i) * 2, rounded + i * width + 2 * p, sizeof(int32_t));
        }
        free(rounded);
    }
    tier->largest_rounded = largest_rounded;
    tier->largest_residual = largest_residual;
    return !failed;
}

static void pack_floats(const Codes *codes, Tier *tier, int threads) {
    int64_t groups = codes->blocks * codes->block_size / GROUP, dimension = codes->dimension;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t d = 0; d < dimension; d++)
            for (int64_t i = 0; i < GROUP; i++) {
                int64_t j = g * GROUP + i;
                tier->floats[(g * dimension + d) * GROUP + i] = j < codes->size ? codes->centered[j * dimension + d] : 0.0f;
            }
        for (int64_t j = g * GROUP; j < (g + 1) * GROUP; j++)
            tier->half_norms[j] = j < codes->size ? (float)codes->half_norms[j] : INFINITY;
    }
}

static void free_tier(Tier *tier) { free(tier->ints), free(tier->floats), free(tier->half_norms); }

static int pack_reduced(const Codes *codes, Tier *tier, int threads) {
    float *reduced = allocate(sizeof(float) * codes->size * REDUCED);
    if (!reduced) return 0;
    double largest = 0;
#pragma omp parallel for schedule(static) reduction(max : largest) num_threads(threads)
    for (int64_t j = 0; j < codes->size; j++) {
        reduce(codes, codes->centered + j * codes->dimension, codes->norms[j], reduced + j * REDUCED);
        double length = norm(reduced + j * REDUCED, REDUCED);
        if (length > largest) largest = length;
    }
    int packed = pack_ints(codes, tier, reduced, largest, threads);
    free(reduced);
    return packed;
}

static int pack(const Codes *codes, Tier *tier, int kind, int threads) {
    int64_t padded = codes->blocks * codes->block_size;
    tier->kind = kind;
    tier->dimension = kind == REDUCED_INTS ? REDUCED : codes->dimension;
    tier->pairs = (tier->dimension + 1) / 2;
    tier->ints = NULL, tier->floats = tier->half_norms = NULL;
    if (kind == FLOATS) {
        tier->floats = allocate(sizeof(float) * padded * codes->dimension);
        tier->half_norms = allocate(sizeof(float) * padded);
        if (!tier->floats || !tier->half_norms) return 0;
        pack_floats(codes, tier, threads);
        return 1;
    }
    tier->ints = allocate(sizeof(int16_t) * padded * tier->pairs * 2);
    if (!tier->ints) return 0;
    return kind == REDUCED_INTS ? pack_reduced(codes, tier, threads)
                                : pack_ints(codes, tier, codes->centered, codes->largest_norm, threads);
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

static __attribute__((noinline)) void int_tile(int64_t pairs, int64_t groups, const int32_t *latents, const int16_t *panel,
                                               const int32_t *biases, int32_t *minima) {
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

static __attribute__((noinline)) void float_tile(int64_t dimension, int64_t groups, const float *latents, const float *panel,
                                                 const float *half_norms, float *minima) {
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

/* ---------------------------------------------------------------- what a tier leaves */

typedef struct {
    const Codes *codes;
    const float *latent, *centered; /* [D], as given and about the center */
    double error;                   /* of a score in float32 */
    int64_t code;                   /* the nearest so far, -1 for none */
    double score;                   /* the least seen of it and of those too close to tell */
    double distance;                /* its squared distance; negative while nobody asked for it */
} Answer;

static Answer no_answer(const Codes *codes, const float *latent, const float *centered, double length) {
    /* Each of D products and sums rounds by half a unit in the last place of at most the largest score. */
    double reach = codes->largest_norm * (0.5 * codes->largest_norm + length);
    double error = (double)(codes->dimension + 8) * (FLT_EPSILON * reach + FLT_MIN);
    return (Answer){codes, latent, centered, error, -1, INFINITY, -1.0};
}

/* Whether a code is nearer, or as near and lower, by distances in float64. */
static int is_nearer(Answer *answer, int64_t code, double *other) {
    int64_t dimension = answer->codes->dimension;
    const float *vectors = answer->codes->vectors;
    if (answer->distance < 0) answer->distance = distance(answer->latent, vectors + answer->code * dimension, dimension);
    *other = distance(answer->latent, vectors + code * dimension, dimension);
    return *other < answer->distance || (*other == answer->distance && code < answer->code);
}

static inline void consider(Answer *answer, int64_t code) {
    const Codes *codes = answer->codes;
    double score = codes->half_norms[code] - (double)dot(answer->centered, codes->centered + code * codes->dimension, codes->dimension);
    if (score > answer->score + 2 * answer->error) return;
    double other = -1.0;
    if (answer->code < 0 || score < answer->score - 2 * answer->error || is_nearer(answer, code, &other)) {
        answer->code = code;
        answer->distance = other;
    }
    if (score < answer->score) answer->score = score;
}

/* The codes of one lane of one block. */
static void consider_lane(Answer *answer, int64_t block, int lane) {
    const Codes *codes = answer->codes;
    int64_t start = block * codes->block_size, end = start + codes->block_size;
    if (end > codes->size) end = codes->size;
    for (int64_t j = start + lane; j < end; j += LANES) consider(answer, j);
}

static int64_t scan(const Codes *codes, const float *latent, const float *centered, double length) {
    Answer answer = no_answer(codes, latent, centered, length);
    for (int64_t j = 0; j < codes->size; j++) consider(&answer, j);
    return answer.code;
}

/* Where float32 scores would overflow. */
static int64_t scan_distances(const Codes *codes, const float *latent) {
    int64_t best = 0;
    double least = INFINITY;
    for (int64_t j = 0; j < codes->size; j++) {
        double other = distance(latent, codes->vectors + j * codes->dimension, codes->dimension);
        if (other < least) least = other, best = j;
    }
    return best;
}

/* The nearest code, or -1 where it may be one of those that a lane does not remember. */
static int64_t settle(Chunk *chunk, int64_t i, Answer *answer) {
    const float *best = chunk->best[i].f, *second = chunk->second[i].f;
    const int32_t *block = chunk->block + i * LANES;
    float least = INFINITY, next = INFINITY;
#pragma omp simd reduction(min : least, next)
    for (int lane = 0; lane < LANES; lane++) {
        least = best[lane] < least ? best[lane] : least;
        next = second[lane] < next ? second[lane] : next;
    }
    int nearest = 0;
    while (nearest < LANES - 1 && best[nearest] > least) nearest++;
    consider_lane(answer, block[nearest], nearest);
    double margin = answer->error + chunk->errors[i];
    if (!(answer->score + margin < (double)next)) return -1;
    for (int lane = 0; lane < LANES; lane++)
        if (lane != nearest && (double)best[lane] <= answer->score + margin) consider_lane(answer, block[lane], lane);
    return answer->code;
}

/* ---------------------------------------------------------------- tiers */

/* In place. */
static void turn_to_floats(const int32_t *scores, float factor, float *floats) {
    for (int lane = 0; lane < LANES; lane++) {
        float score = (float)scores[lane] * factor;
        floats[lane] = scores[lane] == FAR_INT ? INFINITY : score;
    }
}

/* Least scores of a chunk in integers, of `numbers` [count, dimension]; then turned back to the scale of floats. */
static void score_ints(const Codes *codes, const Tier *tier, Chunk *chunk, int64_t count, const float *numbers) {
    int64_t dimension = tier->dimension, pairs = tier->pairs, block_size = codes->block_size;
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        chunk->errors[i] = norm(numbers + i * dimension, dimension);
        if (chunk->errors[i] > largest) largest = chunk->errors[i];
    }
    /* Each score, ½‖e‖² - x·e, stays below what both scales make LARGEST_SCORE. */
    double scale = LARGEST_SCORE / (LARGEST_INT * (0.5 * LARGEST_INT / tier->scale + largest)), both = scale * tier->scale;
    for (int64_t i = 0; i < (count + ROWS - 1) / ROWS * ROWS; i++) {
        int64_t row = i < count ? i : count - 1;
        double residual = quantize(numbers + row * dimension, -scale, dimension, 2 * pairs, chunk->rounded);
        for (int64_t p = 0; p < pairs; p++)
            memcpy(chunk->int_tiles + ((i / ROWS) * pairs + p) * ROWS + i % ROWS, chunk->rounded + 2 * p, sizeof(int32_t));
        /* A score is off by at most ‖x̂ - s x‖ ‖ê‖ + ‖s x‖ ‖ê - s e‖ and the rounding of its bias; centering, and turning it
         * back to float32, add what the last term allows for. */
        if (i < count)
            chunk->errors[i] = (residual * tier->largest_rounded + scale * chunk->errors[i] * tier->largest_residual + 1.0 +
                                LARGEST_SCORE * 8 * FLT_EPSILON) / both;
        else
            continue;
        for (int lane = 0; lane < LANES; lane++) chunk->best[i].i[lane] = chunk->second[i].i[lane] = FAR_INT;
    }
    for (int64_t j = 0; j < codes->size; j++) chunk->biases[j] = (int32_t)lrint(codes->half_norms[j] * both);
    for (int64_t j = codes->size; j < codes->blocks * block_size; j++) chunk->biases[j] = FAR_INT;
    memset(chunk->block, 0, sizeof(int32_t) * count * LANES);
    for (int64_t b = 0; b < codes->blocks; b++)
        for (int64_t i = 0; i < count; i += ROWS) {
            int32_t minima[ROWS * LANES] __attribute__((aligned(ALIGNMENT)));
            int_tile(pairs, block_size / GROUP, chunk->int_tiles + i * pairs, tier->ints + b * block_size * pairs * 2,
                     chunk->biases + b * block_size, minima);
            for (int r = 0; r < ROWS && i + r < count; r++) update_ints(chunk, i + r, (int32_t)b, minima + r * LANES);
        }
    for (int64_t i = 0; i < count; i++) {
        turn_to_floats(chunk->best[i].i, (float)(1 / both), chunk->best[i].f);
        turn_to_floats(chunk->second[i].i, (float)(1 / both), chunk->second[i].f);
    }
}

static void score_floats(const Codes *codes, const Tier *tier, Chunk *chunk, int64_t count) {
    int64_t dimension = codes->dimension, block_size = codes->block_size;
    for (int64_t i = 0; i < (count + ROWS - 1) / ROWS * ROWS; i++) {
        int64_t row = i < count ? i : count - 1;
        for (int64_t d = 0; d < dimension; d++)
            chunk->float_tiles[((i / ROWS) * dimension + d) * ROWS + i % ROWS] = chunk->centered[row * dimension + d];
        if (i >= count) continue;
        chunk->errors[i] = no_answer(codes, NULL, NULL, chunk->norms[i]).error;
        for (int lane = 0; lane < LANES; lane++) chunk->best[i].f[lane] = chunk->second[i].f[lane] = INFINITY;
    }
    memset(chunk->block, 0, sizeof(int32_t) * count * LANES);
    for (int64_t b = 0; b < codes->blocks; b++)
        for (int64_t i = 0; i < count; i += ROWS) {
            float minima[ROWS * LANES] __attribute__((aligned(ALIGNMENT)));
            float_tile(dimension, block_size / GROUP, chunk->float_tiles + i * dimension,
                       tier->floats + b * block_size * dimension, tier->half_norms + b * block_size, minima);
            for (int r = 0; r < ROWS && i + r < count; r++) update_floats(chunk, i + r, (int32_t)b, minima + r * LANES);
        }
}

static void score(const Codes *codes, const Tier *tier, Chunk *chunk, int64_t count) {
    if (tier->kind == FLOATS) {
        score_floats(codes, tier, chunk, count);
    } else if (tier->kind == INTS) {
        score_ints(codes, tier, chunk, count, chunk->centered);
    } else {
        for (int64_t i = 0; i < count; i++)
            reduce(codes, chunk->centered + i * codes->dimension, chunk->norms[i], chunk->reduced + i * REDUCED);
        score_ints(codes, tier, chunk, count, chunk->reduced);
        for (int64_t i = 0; i < count; i++)
            chunk->errors[i] += 4 * coordinate_error(codes->dimension) * chunk->norms[i] * codes->largest_norm;
    }
}

/* A latent about the center, into place `i` of the chunk; 0 where it has been answered already. */
static int load(const Codes *codes, Chunk *chunk, int64_t i, const float *latents, int64_t row, int64_t *result) {
    const float *x = latents + row * codes->dimension;
    float *centered = chunk->centered + i * codes->dimension;
    for (int64_t d = 0; d < codes->dimension; d++) centered[d] = x[d] - codes->center[d];
    double length = norm(centered, codes->dimension);
    if (!(length < LARGEST_NORM)) {
        result[row] = isfinite(length) ? scan_distances(codes, x) : 0;
        return 0;
    }
    chunk->rows[i] = row;
    chunk->norms[i] = length;
    return 1;
}

/* Answers what a tier can of the latents `pending` (all of them where NULL), -1 for the others; returns how many are left
 * to the next one. The last tier leaves none. */
static int64_t chunk_by_tier(const Codes *codes, const Tier *tier, Chunk *chunk, const int64_t *pending, int64_t start,
                             int64_t end, int is_last, const float *latents, int64_t *result) {
    int64_t count = 0, unsettled = 0;
    for (int64_t i = start; i < end; i++)
        count += load(codes, chunk, count, latents, pending ? pending[i] : i, result);
    if (!count) return 0;
    score(codes, tier, chunk, count);
    for (int64_t i = 0; i < count; i++) {
        const float *latent = latents + chunk->rows[i] * codes->dimension, *centered = chunk->centered + i * codes->dimension;
        Answer answer = no_answer(codes, latent, centered, chunk->norms[i]);
        int64_t code = settle(chunk, i, &answer);
        if (code < 0 && is_last) code = scan(codes, latent, centered, chunk->norms[i]);
        result[chunk->rows[i]] = code;
        unsettled += code < 0;
    }
    return unsettled;
}

static int allocate_chunk(Chunk *chunk, const Codes *codes, const Tier *tier) {
    memset(chunk, 0, sizeof(*chunk));
    int floats = tier->kind == FLOATS, ready = 1;
    ready &= (chunk->centered = allocate(sizeof(float) * CHUNK * codes->dimension)) != NULL;
    ready &= (chunk->best = allocate(sizeof(*chunk->best) * CHUNK)) != NULL;
    ready &= (chunk->second = allocate(sizeof(*chunk->second) * CHUNK)) != NULL;
    ready &= (chunk->block = allocate(sizeof(int32_t) * CHUNK * LANES)) != NULL;
    if (floats) return ready & ((chunk->float_tiles = allocate(sizeof(float) * CHUNK * codes->dimension)) != NULL);
    ready &= (chunk->reduced = allocate(sizeof(float) * CHUNK * REDUCED)) != NULL;
    ready &= (chunk->rounded = allocate(sizeof(int16_t) * 2 * tier->pairs)) != NULL;
    ready &= (chunk->int_tiles = allocate(sizeof(int32_t) * CHUNK * tier->pairs)) != NULL;
    return ready & ((chunk->biases = allocate(sizeof(int32_t) * codes->blocks * codes->block_size)) != NULL);
}

static void free_chunk(Chunk *chunk) {
    free(chunk->centered), free(chunk->reduced), free(chunk->rounded);
    free(chunk->int_tiles), free(chunk->float_tiles), free(chunk->biases);
    free(chunk->best), free(chunk->second), free(chunk->block);
}

/* All latents that are pending, chunk by chunk; 0 where there was no memory. */
static int run_tier(const Codes *codes, const Tier *tier, const int64_t *pending, int64_t number, int is_last,
                    const float *latents, int threads, int64_t *result) {
    int failed = 0;
    int64_t tried = 0, unsettled = 0; /* latents, over all threads */
#pragma omp parallel num_threads(threads)
    {
        Chunk chunk;
        int ready = allocate_chunk(&chunk, codes, tier);
        if (!ready) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (int64_t start = 0; start < number; start += CHUNK) {
            if (!ready) continue;
            int64_t end = start + CHUNK < number ? start + CHUNK : number, seen, left;
#pragma omp atomic read
            seen = tried;
#pragma omp atomic read
            left = unsettled;
            int in_vain = seen >= TRIAL_CHUNKS * CHUNK && (double)left > MOST_UNSETTLED * (double)seen;
            if (in_vain && !is_last && (start / CHUNK) % EIGHTH) {
                for (int64_t i = start; i < end; i++) result[pending ? pending[i] : i] = -1;
                continue;
            }
            left = chunk_by_tier(codes, tier, &chunk, pending, start, end, is_last, latents, result);
#pragma omp atomic
            unsettled += left;
#pragma omp atomic
            tried += end - start;
        }
        free_chunk(&chunk);
    }
    return !failed;
}

/* Those without an answer, in order. */
static int64_t gather_pending(const int64_t *result, int64_t number, int64_t *pending) {
    int64_t count = 0;
    for (int64_t i = 0; i < number; i++)
        if (result[i] < 0) pending[count++] = i;
    return count;
}

/* 0 where there was no memory. */
static int run_tiers(const Codes *codes, const float *latents, int64_t number, int kind, int threads, int64_t *result) {
    int64_t *pending = NULL;
    for (int ready; number > 0 && kind >= FLOATS; kind--) {
        int64_t count = pending ? gather_pending(result, number, pending) : number;
        if (!count) break;
        int chunks = (int)((count + CHUNK - 1) / CHUNK < threads ? (count + CHUNK - 1) / CHUNK : threads);
        Tier tier;
        ready = pack(codes, &tier, kind, threads) &&
                run_tier(codes, &tier, pending, count, kind == FLOATS, latents, chunks, result);
        free_tier(&tier);
        if (ready && !pending && kind > FLOATS) ready = (pending = allocate(sizeof(int64_t) * number)) != NULL;
        if (!ready) {
            free(pending);
            return 0;
        }
    }
    free(pending);
    return 1;
}

/* 0 where there was no memory. */
static int prepare(Codes *codes, int threads) {
    codes->centered = allocate(sizeof(float) * codes->size * codes->dimension);
    codes->norms = allocate(sizeof(double) * codes->size);
    codes->half_norms = allocate(sizeof(double) * codes->size);
    if (!codes->centered || !codes->norms || !codes->half_norms) return 0;
    double largest = 0;
#pragma omp parallel for schedule(static) reduction(max : largest) num_threads(threads)
    for (int64_t j = 0; j < codes->size; j++) {
        float *centered = codes->centered + j * codes->dimension;
        for (int64_t d = 0; d < codes->dimension; d++)
            centered[d] = codes->vectors[j * codes->dimension + d] - codes->center[d];
        double length = norm(centered, codes->dimension);
        codes->norms[j] = length;
        codes->half_norms[j] = 0.5 * length * length;
        if (length > largest) largest = length;
    }
    codes->largest_norm = largest;
    return 1;
}

/* Code by code, without packing; 0 where there was no memory. */
static int scan_all(const Codes *codes, const float *latents, int64_t number, int by_distance, int threads, int64_t *result) {
    float *scratch = allocate(sizeof(float) * number * codes->dimension);
    if (!scratch) return 0;
    if (threads > number) threads = (int)number;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < number; i++) {
        const float *x = latents + i * codes->dimension;
        float *centered = scratch + i * codes->dimension;
        for (int64_t d = 0; d < codes->dimension; d++) centered[d] = x[d] - codes->center[d];
        double length = norm(centered, codes->dimension);
        if (!isfinite(length))
            result[i] = 0;
        else
            result[i] = by_distance || !(length < LARGEST_NORM) ? scan_distances(codes, x) : scan(codes, x, centered, length);
    }
    free(scratch);
    return 1;
}

/* The nearest of K codes `[K, D]` for each of N latents `[N, D]`, where the first tier is FLOATS, INTS or REDUCED_INTS; the
 * last one needs `directions` [D, REDUCED], aligned as vectors are. Returns 0, or 1 where there was no memory. */
int hvq_nearest(const float *latents, int64_t number, const float *vectors, int64_t size, int64_t dimension,
                const float *center, const float *directions, int first_tier, int threads, int64_t *result) {
    Codes codes = {.size = size, .dimension = dimension, .vectors = vectors, .center = center, .directions = directions};
    codes.block_size = size <= 1024 ? GROUP : 4 * GROUP;
    codes.blocks = (size + codes.block_size - 1) / codes.block_size;
    int ready = prepare(&codes, threads);
    if (ready && number > 0) {
        if (!(codes.largest_norm > 0)) /* one vector, however often: the first is the nearest */
            memset(result, 0, sizeof(int64_t) * number);
        else if (number < FEW || !(codes.largest_norm < LARGEST_NORM))
            ready = scan_all(&codes, latents, number, !(codes.largest_norm < LARGEST_NORM), threads, result);
        else
            ready = run_tiers(&codes, latents, number, first_tier, threads, result);
    }
    free(codes.centered), free(codes.norms), free(codes.half_norms);
    return !ready;
}
