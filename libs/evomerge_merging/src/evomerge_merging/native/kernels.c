/* The inner loops of the common merge methods on a CPU: what torch does in a dozen passes over memory, in one.
 *
 * Each function works on a piece of a tensor in blocks that stay in the first-level cache: sources are widened to float32
 * there, worked on, and rounded to the output's type. The definitions are the Python functions of methods/; products
 * and sums are rounded one by one (no fused multiply-add), so that results equal theirs bit for bit, but for sums over
 * whole tensors, which are added up in another order. Called through ctypes, without the interpreter's lock.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

enum { BLOCK = 1024, CELL = 16384, LANES = 16, MOST = 16, BUCKETS = 4096 };
enum { BFLOAT16 = 0, FLOAT32 = 1 };
enum { INPUT_NOT_FINITE = 1, OUTPUT_NOT_FINITE = 2 };
enum { KEEP_EVERYTHING = 0, KEEP_CUT = 1, KEEP_BAND = 2, KEEP_BITS = 3 };

/* Elements of a source, or of the output, from a piece's first on. */
typedef struct {
    void *data;
    int64_t type;
} elements;

/* What of a task vector is kept: see Cut, Band and Bits in Python. `bits` begins with the piece. */
typedef struct {
    int64_t kind;
    int64_t outer_last, inner_last;
    const uint8_t *bits;
    float outer, inner;
} keep;

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

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* A source less the base, or as it is without one. */
INLINE int load_delta(float *restrict to, const elements *from, const float *restrict base, int64_t at, int64_t count) {
    int status = load(to, from, at, count);
    if (base)
        for (int64_t i = 0; i < count; i++) to[i] -= base[i];
    return status;
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
    int status = 0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        int64_t n = smaller(BLOCK, count - at);
        for (int64_t k = 0; k < inputs; k++) {
            float weight = weights[k];
            status |= load(values, &in[k], at, n);
            if (k == 0)
                for (int64_t i = 0; i < n; i++) sum[i] = values[i] * weight;
            else
                for (int64_t i = 0; i < n; i++) sum[i] += values[i] * weight;
        }
        status |= store(out, at, sum, n);
    }
    return status;
}

/* Of each cell the sums of aa, bb and ab, as sums[cell][3]. */
FAST int evomerge_inner_products(const elements *a, const elements *b, int64_t count, double *sums) {
    float x[BLOCK] __attribute__((aligned(64))), y[BLOCK] __attribute__((aligned(64)));
    int status = 0;
    for (int64_t cell = 0; cell < count; cell += CELL, sums += 3) {
        float aa[LANES] = {0}, bb[LANES] = {0}, ab[LANES] = {0};
        int64_t end = smaller(cell + CELL, count);
        for (int64_t at = cell; at < end; at += BLOCK) {
            int64_t n = smaller(BLOCK, end - at);
            status |= load(x, a, at, n) | load(y, b, at, n);
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
    return status;
}

/* Task vectors, thinned out, weighed, with elected signs or not, added to the base: see merge_task_vectors. */
FAST int evomerge_task_vectors(const elements *in, const elements *base_elements, int64_t inputs, const keep *keeps,
                               const float *factors, const float *shares, float scale, float divide, int64_t elect,
                               int64_t normalize, int64_t start, int64_t count, const elements *out) {
    float base[BLOCK] __attribute__((aligned(64))), total[BLOCK] __attribute__((aligned(64)));
    float sum[BLOCK] __attribute__((aligned(64))), divisor[BLOCK] __attribute__((aligned(64)));
    float change[MOST][BLOCK] __attribute__((aligned(64)));
    int status = 0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        int64_t n = smaller(BLOCK, count - at);
        status |= load(base, base_elements, at, n);
        for (int64_t k = 0; k < inputs; k++) {
            float *restrict values = change[k];
            float factor = factors[k];
            status |= load_delta(values, &in[k], base, at, n);
            thin(values, &keeps[k], start + at, at, n);
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
        status |= store(out, at, total, n);
    }
    return status;
}

/* |in - base| as float32. */
FAST int evomerge_magnitudes(const elements *in, const elements *base_elements, int64_t count, float *out) {
    float base[BLOCK] __attribute__((aligned(64))), values[BLOCK] __attribute__((aligned(64)));
    int status = 0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        int64_t n = smaller(BLOCK, count - at);
        status |= load(base, base_elements, at, n) | load_delta(values, in, base, at, n);
        for (int64_t i = 0; i < n; i++) out[at + i] = fabsf(values[i]);
    }
    return status;
}

/* For each cut: how many magnitudes of its input lie above `high`, and those from `low` to `high` themselves.
 * `inside[cut]` has room for `count` of them. */
FAST int evomerge_scan(const elements *in, const elements *base_elements, int64_t inputs, int64_t cuts,
                       const int64_t *input_of, const float *low, const float *high, int64_t count, int64_t *above,
                       float *const *inside, int64_t *number) {
    float base[BLOCK] __attribute__((aligned(64))), values[BLOCK] __attribute__((aligned(64)));
    int status = 0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        int64_t n = smaller(BLOCK, count - at);
        status |= load(base, base_elements, at, n);
        for (int64_t k = 0; k < inputs; k++) {
            int64_t used = 0;
            for (int64_t c = 0; c < cuts; c++) used |= input_of[c] == k;
            if (!used) continue;
            status |= load_delta(values, &in[k], base, at, n);
            for (int64_t i = 0; i < n; i++) values[i] = fabsf(values[i]);
            int64_t full = (n + 7) / 8 * 8;
            for (int64_t i = n; i < full; i++) values[i] = -1.0f;
            for (int64_t c = 0; c < cuts; c++) {
                if (input_of[c] != k) continue;
                float from = low[c], to = high[c];
                int32_t over = 0;
                for (int64_t i = 0; i < n; i++) over += values[i] > to;
                above[c] += over;
                float *restrict found = inside[c];
                int64_t many = number[c];
                for (int64_t i = 0; i < full; i += 8) {
                    int any = 0;
                    for (int b = 0; b < 8; b++) any |= (values[i + b] >= from) & (values[i + b] <= to);
                    if (any)
                        for (int b = 0; b < 8; b++)
                            if ((values[i + b] >= from) & (values[i + b] <= to)) found[many++] = values[i + b];
                }
                number[c] = many;
            }
        }
    }
    return status;
}

/* Of each cell and input the sums of magnitudes, all and kept, as sums[cell][input][2]. */
FAST int evomerge_thinned_sums(const elements *in, const elements *base_elements, int64_t inputs, const keep *keeps,
                               int64_t start, int64_t count, double *sums) {
    float base[BLOCK] __attribute__((aligned(64))), values[BLOCK] __attribute__((aligned(64)));
    int status = 0;
    float lanes[MOST][2][LANES];
    for (int64_t cell = 0; cell < count; cell += CELL) {
        memset(lanes, 0, sizeof lanes);
        int64_t end = smaller(cell + CELL, count);
        for (int64_t at = cell; at < end; at += BLOCK) {
            int64_t n = smaller(BLOCK, end - at);
            status |= load(base, base_elements, at, n);
            for (int64_t k = 0; k < inputs; k++) {
                status |= load_delta(values, &in[k], base, at, n);
                int64_t full = padded(values, n);
                float all[LANES], kept[LANES];
                memcpy(all, lanes[k][0], sizeof all);
                memcpy(kept, lanes[k][1], sizeof kept);
                for (int64_t i = 0; i < full; i += LANES)
                    for (int l = 0; l < LANES; l++) all[l] += fabsf(values[i + l]);
                thin(values, &keeps[k], start + at, at, n);
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
    return status;
}

/* DELLA's choice for whole rows: see kept_by_rank. `low` and `high` bound the words of elements whose rank decides; all
 * below are kept. Writes a byte, 0 or 1, for each element, and for the piece the sums of magnitudes, all and kept.
 *
 * Ranks come from buckets of the magnitudes' upper bits, which order as the numbers do: where the rank that a word asks
 * for lies outside the element's bucket the answer is known; else the row is counted. */
FAST int evomerge_rank_flags(const elements *in, const elements *base_elements, int64_t rows, int64_t row,
                             const int32_t *words, int64_t low, int64_t high, uint32_t *restrict scratch,
                             uint8_t *restrict flags, double *sums) {
    uint32_t first[BUCKETS + 1]; /* of each bucket: elements in smaller ones */
    float base[BLOCK] __attribute__((aligned(64))), values[BLOCK] __attribute__((aligned(64)));
    const double slope = (double)(row - 1) / (double)(high - low);
    int status = 0;
    sums[0] = sums[1] = 0.0;
    for (int64_t r = 0; r < rows; r++) {
        uint32_t largest = 0;
        for (int64_t at = 0; at < row; at += BLOCK) {
            int64_t n = smaller(BLOCK, row - at);
            float all[LANES] = {0};
            status |= load(base, base_elements, r * row + at, n) | load_delta(values, in, base, r * row + at, n);
            int64_t full = padded(values, n);
            for (int64_t i = 0; i < full; i++) values[i] = fabsf(values[i]);
            for (int64_t i = 0; i < full; i += LANES)
                for (int l = 0; l < LANES; l++) all[l] += values[i + l];
            sums[0] += lanes_sum(all);
            const uint32_t *bits = (const uint32_t *)values;
            for (int64_t i = 0; i < n; i++) {
                scratch[at + i] = bits[i];
                largest = bits[i] > largest ? bits[i] : largest;
            }
        }
        uint32_t top = largest >> 15, floor_ = top >= BUCKETS ? top - BUCKETS + 1 : 0;
        memset(first, 0, sizeof first);
        for (int64_t i = 0; i < row; i++) {
            uint32_t high_bits = scratch[i] >> 15;
            first[(high_bits > floor_ ? high_bits - floor_ : 0) + 1]++;
        }
        for (int b = 1; b <= BUCKETS; b++) first[b] += first[b - 1];
        const int32_t *draw = words + r * row;
        uint8_t *flag = flags + r * row;
        for (int64_t i = 0; i < row; i++) {
            int64_t word = draw[i];
            if (word < low || word >= high) {
                flag[i] = word < low;
                continue;
            }
            int64_t need = (int64_t)((double)(word - low) * slope) + 1, strict = word & 1;
            uint32_t own = scratch[i], high_bits = own >> 15;
            uint32_t bucket = high_bits > floor_ ? high_bits - floor_ : 0;
            if ((int64_t)first[bucket] >= need) {
                flag[i] = 1;
            } else if ((int64_t)first[bucket + 1] <= need) {
                flag[i] = 0;
            } else {
                int64_t below = 0, equal = 0;
                for (int64_t j = 0; j < row; j++) {
                    below += scratch[j] < own;
                    equal += scratch[j] == own;
                }
                flag[i] = strict ? below >= need : below + equal > need;
            }
        }
        double kept = 0.0;
        for (int64_t i = 0; i < row; i += 256) {
            float part = 0.0f;
            int64_t end = smaller(i + 256, row);
            for (int64_t j = i; j < end; j++) {
                uint32_t bits = scratch[j] & (0u - (uint32_t)flag[j]);
                float value;
                memcpy(&value, &bits, sizeof value);
                part += value;
            }
            kept += part;
        }
        sums[1] += kept;
    }
    return status;
}
