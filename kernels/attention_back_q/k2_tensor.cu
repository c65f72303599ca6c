#include "../common.cuh"
#include "../training.cuh"
#include "../attention_mask.cuh"
#include "../attention_cap.cuh"
#include "../attention_fragments.cuh"
// attention_back_q k2: k1 with products on tensor cores: factors in tf32, sums in f32.
//
// Parallel over: a block has 64 queries of one head, a warp 16 of them; tiles of 32 keys and values pass
//   through shared memory, in order.
// Operands as in k1; stats from attention_rows k2, whose scores these are.
// Shared: 64 rows of queries and of gradients, 32 of keys and of values.
// Limits: AQLM_HEAD at most 256.

#define KEYS 32
#define KEY_OCTETS (KEYS / 8)

extern "C" __global__ void __launch_bounds__(FRAGMENT_THREADS)
attention_back_q(const float* q, const float* k, const float* v, const float* grad, const float* stats, const float* delta, float* grad_q, int sequences, int tokens, int heads, int kv_heads, int window, int scale_bits, int cap_bits) {
    SHARED_MEMORY;
    float* queries = reinterpret_cast<float*>(shared);     // [OWN_ROWS, FRAGMENT_STRIDE]
    float* grads = queries + OWN_ROWS * FRAGMENT_STRIDE;   // [OWN_ROWS, FRAGMENT_STRIDE]
    float* keys = grads + OWN_ROWS * FRAGMENT_STRIDE;      // [KEYS, FRAGMENT_STRIDE]
    float* values = keys + KEYS * FRAGMENT_STRIDE;         // [KEYS, FRAGMENT_STRIDE]
    const int tiles = (tokens + OWN_ROWS - 1) / OWN_ROWS, pairs = sequences * heads;
    const int tile = tiles - 1 - static_cast<int>(blockIdx.x) / pairs, pair = static_cast<int>(blockIdx.x) % pairs;
    const int sequence = pair / heads, head = pair % heads, kv_head = head / (heads / kv_heads);
    const size_t q_stride = static_cast<size_t>(heads) * AQLM_HEAD, kv_stride = static_cast<size_t>(kv_heads) * AQLM_HEAD;
    const size_t first_row = static_cast<size_t>(sequence) * tokens;
    const size_t own_q = first_row * q_stride + head * AQLM_HEAD, own_kv = first_row * kv_stride + kv_head * AQLM_HEAD;
    const float scale = __int_as_float(scale_bits), cap = __int_as_float(cap_bits);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, first = tile * OWN_ROWS;
    const int low_row = first + static_cast<int>(threadIdx.x) / 32 * 16 + g;
    load_fragments(queries, q + own_q, first, OWN_ROWS, tokens, q_stride, scale);
    load_fragments(grads, grad + own_q, first, OWN_ROWS, tokens, q_stride, 1.0f);
    float result[OCTETS][4], stat[2], mean[2];
    clear(result);
    for (int half = 0; half < 2; ++half) {
        const int row = low_row + 8 * half;
        stat[half] = row < tokens ? stats[(first_row + row) * heads + head] : 0.0f;
        mean[half] = row < tokens ? delta[(first_row + row) * heads + head] : 0.0f;
    }
    const int end = first + OWN_ROWS < tokens ? first + OWN_ROWS : tokens;
    for (int at = first_seen(first, window) / KEYS * KEYS; at < end; at += KEYS) {
        __syncthreads();
        load_fragments(keys, k + own_kv, at, KEYS, tokens, kv_stride, 1.0f);
        load_fragments(values, v + own_kv, at, KEYS, tokens, kv_stride, 1.0f);
        __syncthreads();
        float s[KEY_OCTETS][4], of_p[KEY_OCTETS][4];
        multiply_rows(s, queries, keys);
        multiply_rows(of_p, grads, values);
        const bool all = attend_all(low_row, low_row + 8, at + KEYS - 1, tokens, window);
#pragma unroll
        for (int n = 0; n < KEY_OCTETS; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int query = low_row + i / 2 * 8;
                const bool moves = all || attends(query, at + 8 * n + 2 * t + i % 2, tokens, window) && !sees_one(query, window);
                const float score = capped(s[n][i], cap);
                s[n][i] = moves ? exponential(score - stat[i / 2]) * (of_p[n][i] - mean[i / 2]) * cap_slope(score, cap) : 0.0f;
            }
        add_rows(result, s, keys);
    }
    store_fragments(grad_q + own_q, result, first, tokens, q_stride, scale, scale);
}
