#include "../common.cuh"
#include "../training.cuh"
#include "../attention_mask.cuh"
#include "../attention_cap.cuh"
#include "../attention_fragments.cuh"
// attention_rows k2: k1 with products on tensor cores: factors in tf32, sums in f32.
//
// Parallel over: a block has 64 queries of one head, a warp 16 of them; tiles of 64 keys pass through shared
//   memory. Scores stay in registers between the two products. Blocks with the most keys start first.
// Operands as in k1.
// Shared: 64 rows of queries, and 64 of keys, then values.
// Limits: AQLM_HEAD at most 256.

#define KEYS 64
#define KEY_OCTETS (KEYS / 8)

extern "C" __global__ void __launch_bounds__(FRAGMENT_THREADS)
attention_rows(const float* q, const float* k, const float* v, float* out, float* stats, int sequences, int tokens, int heads, int kv_heads, int window, int scale_bits, int cap_bits) {
    SHARED_MEMORY;
    float* queries = reinterpret_cast<float*>(shared);      // [OWN_ROWS, FRAGMENT_STRIDE]
    float* keys = queries + OWN_ROWS * FRAGMENT_STRIDE;     // [KEYS, FRAGMENT_STRIDE], then values
    const int tiles = (tokens + OWN_ROWS - 1) / OWN_ROWS, pairs = sequences * heads;
    const int tile = tiles - 1 - static_cast<int>(blockIdx.x) / pairs, pair = static_cast<int>(blockIdx.x) % pairs;
    const int sequence = pair / heads, head = pair % heads, kv_head = head / (heads / kv_heads);
    const size_t q_stride = static_cast<size_t>(heads) * AQLM_HEAD, kv_stride = static_cast<size_t>(kv_heads) * AQLM_HEAD;
    const size_t first_row = static_cast<size_t>(sequence) * tokens;
    const size_t own_q = first_row * q_stride + head * AQLM_HEAD, own_kv = first_row * kv_stride + kv_head * AQLM_HEAD;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, first = tile * OWN_ROWS;
    const int low_row = first + static_cast<int>(threadIdx.x) / 32 * 16 + g;
    const float cap = __int_as_float(cap_bits);
    load_fragments(queries, q + own_q, first, OWN_ROWS, tokens, q_stride, __int_as_float(scale_bits));
    float sum[2] = {0.0f, 0.0f}, most[2] = {minus_infinity(), minus_infinity()}, result[OCTETS][4];
    clear(result);
    for (int at = first_seen(first, window) / KEYS; at <= tile; ++at) {
        __syncthreads();
        load_fragments(keys, k + own_kv, at * KEYS, KEYS, tokens, kv_stride, 1.0f);
        __syncthreads();
        float s[KEY_OCTETS][4];
        multiply_rows(s, queries, keys);
        const bool all = attend_all(low_row, low_row + 8, at * KEYS + KEYS - 1, tokens, window);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float now = most[half];
#pragma unroll
            for (int n = 0; n < KEY_OCTETS; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& score = s[n][2 * half + i];
                    if (!all && !attends(low_row + 8 * half, at * KEYS + 8 * n + 2 * t + i, tokens, window)) score = minus_infinity();
                    else score = capped(score, cap);
                    now = fmaxf(now, score);
                }
            now = fmaxf(now, __shfl_xor_sync(WARP_MASK, now, 1));
            now = fmaxf(now, __shfl_xor_sync(WARP_MASK, now, 2));
            // A query that attends to nothing so far keeps a sum of zero.
            const float shrink = most[half] == minus_infinity() ? 0.0f : exponential(most[half] - now);
            float added = 0.0f;
#pragma unroll
            for (int n = 0; n < KEY_OCTETS; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& score = s[n][2 * half + i];
                    score = score == minus_infinity() ? 0.0f : exponential(score - now);
                    added += score;
                }
            added += __shfl_xor_sync(WARP_MASK, added, 1);
            added += __shfl_xor_sync(WARP_MASK, added, 2);
            sum[half] = sum[half] * shrink + added;
            most[half] = now;
#pragma unroll
            for (int c = 0; c < OCTETS; ++c) result[c][2 * half] *= shrink, result[c][2 * half + 1] *= shrink;
        }
        __syncthreads();
        load_fragments(keys, v + own_kv, at * KEYS, KEYS, tokens, kv_stride, 1.0f);
        __syncthreads();
        add_rows(result, s, keys);
    }
    if (t == 0) {
        for (int half = 0; half < 2; ++half) {
            const int row = low_row + 8 * half;
            if (row < tokens) stats[(first_row + row) * heads + head] = most[half] + logf(sum[half]);
        }
    }
    store_fragments(out + own_q, result, first, tokens, q_stride, 1.0f / sum[0], 1.0f / sum[1]);
}
