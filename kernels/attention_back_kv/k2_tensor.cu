#include "../common.cuh"
#include "../training.cuh"
#include "../attention_mask.cuh"
#include "../attention_cap.cuh"
#include "../attention_fragments.cuh"
// attention_back_kv k2: k1 with products on tensor cores: factors in tf32, sums in f32.
//
// Parallel over: a block has 64 keys of one key head, a warp 16 of them; tiles of 32 queries and gradients of
//   each query head that reads it pass through shared memory, in order. Blocks with the most queries start
//   first.
// Operands as in k1; stats from attention_rows k2, whose scores these are.
// Shared: 64 rows of keys and of values, 32 of queries and of gradients.
// Limits: AQLM_HEAD at most 256.

#define QUERIES 32
#define QUERY_OCTETS (QUERIES / 8)

extern "C" __global__ void __launch_bounds__(FRAGMENT_THREADS)
attention_back_kv(const float* q, const float* k, const float* v, const float* grad, const float* stats, const float* delta, float* grad_k, float* grad_v, int sequences, int tokens, int heads, int kv_heads, int window, int scale_bits, int cap_bits) {
    SHARED_MEMORY;
    float* keys = reinterpret_cast<float*>(shared);        // [OWN_ROWS, FRAGMENT_STRIDE]
    float* values = keys + OWN_ROWS * FRAGMENT_STRIDE;     // [OWN_ROWS, FRAGMENT_STRIDE]
    float* queries = values + OWN_ROWS * FRAGMENT_STRIDE;  // [QUERIES, FRAGMENT_STRIDE]
    float* grads = queries + QUERIES * FRAGMENT_STRIDE;    // [QUERIES, FRAGMENT_STRIDE]
    float* of_query = grads + QUERIES * FRAGMENT_STRIDE;   // [2, QUERIES]: stats, delta
    const int tiles = (tokens + OWN_ROWS - 1) / OWN_ROWS, pairs = sequences * kv_heads, group = heads / kv_heads;
    const int tile = static_cast<int>(blockIdx.x) / pairs, pair = static_cast<int>(blockIdx.x) % pairs;
    const int sequence = pair / kv_heads, kv_head = pair % kv_heads;
    const size_t q_stride = static_cast<size_t>(heads) * AQLM_HEAD, kv_stride = static_cast<size_t>(kv_heads) * AQLM_HEAD;
    const size_t first_row = static_cast<size_t>(sequence) * tokens;
    const size_t own_kv = first_row * kv_stride + kv_head * AQLM_HEAD;
    const float scale = __int_as_float(scale_bits), cap = __int_as_float(cap_bits);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, first = tile * OWN_ROWS;
    const int low_key = first + static_cast<int>(threadIdx.x) / 32 * 16 + g;
    // The last query that attends to any of these keys is a window after the last of them.
    const int reach = first + OWN_ROWS - 1 + window;
    const int end = window == 0 || tile + 1 == tiles || reach > tokens ? tokens : reach;
    load_fragments(keys, k + own_kv, first, OWN_ROWS, tokens, kv_stride, 1.0f);
    load_fragments(values, v + own_kv, first, OWN_ROWS, tokens, kv_stride, 1.0f);
    float of_k[OCTETS][4], of_v[OCTETS][4];
    clear(of_k);
    clear(of_v);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const size_t own_q = first_row * q_stride + head * AQLM_HEAD;
        for (int at = first; at < end; at += QUERIES) {
            __syncthreads();
            load_fragments(queries, q + own_q, at, QUERIES, tokens, q_stride, scale);
            load_fragments(grads, grad + own_q, at, QUERIES, tokens, q_stride, 1.0f);
            if (threadIdx.x < 2 * QUERIES) {
                const int row = at + static_cast<int>(threadIdx.x) % QUERIES;
                const float* from = threadIdx.x < QUERIES ? stats : delta;
                of_query[threadIdx.x] = row < tokens ? from[(first_row + row) * heads + head] : 0.0f;
            }
            __syncthreads();
            float p[QUERY_OCTETS][4], s[QUERY_OCTETS][4], slope[QUERY_OCTETS][4];
            multiply_rows(p, keys, queries);
            const bool all = attend_all(at, at + QUERIES - 1, low_key + 8, tokens, window);
#pragma unroll
            for (int n = 0; n < QUERY_OCTETS; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int column = 8 * n + 2 * t + i % 2;
                    const bool seen = all || attends(at + column, low_key + i / 2 * 8, tokens, window);
                    const float score = capped(p[n][i], cap);
                    slope[n][i] = cap_slope(score, cap);
                    p[n][i] = seen ? exponential(score - of_query[column]) : 0.0f;
                }
            add_rows(of_v, p, grads);
            multiply_rows(s, values, grads);
#pragma unroll
            for (int n = 0; n < QUERY_OCTETS; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int column = 8 * n + 2 * t + i % 2;
                    s[n][i] = !all && sees_one(at + column, window) ? 0.0f : p[n][i] * (s[n][i] - of_query[QUERIES + column]) * slope[n][i];
                }
            // The queries in shared memory carry the scale.
            add_rows(of_k, s, queries);
        }
    }
    store_fragments(grad_k + own_kv, of_k, first, tokens, kv_stride, 1.0f, 1.0f);
    store_fragments(grad_v + own_kv, of_v, first, tokens, kv_stride, 1.0f, 1.0f);
}
