#include "../common.cuh"
#include "../rotated.cuh"
// attention_step k1: one new token attends to the cache. The kernel also rotates the token's query and key,
// and writes its key and value to the cache.
//
// Parallel over: a block a (kv head, part of its query heads, part of the context). The AQLM_SPLITS blocks of
//   a cluster share out the context and send their sums to the first of them (distributed shared memory),
//   which merges them in rank order. Inside a block, AQLM_LANES lanes hold a key, 8 elements each, so a warp
//   reads 32 / AQLM_LANES keys with one load of 16 bytes a lane. AHEAD keys and values a lane are in flight.
// Why this division: a context of 512 is 2 x 512 x 256 B = 262 KB a head of 128, 8.4 MB for 32 heads: 3.5 us
//   at the rate of a copy. That rate needs all multiprocessors and all loads in flight at once. Keys and
//   values of earlier positions are fetched before the previous kernel has ended, because earlier replays of
//   the graph wrote them. All query heads of a group use a key while it is in registers.
// keys, values [kv_heads, capacity, padded] f16; cosines, sines [positions, head / 2] f32; biases f32 (with
//   AQLM_BIAS); state {position, ...};
// q [heads, head], k, v [kv_heads, head] f16, before rotation; out [heads, head] f16.
// H100, 32 heads of 128 over 512 positions: 6.1 us (4 blocks a cluster), 7.8 with 8 (docs/decoding.md breaks
//   down the time).
// Arithmetic: f32; the newest key and value are rounded to f16 as in the cache. Splits depend on the position
//   alone, so the same position gives the same bytes.
// Limits: head at most 256; AQLM_SPLITS above 1 needs sm_90.
// Compile-time: AQLM_HEAD, AQLM_LANES (a power of two, at least head / 8), AQLM_QUERIES (query heads of a
//   block), AQLM_SPLITS, AQLM_BIAS; AQLM_ROTATED where only so many numbers of a head are rotated, 0 for none
//   (the tables are then [positions, AQLM_ROTATED / 2]); AQLM_SCORES for a factor of scores of its own and,
//   above 0, a cap: cap tanh(score / cap).

#define WARPS 8
// Element d's place in the tables of angles; those are not read where nothing is rotated.
#if TURNED > 0
#define PLACE(d) ((d) % HALF)
#else
#define PLACE(d) 0
#endif
#define PADDED ((AQLM_HEAD + 7) / 8 * 8)
#define VECTORS (PADDED / 8)
#define GROUPS (32 / AQLM_LANES)
#define AHEAD (AQLM_QUERIES <= 2 ? 4 : 2)
#define NOTHING -1e30f
#define TOTALS 2  // a query head's maximum and its total
#define RECORD (PADDED + TOTALS)  // sums, then maximum and total

// The cosine or sine of element d's angle.
#ifdef AQLM_ROTATED
#define ANGLE(d, of) ((d) == usual ? usual_##of : (d) < TURNED ? of##_row[PLACE(d)] : 0.0f)
#else
#define ANGLE(d, of) ((d) == usual ? usual_##of : of##_row[PLACE(d)])
#endif

// The running softmax of one query head over the keys seen so far, for this lane's eight elements.
struct Running {
    float most, total, sum[8];
};

__device__ __forceinline__ void unpack(float (&to)[8], const uint4& from) {
    to[0] = low_f32(from.x), to[1] = high_f32(from.x), to[2] = low_f32(from.y), to[3] = high_f32(from.y);
    to[4] = low_f32(from.z), to[5] = high_f32(from.z), to[6] = low_f32(from.w), to[7] = high_f32(from.w);
}

#ifdef AQLM_SCORES
#define CAP_PARAMETER , float cap
#define CAP_ARGUMENT , cap
#else
#define CAP_PARAMETER
#define CAP_ARGUMENT
#endif

// Adds N keys and values to the running softmax; those that are not `valid` contribute nothing. All lanes of
// the warp must call this.
template <int N>
__device__ __forceinline__ void take(Running (&running)[AQLM_QUERIES], const float (&query)[AQLM_QUERIES][8], const uint4 (&keys)[N],
                                     const uint4 (&values)[N], const bool (&valid)[N] CAP_PARAMETER) {
    float score[AQLM_QUERIES][N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
        float key[8];
        unpack(key, keys[n]);
#pragma unroll
        for (int h = 0; h < AQLM_QUERIES; ++h) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += query[h][i] * key[i];
#pragma unroll
            for (int step = AQLM_LANES / 2; step > 0; step >>= 1) sum += __shfl_xor_sync(WARP_MASK, sum, step);
#ifdef AQLM_SCORES
            if (cap > 0.0f) sum = cap * tanhf(sum / cap);
#endif
            score[h][n] = valid[n] ? sum : NOTHING;
        }
    }
#pragma unroll
    for (int h = 0; h < AQLM_QUERIES; ++h) {
        float now = running[h].most;
#pragma unroll
        for (int n = 0; n < N; ++n) now = fmaxf(now, score[h][n]);
        const float keep = expf(running[h].most - now);
        running[h].most = now;
        running[h].total *= keep;
#pragma unroll
        for (int i = 0; i < 8; ++i) running[h].sum[i] *= keep;
#pragma unroll
        for (int n = 0; n < N; ++n) {
            score[h][n] = valid[n] ? expf(score[h][n] - now) : 0.0f;
            running[h].total += score[h][n];
        }
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
        float value[8];
        unpack(value, values[n]);
#pragma unroll
        for (int h = 0; h < AQLM_QUERIES; ++h) {
#pragma unroll
            for (int i = 0; i < 8; ++i) running[h].sum[i] += score[h][n] * value[i];
        }
    }
}

// Merges element i of `count` records of one query head; `apart` is the stride between records in floats.
// Returns the sum relative to their common maximum. Sets `most` to that maximum and `total` to the softmax's
// total.
__device__ __forceinline__ float merge(const float* records, int count, int apart, int i, float& most, float& total) {
    most = NOTHING;
    for (int r = 0; r < count; ++r) most = fmaxf(most, records[r * apart + PADDED]);
    float sum = 0.0f;
    total = 0.0f;
    for (int r = 0; r < count; ++r) {
        const float keep = expf(records[r * apart + PADDED] - most);
        sum += keep * records[r * apart + i];
        total += keep * records[r * apart + PADDED + 1];
    }
    return sum;
}

// Element i of a head after adding its bias and rotating it by the angle of its pair.
__device__ __forceinline__ float rotated(const u16* head, const float* bias, float cosine, float sine, int i) {
#ifdef AQLM_ROTATED
    if (i >= TURNED) {
#if AQLM_BIAS
        return f32_of_f16(head[i]) + bias[i];
#else
        return f32_of_f16(head[i]);
#endif
    }
#endif
    const int pair = i < HALF ? i + HALF : i - HALF;
    float a = f32_of_f16(head[i]), b = f32_of_f16(head[pair]);
#if AQLM_BIAS
    a += bias[i];
    b += bias[pair];
#endif
    return a * cosine + (i < HALF ? -b : b) * sine;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32)
attention_step(u16* keys, u16* values, const float* cosines, const float* sines, const float* q_bias, const float* k_bias, const float* v_bias,
               const u32* state, const u16* q, const u16* k, const u16* v, u16* out, int parts, int capacity, int window
#ifdef AQLM_SCORES
               , int scale_bits, int cap_bits
#endif
) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    uint4* newest = reinterpret_cast<uint4*>(shared);                             // key, then value: [2][VECTORS]
    float* queries = reinterpret_cast<float*>(newest + 2 * VECTORS);              // [query head][PADDED]
    float* records = queries + AQLM_QUERIES * PADDED;                             // [warp][query head][RECORD]
#if AQLM_SPLITS > 1
    float* received = records + WARPS * AQLM_QUERIES * RECORD;                    // [rank][query head][RECORD], of the first rank
#endif
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, vector = lane % AQLM_LANES, group = lane / AQLM_LANES;
    const int rank = blockIdx.x, kv_head = blockIdx.y / parts, part = blockIdx.y % parts;
    const bool holds = vector < VECTORS;
    allow_next_kernel();
#if AQLM_SPLITS > 1
    cluster_arrive();  // waited for before the first write to another block, which must have started by then
#endif
    const int position = state[0];
    const int first = window > 0 && position + 1 > window ? position + 1 - window : 0;
    const int share = (position - first + AQLM_SPLITS - 1) / AQLM_SPLITS;
    const int begin = first + rank * share, end = begin + share < position ? begin + share : position;
    u16* own_keys = keys + static_cast<size_t>(kv_head) * capacity * PADDED;
    u16* own_values = values + static_cast<size_t>(kv_head) * capacity * PADDED;
    const uint4 zero = {0, 0, 0, 0};
    uint4 key[AHEAD], value[AHEAD];
    bool valid[AHEAD];
    int next = begin + warp * GROUPS + group;
#pragma unroll
    for (int n = 0; n < AHEAD; ++n) {
        const int j = next + n * WARPS * GROUPS;
        valid[n] = j < end;
        const size_t at = static_cast<size_t>(j) * PADDED + vector * 8;
        key[n] = valid[n] && holds ? load_once(reinterpret_cast<const uint4*>(own_keys + at)) : zero;
        value[n] = valid[n] && holds ? load_once(reinterpret_cast<const uint4*>(own_values + at)) : zero;
    }
    // A thread mostly needs one angle. It is the only one where the number of threads is a multiple of the
    // head's elements.
    const float* cosine_row = cosines + static_cast<size_t>(position) * HALF;
    const float* sine_row = sines + static_cast<size_t>(position) * HALF;
    const int usual = threadIdx.x % PADDED;
    const float usual_cosine = usual < TURNED ? cosine_row[PLACE(usual)] : 0.0f, usual_sine = usual < TURNED ? sine_row[PLACE(usual)] : 0.0f;
    wait_for_previous_kernel();

#ifdef AQLM_SCORES
    const float scale = __int_as_float(scale_bits), cap = __int_as_float(cap_bits);
#else
    const float scale = 1.0f / sqrtf(static_cast<float>(AQLM_HEAD));
#endif
    const int first_head = (kv_head * parts + part) * AQLM_QUERIES;
    for (int i = threadIdx.x; i < AQLM_QUERIES * PADDED; i += blockDim.x) {
        const int head = (first_head + i / PADDED) * AQLM_HEAD, d = i % PADDED;
        if (d < AQLM_HEAD) {
            const float cosine = ANGLE(d, cosine), sine = ANGLE(d, sine);
            queries[i] = rotated(q + head, q_bias + head, cosine, sine, d) * scale;
        } else {
            queries[i] = 0.0f;
        }
    }
    // The last block has the newest position. Only one of the blocks that share a kv head writes it to the
    // cache.
    if (rank == AQLM_SPLITS - 1) {
        u16* to = reinterpret_cast<u16*>(newest);
        const size_t at = static_cast<size_t>(position) * PADDED;
        for (int d = threadIdx.x; d < PADDED; d += blockDim.x) {
            u16 new_key = 0, new_value = 0;
            if (d < AQLM_HEAD) {
                const int head = kv_head * AQLM_HEAD;
                const float cosine = ANGLE(d, cosine), sine = ANGLE(d, sine);
                new_key = f16_of_f32(rotated(k + head, k_bias + head, cosine, sine, d));
                new_value = v[head + d];
#if AQLM_BIAS
                new_value = f16_of_f32(f32_of_f16(new_value) + v_bias[head + d]);
#endif
            }
            to[d] = new_key;
            to[PADDED + d] = new_value;
            if (part == 0) {
                own_keys[at + d] = new_key;
                own_values[at + d] = new_value;
            }
        }
    }
    __syncthreads();

    float query[AQLM_QUERIES][8];
    Running running[AQLM_QUERIES];
#pragma unroll
    for (int h = 0; h < AQLM_QUERIES; ++h) {
        running[h].most = NOTHING;
        running[h].total = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            query[h][i] = holds ? queries[h * PADDED + vector * 8 + i] : 0.0f;
            running[h].sum[i] = 0.0f;
        }
    }
    // The bound is the warp's, not the lane's, because all lanes take part in the shuffles.
    for (int base = begin + warp * GROUPS; base < end; base += AHEAD * WARPS * GROUPS) {
        uint4 now_key[AHEAD], now_value[AHEAD];
        bool now_valid[AHEAD];
        next += AHEAD * WARPS * GROUPS;
#pragma unroll
        for (int n = 0; n < AHEAD; ++n) {
            now_key[n] = key[n];
            now_value[n] = value[n];
            now_valid[n] = valid[n];
            const int j = next + n * WARPS * GROUPS;
            valid[n] = j < end;
            const size_t at = static_cast<size_t>(j) * PADDED + vector * 8;
            if (valid[n] && holds) {
                key[n] = load_once(reinterpret_cast<const uint4*>(own_keys + at));
                value[n] = load_once(reinterpret_cast<const uint4*>(own_values + at));
            }
        }
        take<AHEAD>(running, query, now_key, now_value, now_valid CAP_ARGUMENT);
    }
    if (rank == AQLM_SPLITS - 1 && warp == 0) {
        const uint4 new_key[1] = {holds ? newest[vector] : zero}, new_value[1] = {holds ? newest[VECTORS + vector] : zero};
        const bool counts[1] = {group == 0};
        take<1>(running, query, new_key, new_value, counts CAP_ARGUMENT);
    }

    // Reduces over the groups of a warp; the first group writes the warp's record.
#pragma unroll
    for (int h = 0; h < AQLM_QUERIES; ++h) {
        Running& mine = running[h];
#pragma unroll
        for (int step = AQLM_LANES; step < 32; step *= 2) {
            const float other = __shfl_xor_sync(WARP_MASK, mine.most, step), now = fmaxf(mine.most, other);
            const float keep = expf(mine.most - now), gain = expf(other - now);
            mine.most = now;
            mine.total = mine.total * keep + __shfl_xor_sync(WARP_MASK, mine.total, step) * gain;
#pragma unroll
            for (int i = 0; i < 8; ++i) mine.sum[i] = mine.sum[i] * keep + __shfl_xor_sync(WARP_MASK, mine.sum[i], step) * gain;
        }
        float* record = records + (warp * AQLM_QUERIES + h) * RECORD;
        if (group == 0 && holds) {
#pragma unroll
            for (int i = 0; i < 8; ++i) record[vector * 8 + i] = mine.sum[i];
            if (vector == 0) {
                record[PADDED] = mine.most;
                record[PADDED + 1] = mine.total;
            }
        }
    }
    __syncthreads();
#if AQLM_SPLITS > 1
    cluster_wait();
#endif
    for (int i = threadIdx.x; i < AQLM_QUERIES * PADDED; i += blockDim.x) {
        const int h = i / PADDED, d = i % PADDED;
        float most, total;
        const float sum = merge(records + h * RECORD, WARPS, AQLM_QUERIES * RECORD, d, most, total);
#if AQLM_SPLITS > 1
        float* to = received + (rank * AQLM_QUERIES + h) * RECORD;
        cluster_write(to + d, 0, sum);
        if (d == 0) {
            cluster_write(to + PADDED, 0, most);
            cluster_write(to + PADDED + 1, 0, total);
        }
#else
        if (d < AQLM_HEAD) out[(first_head + h) * AQLM_HEAD + d] = f16_of_f32(sum / total);
#endif
    }
#if AQLM_SPLITS > 1
    cluster_arrive();
    cluster_wait();
    if (rank > 0) return;
    for (int i = threadIdx.x; i < AQLM_QUERIES * PADDED; i += blockDim.x) {
        const int h = i / PADDED, d = i % PADDED;
        float most, total;
        const float sum = merge(received + h * RECORD, AQLM_SPLITS, AQLM_QUERIES * RECORD, d, most, total);
        if (d < AQLM_HEAD) out[(first_head + h) * AQLM_HEAD + d] = f16_of_f32(sum / total);
    }
#endif
}
