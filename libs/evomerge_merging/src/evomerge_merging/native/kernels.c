/* The inner loops of the common merge methods on a CPU: what torch does in a dozen passes over memory, in one.
 *
 * Each function works on a piece of a tensor: a cell of each source is read from its file into the second-level cache, and
 * worked on in blocks that stay in the first-level one, widened to float32 there, and rounded to the output's type. Who
 * needs a source twice reads it twice: what is kept goes out to memory and comes back, which takes longer. The definitions
 * are the Python functions of methods/; products and sums are rounded one by one (no fused multiply-add), so that results
 * equal theirs bit for bit, but for sums over whole tensors, which are added up in another order. Called through ctypes,
 * without the interpreter's lock.
 */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#if __GNUC__ >= 12
#define FAST __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FAST __attribute__((target_clones("avx2", "default")))
#endif
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f")))
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

enum { BLOCK = 1024, CELL = 16384, LANES = 16, MOST = 16, BUCKETS = 2048 };
enum { GROUP = 128, ROUNDS = 7 };
#define FACTOR_0 0xd2511f53u
#define FACTOR_1 0xcd9e8d57u
#define WEYL_0 0x9e3779b9u
#define WEYL_1 0xbb67ae85u
enum { BFLOAT16 = 0, FLOAT32 = 1, FLOAT16 = 2 };
/* What went wrong: bits, and above them the number of the error that reading met. */
enum { INPUT_NOT_FINITE = 1, OUTPUT_NOT_FINITE = 2, CUT_SHORT = 4, NO_MEMORY = 8, ERROR_SHIFT = 8 };
enum { KEEP_EVERYTHING = 0, KEEP_CUT = 1, KEEP_BAND = 2, KEEP_BITS = 3, KEEP_DRAWN = 4 };

/* Elements of a source, or of the output, from a piece's first on: in memory, or (without `data`) in an open file. */
typedef struct {
    void *data;
    int64_t type;
    int64_t file, offset;
} elements;

/* What of a task vector is kept: see Cut, Band, Bits and Drawn in Python. `bits` begins with the piece. */
typedef struct {
    int64_t kind;
    int64_t outer_last, inner_last;
    const uint8_t *bits;
    float outer, inner;
    uint32_t key[4];
    int64_t limit;
} keep;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Elements [at, at + count) in memory: where they are, or read into `room`. */
static int fetch(elements *here, const elements *from, int64_t at, int64_t count, void *room) {
    int64_t size = from->type == FLOAT32 ? 4 : 2, wanted = count * size;
    here->type = from->type;
    here->data = from->data ? (char *)from->data + at * size : room;
    for (int64_t done = from->data ? wanted : 0; done < wanted;) {
        int64_t place = from->offset + at * size + done;
        ssize_t got = pread((int)from->file, (char *)room + done, (size_t)(wanted - done), place);
        if (got == 0) return CUT_SHORT;
        if (got < 0 && errno != EINTR) return errno << ERROR_SHIFT;
        done += got > 0 ? got : 0;
    }
    return 0;
}

/* A cell of several sources and of their base. */
typedef struct {
    elements in[MOST], base;
    char *room;
} window;

static int open_window(window *w, int64_t inputs) {
    void *room = NULL;
    int failed = posix_memalign(&room, 64, (size_t)((inputs + 1) * CELL * 4));
    w->room = room;
    return failed ? NO_MEMORY : 0;
}

/* Moves the window to [at, at + count), count up to CELL; of the inputs only those `used`, where that is told. */
static int move_window(window *w, const elements *in, int64_t inputs, const uint8_t *used, const elements *base,
                       int64_t at, int64_t count) {
    int failed = base ? fetch(&w->base, base, at, count, w->room + inputs * CELL * 4) : 0;
    for (int64_t k = 0; k < inputs && !failed; k++)
        if (!used || used[k]) failed = fetch(&w->in[k], &in[k], at, count, w->room + k * CELL * 4);
    return failed;
}

INLINE int load(float *restrict to, const elements *from, int64_t at, int64_t count) {
    if (from->type == BFLOAT16) {
        const uint16_t *restrict data = (const uint16_t *)from->data + at;
        uint32_t *restrict bits = (uint32_t *)to;
        uint16_t largest = 0;
        for (int64_t i = 0; i < count; i++) {
            uint16_t exponent = data[i] & 0x7f80;
            largest = exponent > largest ? exponent : largest;
            bits[i] = (uint32_t)data[i] << 16;
        }
        return largest == 0x7f80 ? INPUT_NOT_FINITE : 0;
    }
    if (from->type == FLOAT16) {
        const uint16_t *restrict data = (const uint16_t *)from->data + at;
        uint32_t *restrict bits = (uint32_t *)to;
        uint16_t largest = 0;
        for (int64_t i = 0; i < count; i++) {
            uint16_t exponent = data[i] & 0x7c00;
            largest = exponent > largest ? exponent : largest;
            /* Its bits in float32's places are the number times 2^-112, of subnormals too: exact. */
            bits[i] = ((uint32_t)data[i] & 0x7fffu) << 13 | ((uint32_t)data[i] & 0x8000u) << 16;
        }
        for (int64_t i = 0; i < count; i++) to[i] *= 0x1p112f;
        return largest == 0x7c00 ? INPUT_NOT_FINITE : 0;
    }
    const uint32_t *restrict data = (const uint32_t *)from->data + at;
    uint32_t *restrict bits = (uint32_t *)to;
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t exponent = data[i] & 0x7f800000u;
        largest = exponent > largest ? exponent : largest;
        bits[i] = data[i];
    }
    return largest == 0x7f800000u ? INPUT_NOT_FINITE : 0;
}

INLINE int store(const elements *to, int64_t at, const float *restrict from, int64_t count) {
    const uint32_t *restrict bits = (const uint32_t *)from;
    uint32_t largest = 0;
    if (to->type == BFLOAT16) {
        uint16_t *restrict data = (uint16_t *)to->data + at;
        for (int64_t i = 0; i < count; i++) {
            uint32_t exponent = bits[i] & 0x7f800000u;
            uint32_t rounded = bits[i] + 0x7fffu + ((bits[i] >> 16) & 1u);
            /* Rounding up may overflow as well: the rounded exponent counts, and that of a NaN before. */
            uint32_t after = rounded & 0x7f800000u;
            exponent = after > exponent ? after : exponent;
            largest = exponent > largest ? exponent : largest;
            data[i] = (uint16_t)(rounded >> 16);
        }
    } else {
        uint32_t *restrict data = (uint32_t *)to->data + at;
        for (int64_t i = 0; i < count; i++) {
            uint32_t exponent = bits[i] & 0x7f800000u;
            largest = exponent > largest ? exponent : largest;
            data[i] = bits[i];
        }
    }
    return largest == 0x7f800000u ? OUTPUT_NOT_FINITE : 0;
}

/* A source less the base, or as it is without one. */
INLINE int load_delta(float *restrict to, const elements *from, const float *restrict base, int64_t at, int64_t count) {
    int status = load(to, from, at, count);
    if (base)
        for (int64_t i = 0; i < count; i++) to[i] -= base[i];
    return status;
}

/* Random words of whole groups, Philox-4x32: see random_words.py. */
static void draw_groups_plainly(int16_t *restrict words, const uint32_t *key, int64_t from, int64_t to) {
    uint32_t *restrict out = (uint32_t *)words;
    for (uint64_t counter = (uint64_t)from * LANES; counter < (uint64_t)to * LANES; counter++) {
        uint32_t a = (uint32_t)counter, b = (uint32_t)(counter >> 32), c = key[2], d = key[3], k = key[0], m = key[1];
        for (int round = 0; round < ROUNDS; round++, k += WEYL_0, m += WEYL_1) {
            uint64_t p = (uint64_t)a * FACTOR_0, q = (uint64_t)c * FACTOR_1;
            a = (uint32_t)(q >> 32) ^ b ^ k;
            c = (uint32_t)(p >> 32) ^ d ^ m;
            b = (uint32_t)q;
            d = (uint32_t)p;
        }
        uint64_t lane = counter % LANES;
        out[lane] = a, out[LANES + lane] = b, out[2 * LANES + lane] = c, out[3 * LANES + lane] = d;
        out += lane == LANES - 1 ? 4 * LANES : 0;
    }
}

#ifdef AVX2
/* The same with four counters in 64-bit lanes; only the lower halves mean anything. */
AVX2 static void draw_groups_by_lanes(int16_t *restrict words, const uint32_t *key, int64_t from, int64_t to) {
    const __m256i factor_0 = _mm256_set1_epi64x(FACTOR_0), factor_1 = _mm256_set1_epi64x(FACTOR_1);
    /* In this order two results shuffled together come out as counters count. */
    const __m256i lanes[2] = {_mm256_set_epi64x(5, 4, 1, 0), _mm256_set_epi64x(7, 6, 3, 2)};
    __m256i keys[ROUNDS][2];
    for (uint32_t round = 0; round < ROUNDS; round++) {
        keys[round][0] = _mm256_set1_epi64x((int64_t)(uint32_t)(key[0] + round * WEYL_0));
        keys[round][1] = _mm256_set1_epi64x((int64_t)(uint32_t)(key[1] + round * WEYL_1));
    }
    for (int64_t at = from * 2; at < to * 2; at++) { /* half a group: eight counters */
        __m256i found[2][4];
        for (int half = 0; half < 2; half++) {
            __m256i a = _mm256_add_epi64(_mm256_set1_epi64x(at * 8), lanes[half]), b = _mm256_srli_epi64(a, 32);
            __m256i c = _mm256_set1_epi64x(key[2]), d = _mm256_set1_epi64x(key[3]);
#pragma GCC unroll 7
            for (int round = 0; round < ROUNDS; round++) {
                __m256i p = _mm256_mul_epu32(a, factor_0), q = _mm256_mul_epu32(c, factor_1);
                a = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(q, 32), b), keys[round][0]);
                c = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p, 32), d), keys[round][1]);
                b = q;
                d = p;
            }
            found[half][0] = a, found[half][1] = b, found[half][2] = c, found[half][3] = d;
        }
        float *out = (float *)words + (at - from * 2) / 2 * 4 * LANES + (at % 2) * 8;
        for (int k = 0; k < 4; k++) {
            __m256 one = _mm256_castsi256_ps(found[0][k]), other = _mm256_castsi256_ps(found[1][k]);
            _mm256_storeu_ps(out + k * LANES, _mm256_shuffle_ps(one, other, 0x88));
        }
    }
}

/* The same with eight counters in a vector, and two vectors side by side, so that no product waits for the one before. */
AVX512 static void draw_groups_by_wide_lanes(int16_t *restrict words, const uint32_t *key, int64_t from, int64_t to) {
    const __m512i factor_0 = _mm512_set1_epi64(FACTOR_0), factor_1 = _mm512_set1_epi64(FACTOR_1);
    const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low_halves = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    __m512i keys[ROUNDS][2];
    for (uint32_t round = 0; round < ROUNDS; round++) {
        keys[round][0] = _mm512_set1_epi64((int64_t)(uint32_t)(key[0] + round * WEYL_0));
        keys[round][1] = _mm512_set1_epi64((int64_t)(uint32_t)(key[1] + round * WEYL_1));
    }
    for (int64_t at = from; at < to; at++, words += GROUP) {
        __m512i a[2], b[2], c[2], d[2];
        for (int half = 0; half < 2; half++) {
            a[half] = _mm512_add_epi64(_mm512_set1_epi64(at * LANES + half * 8), lanes);
            b[half] = _mm512_srli_epi64(a[half], 32);
            c[half] = _mm512_set1_epi64(key[2]), d[half] = _mm512_set1_epi64(key[3]);
        }
#pragma GCC unroll 7
        for (int round = 0; round < ROUNDS; round++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                __m512i p = _mm512_mul_epu32(a[half], factor_0), q = _mm512_mul_epu32(c[half], factor_1);
                a[half] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(q, 32), b[half], keys[round][0], 0x96);
                c[half] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p, 32), d[half], keys[round][1], 0x96);
                b[half] = q;
                d[half] = p;
            }
        _mm512_storeu_si512(words, _mm512_permutex2var_epi32(a[0], low_halves, a[1]));
        _mm512_storeu_si512(words + 2 * LANES, _mm512_permutex2var_epi32(b[0], low_halves, b[1]));
        _mm512_storeu_si512(words + 4 * LANES, _mm512_permutex2var_epi32(c[0], low_halves, c[1]));
        _mm512_storeu_si512(words + 6 * LANES, _mm512_permutex2var_epi32(d[0], low_halves, d[1]));
    }
}
#endif

/* The words of elements from `start` on; `room` is for BLOCK of them and two groups. */
static const int16_t *draw(int16_t *room, const uint32_t *key, int64_t start, int64_t count) {
    int64_t first = start / GROUP, last = (start + count + GROUP - 1) / GROUP;
#ifdef AVX2
    if (__builtin_cpu_supports("avx512f")) {
        draw_groups_by_wide_lanes(room, key, first, last);
        return room + start % GROUP;
    }
    if (__builtin_cpu_supports("avx2")) {
        draw_groups_by_lanes(room, key, first, last);
        return room + start % GROUP;
    }
#endif
    draw_groups_plainly(room, key, first, last);
    return room + start % GROUP;
}

/* Zeros what is not kept; `start` is the place of values[0] in its tensor, `at` in its piece. */
INLINE void thin(float *restrict values, const keep *what, int64_t start, int64_t at, int64_t count) {
    if (what->kind == KEEP_CUT || what->kind == KEEP_BAND) {
        float cut = what->outer;
        int64_t equal = what->outer_last < start ? 0 : smaller(what->outer_last - start + 1, count);
        for (int64_t i = 0; i < equal; i++) values[i] = fabsf(values[i]) >= cut ? values[i] : 0.0f;
        for (int64_t i = equal; i < count; i++) values[i] = fabsf(values[i]) > cut ? values[i] : 0.0f;
    }
    if (what->kind == KEEP_BAND) {
        float cut = what->inner;
        int64_t equal = what->inner_last < start ? 0 : smaller(what->inner_last - start + 1, count);
        for (int64_t i = 0; i < equal; i++) values[i] = fabsf(values[i]) >= cut ? 0.0f : values[i];
        for (int64_t i = equal; i < count; i++) values[i] = fabsf(values[i]) > cut ? 0.0f : values[i];
    }
    if (what->kind == KEEP_DRAWN) {
        int16_t room[BLOCK + 2 * GROUP] __attribute__((aligned(64)));
        const int16_t *words = draw(room, what->key, start, count);
        uint32_t *restrict bits = (uint32_t *)values;
        int16_t limit = (int16_t)what->limit;
        for (int64_t i = 0; i < count; i++) bits[i] &= words[i] < limit ? 0xffffffffu : 0u;
    }
    if (what->kind == KEEP_BITS) {
        static const uint32_t weight[8] = {128, 64, 32, 16, 8, 4, 2, 1};
        uint32_t *restrict bits = (uint32_t *)values;
        const uint8_t *restrict packed = what->bits + at / 8;
        int64_t whole = count / 8;
        for (int64_t k = 0; k < whole; k++) {
            uint32_t byte = packed[k];
            for (int b = 0; b < 8; b++) bits[8 * k + b] &= (byte & weight[b]) ? 0xffffffffu : 0u;
        }
        for (int64_t i = 8 * whole; i < count; i++) bits[i] &= (packed[i / 8] & weight[i % 8]) ? 0xffffffffu : 0u;
    }
}

INLINE double lanes_sum(const float *lanes) {
    double sum = 0.0;
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

INLINE int64_t padded(float *values, int64_t count) {
    int64_t full = (count + LANES - 1) / LANES * LANES;
    for (int64_t i = count; i < full; i++) values[i] = 0.0f;
    return full;
}

/* out = sum of weights[i] * in[i], added up in order. */
FAST int evomerge_weighted_sum(const elements *in, int64_t inputs, const float *weights, int64_t count,
                               const elements *out) {
    float values[BLOCK] __attribute__((aligned(64))), sum[BLOCK] __attribute__((aligned(64)));
    window w;
    int status = open_window(&w, inputs);
    for (int64_t cell = 0; cell < count && status < CUT_SHORT; cell += CELL) {
        int64_t end = smaller(CELL, count - cell);
        status |= move_window(&w, in, inputs, NULL, NULL, cell, end);
        for (int64_t at = 0; at < end && status < CUT_SHORT; at += BLOCK) {
            int64_t n = smaller(BLOCK, end - at);
            for (int64_t k = 0; k < inputs; k++) {
                float weight = weights[k];
                status |= load(values, &w.in[k], at, n);
                if (k == 0)
                    for (int64_t i = 0; i < n; i++) sum[i] = values[i] * weight;
                else
                    for (int64_t i = 0; i < n; i++) sum[i] += values[i] * weight;
            }
            status |= store(out, cell + at, sum, n);
        }
    }
    free(w.room);
    return status;
}

/* Of each cell the sums of aa, bb and ab, as sums[cell][3]. */
FAST int evomerge_inner_products(const elements *a, const elements *b, int64_t count, double *sums) {
    float x[BLOCK] __attribute__((aligned(64))), y[BLOCK] __attribute__((aligned(64)));
    window w;
    int status = open_window(&w, 1);
    for (int64_t cell = 0; cell < count && status < CUT_SHORT; cell += CELL, sums += 3) {
        float aa[LANES] = {0}, bb[LANES] = {0}, ab[LANES] = {0};
        int64_t end = smaller(CELL, count - cell);
        status |= move_window(&w, a, 1, NULL, b, cell, end);
        for (int64_t at = 0; at < end && status < CUT_SHORT; at += BLOCK) {
            int64_t n = smaller(BLOCK, end - at);
            status |= load(x, &w.in[0], at, n) | load(y, &w.base, at, n);
            padded(y, n);
            n = padded(x, n);
            for (int64_t i = 0; i < n; i += LANES)
                for (int l = 0; l < LANES; l++) {
                    aa[l] += x[i + l] * x[i + l];
                    bb[l] += y[i + l] * y[i + l];
                    ab[l] += x[i + l] * y[i + l];
                }
        }
        sums[0] = lanes_sum(aa);
        sums[1] = lanes_sum(bb);
        sums[2] = lanes_sum(ab);
    }
    free(w.room);
    return status;
}

/* Task vectors, thinned out, weighed, with elected signs or not, added to the base: see merge_task_vectors. */
FAST int evomerge_task_vectors(const elements *in, const elements *base_elements, int64_t inputs, const keep *keeps,
                               const float *factors, const float *shares, float scale, float divide, int64_t elect,
                               int64_t normalize, int64_t start, int64_t count, const elements *out) {
    float base[BLOCK] __attribute__((aligned(64))), total[BLOCK] __attribute__((aligned(64)));
    float sum[BLOCK] __attribute__((aligned(64))), divisor[BLOCK] __attribute__((aligned(64)));
    float change[MOST][BLOCK] __attribute__((aligned(64)));
    window w;
    int status = open_window(&w, inputs);
    for (int64_t cell = 0; cell < count && status < CUT_SHORT; cell += CELL) {
        int64_t end = smaller(CELL, count - cell);
        status |= move_window(&w, in, inputs, NULL, base_elements, cell, end);
        for (int64_t at = 0; at < end && status < CUT_SHORT; at += BLOCK) {
            int64_t n = smaller(BLOCK, end - at);
            status |= load(base, &w.base, at, n);
            for (int64_t k = 0; k < inputs; k++) {
                float *restrict values = change[k];
                float factor = factors[k];
                status |= load_delta(values, &w.in[k], base, at, n);
                thin(values, &keeps[k], start + cell + at, cell + at, n);
                if (k == 0)
                    for (int64_t i = 0; i < n; i++) total[i] = values[i] *= factor;
                else
                    for (int64_t i = 0; i < n; i++) total[i] += values[i] *= factor;
            }
            if (elect) {
                for (int64_t i = 0; i < n; i++) sum[i] = divisor[i] = 0.0f;
                for (int64_t k = 0; k < inputs; k++) {
                    const float *restrict values = change[k];
                    float share = shares[k];
                    for (int64_t i = 0; i < n; i++) {
                        float agreeing = values[i] * copysignf(1.0f, total[i]);
                        agreeing = agreeing > 0.0f ? agreeing : 0.0f;
                        sum[i] += agreeing;
                        divisor[i] += agreeing > 0.0f ? share : 0.0f;
                    }
                }
                if (normalize)
                    for (int64_t i = 0; i < n; i++) {
                        float by = divisor[i] + (fabsf(divisor[i]) <= 1e-8f ? 1.0f : 0.0f);
                        sum[i] /= by;
                    }
                for (int64_t i = 0; i < n; i++) total[i] = sum[i] * copysignf(1.0f, total[i]);
            } else if (divide != 1.0f) {
                for (int64_t i = 0; i < n; i++) total[i] *= divide;
            }
            for (int64_t i = 0; i < n; i++) total[i] = total[i] * scale + base[i];
            status |= store(out, cell + at, total, n);
        }
    }
    free(w.room);
    return status;
}

/* |in - base| as float32. */
FAST int evomerge_magnitudes(const elements *in, const elements *base_elements, int64_t count, float *out) {
    float base[BLOCK] __attribute__((aligned(64))), values[BLOCK] __attribute__((aligned(64)));
    window w;
    int status = open_window(&w, 1);
    for (int64_t cell = 0; cell < count && status < CUT_SHORT; cell += CELL) {
        int64_t end = smaller(CELL, count - cell);
        status |= move_window(&w, in, 1, NULL, base_elements, cell, end);
        for (int64_t at = 0; at < end && status < CUT_SHORT; at += BLOCK) {
            int64_t n = smaller(BLOCK, end - at);
            status |= load(base, &w.base, at, n) | load_delta(values, &w.in[0], base, at, n);
            for (int64_t i = 0; i < n; i++) out[cell + at + i] = fabsf(values[i]);
        }
    }
    free(w.room);
    return status;
}

/* For each cut: how many magnitudes of its input lie above `high`, and those from `low` to `high` themselves.
 * `inside[cut]` has room for `count` of them. */
FAST int evomerge_scan(const elements *in, const elements *base_elements, int64_t inputs, int64_t cuts,
                       const int64_t *input_of, const float *low, const float *high, int64_t count, int64_t *above,
                       float *const *inside, int64_t *number) {
    float base[BLOCK] __attribute__((aligned(64))), values[BLOCK] __attribute__((aligned(64)));
    uint8_t between[BLOCK + 8] __attribute__((aligned(64)));
    uint8_t used[MOST] = {0};
    for (int64_t c = 0; c < cuts; c++) used[input_of[c]] = 1;
    window w;
    int status = open_window(&w, inputs);
    for (int64_t cell = 0; cell < count && status < CUT_SHORT; cell += CELL) {
        int64_t end = smaller(CELL, count - cell);
        status |= move_window(&w, in, inputs, used, base_elements, cell, end);
        for (int64_t at = 0; at < end && status < CUT_SHORT; at += BLOCK) {
            int64_t n = smaller(BLOCK, end - at);
            status |= load(base, &w.base, at, n);
            for (int64_t k = 0; k < inputs; k++) {
                if (!used[k]) continue;
                status |= load_delta(values, &w.in[k], base, at, n);
                for (int64_t i = 0; i < n; i++) values[i] = fabsf(values[i]);
                for (int64_t c = 0; c < cuts; c++) {
                    if (input_of[c] != k) continue;
                    float from = low[c], to = high[c];
                    int32_t over = 0;
                    for (int64_t i = 0; i < n; i++) over += values[i] > to;
                    above[c] += over;
                    memset(between + n / 8 * 8, 0, 8);
                    for (int64_t i = 0; i < n; i++) between[i] = (values[i] >= from) & (values[i] <= to);
                    float *restrict found = inside[c];
                    int64_t many = number[c];
                    for (int64_t i = 0; i < n; i += 8) {
                        uint64_t any;
                        memcpy(&any, between + i, sizeof any);
                        if (any)
                            for (int64_t j = i; j < smaller(i + 8, n); j++)
                                if (between[j]) found[many++] = values[j];
                    }
                    number[c] = many;
                }
            }
        }
    }
    free(w.room);
    return status;
}

/* Of each cell and input the sums of magnitudes, all and kept, as sums[cell][input][2]. */
FAST int evomerge_thinned_sums(const elements *in, const elements *base_elements, int64_t inputs, const keep *keeps,
                               int64_t start, int64_t count, double *sums) {
    float base[BLOCK] __attribute__((aligned(64))), values[BLOCK] __attribute__((aligned(64)));
    float lanes[MOST][2][LANES];
    window w;
    int status = open_window(&w, inputs);
    for (int64_t cell = 0; cell < count && status < CUT_SHORT; cell += CELL) {
        int64_t end = smaller(CELL, count - cell);
        status |= move_window(&w, in, inputs, NULL, base_elements, cell, end);
        memset(lanes, 0, sizeof lanes);
        for (int64_t at = 0; at < end && status < CUT_SHORT; at += BLOCK) {
            int64_t n = smaller(BLOCK, end - at);
            status |= load(base, &w.base, at, n);
            for (int64_t k = 0; k < inputs; k++) {
                status |= load_delta(values, &w.in[k], base, at, n);
                int64_t full = padded(values, n);
                float all[LANES], kept[LANES];
                memcpy(all, lanes[k][0], sizeof all);
                memcpy(kept, lanes[k][1], sizeof kept);
                for (int64_t i = 0; i < full; i += LANES)
                    for (int l = 0; l < LANES; l++) all[l] += fabsf(values[i + l]);
                thin(values, &keeps[k], start + cell + at, cell + at, n);
                for (int64_t i = 0; i < full; i += LANES)
                    for (int l = 0; l < LANES; l++) kept[l] += fabsf(values[i + l]);
                memcpy(lanes[k][0], all, sizeof all);
                memcpy(lanes[k][1], kept, sizeof kept);
            }
        }
        for (int64_t k = 0; k < inputs; k++, sums += 2) {
            sums[0] = lanes_sum(lanes[k][0]);
            sums[1] = lanes_sum(lanes[k][1]);
        }
    }
    free(w.room);
    return status;
}

/* Random words of elements from `start` on: see random_words.py. */
FAST int evomerge_words(const uint32_t *key, int64_t start, int64_t count, int16_t *out) {
    int16_t room[BLOCK + 2 * GROUP] __attribute__((aligned(64)));
    for (int64_t at = 0; at < count; at += BLOCK) {
        int64_t n = smaller(BLOCK, count - at);
        memcpy(out + at, draw(room, key, start + at, n), (size_t)n * sizeof *out);
    }
    return 0;
}

/* DELLA's choice for whole rows: see keep_by_rank. Writes a byte, 0 or 1, for each element, and for the piece the sums of
 * magnitudes, all and kept. `scratch` has room for eight bytes an element of a row. */
FAST int evomerge_rank_flags(const elements *in, const elements *base_elements, int64_t rows, int64_t row,
                             const uint32_t *key, int64_t start, int64_t low, int64_t high, float *restrict scratch,
                             uint8_t *restrict flags, double *sums) {
    uint32_t smaller_ones[BUCKETS + 1];
    int16_t limits[BUCKETS];
    float base[BLOCK] __attribute__((aligned(64)));
    int16_t room[BLOCK + 2 * GROUP] __attribute__((aligned(64)));
    uint16_t *restrict buckets = (uint16_t *)(scratch + row);
    int16_t *restrict limit = (int16_t *)(buckets + row);
    const double slope = row > 1 ? (double)(high - low) / (2.0 * (double)(row - 1)) : 0.0;
    double all = 0.0, kept = 0.0;
    int status = 0;
    for (int64_t r = 0; r < rows; r++) {
        uint16_t most = 0, least = 0xffff;
        for (int64_t at = 0; at < row; at += BLOCK) {
            int64_t n = smaller(BLOCK, row - at);
            float *restrict values = scratch + at;
            uint16_t *restrict found = buckets + at;
            status |= load(base, base_elements, r * row + at, n) | load_delta(values, in, base, r * row + at, n);
            uint32_t *restrict bits = (uint32_t *)values;
            for (int64_t i = 0; i < n; i++) {
                bits[i] &= 0x7fffffffu;
                uint16_t upper = (uint16_t)(bits[i] >> 16);
                found[i] = upper;
                most = upper > most ? upper : most;
                least = upper < least ? upper : least;
            }
        }
        uint16_t bottom = most >= BUCKETS ? (uint16_t)(most - BUCKETS + 1) : 0;
        for (int64_t i = 0; i < row; i++) buckets[i] = buckets[i] > bottom ? (uint16_t)(buckets[i] - bottom) : 0;
        int from = least > bottom ? least - bottom : 0, to = most - bottom + 1;
        memset(smaller_ones + from, 0, (size_t)(to - from + 1) * sizeof *smaller_ones);
        for (int64_t i = 0; i < row; i++) smaller_ones[buckets[i] + 1]++;
        for (int b = from + 1; b <= to; b++) smaller_ones[b] += smaller_ones[b - 1];
        for (int b = from; b < to; b++) {
            uint32_t twice_the_rank = smaller_ones[b] + smaller_ones[b + 1] - (smaller_ones[b + 1] > smaller_ones[b]);
            limits[b] = (int16_t)(low + (int32_t)((double)(int32_t)twice_the_rank * slope));
        }
        for (int64_t i = 0; i < row; i++) limit[i] = limits[buckets[i]];
        for (int64_t at = 0; at < row; at += BLOCK) {
            int64_t n = smaller(BLOCK, row - at);
            const int16_t *words = draw(room, key, start + r * row + at, n);
            uint8_t *restrict flag = flags + r * row + at;
            for (int64_t i = 0; i < n; i++) flag[i] = words[i] < limit[at + i];
            float every[LANES] = {0}, some[LANES] = {0};
            int64_t whole = n / LANES * LANES;
            const uint32_t *restrict bits = (const uint32_t *)scratch + at;
            for (int64_t i = 0; i < whole; i += LANES)
                for (int l = 0; l < LANES; l++) {
                    uint32_t chosen = bits[i + l] & (0u - (uint32_t)flag[i + l]);
                    float value;
                    memcpy(&value, &chosen, sizeof value);
                    every[l] += scratch[at + i + l];
                    some[l] += value;
                }
            for (int64_t i = whole; i < n; i++) {
                every[i % LANES] += scratch[at + i];
                some[i % LANES] += flag[i] ? scratch[at + i] : 0.0f;
            }
            all += lanes_sum(every);
            kept += lanes_sum(some);
        }
    }
    sums[0] = all;
    sums[1] = kept;
    return status;
}
