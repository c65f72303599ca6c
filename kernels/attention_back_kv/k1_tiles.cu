#include "../common.cuh"
#include "../training.cuh"
#include "../attention_mask.cuh"
#include "../attention_cap.cuh"
#include "../attention_tiles.cuh"
// attention_back_kv k1: the gradients of attention_rows with respect to keys and values.
//
// Parallel over: a block has TILE keys of one key head and passes over the query heads that read it and their
//   tiles of queries, in order, so its sums need no atomics. Blocks with the most queries start first.
// Operands as in attention_back_q; grad_k, grad_v [rows, kv_heads x head] f32. grad_v = P^T grad; grad_k = (P
//   (dP - delta))^T Q scale, with a cap times its slope.
// Arithmetic: f32.
// Shared: four tiles of rows and one of scores.
// Limits: AQLM_HEAD at most 256.
// Compile-time: AQLM_CAPPED (attention_cap.cuh).

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
attention_back_kv(const float* q, const float* k, const float* v, const float* grad, const float* stats, const float* delta, float* grad_k, float* grad_v, int sequences, int tokens, int heads, int kv_heads, int window, int scale_bits, int cap_bits) {
    SHARED_MEMORY;
    float* keys = reinterpret_cast<float*>(shared);  // [TILE, STRIDE]
    float* values = keys + TILE * STRIDE;            // [TILE, STRIDE]
    float* queries = values + TILE * STRIDE;         // [TILE, STRIDE]
    float* grads = queries + TILE * STRIDE;          // [TILE, STRIDE]
    float* scores = grads + TILE * STRIDE;           // [TILE, SCORE_STRIDE]: [query, key]
    const int tiles = (tokens + TILE - 1) / TILE, pairs = sequences * kv_heads, group = heads / kv_heads;
    const int tile = static_cast<int>(blockIdx.x) / pairs, pair = static_cast<int>(blockIdx.x) % pairs;
    const int sequence = pair / kv_heads, kv_head = pair % kv_heads;
    const size_t q_stride = static_cast<size_t>(heads) * AQLM_HEAD, kv_stride = static_cast<size_t>(kv_heads) * AQLM_HEAD;
    const size_t first_row = static_cast<size_t>(sequence) * tokens;
    const size_t own_kv = first_row * kv_stride + kv_head * AQLM_HEAD;
    const float scale = __int_as_float(scale_bits), cap = __int_as_float(cap_bits);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, first = tile * TILE;
    // The last query that attends to any of these keys is a window after the last of them.
    const int reach = first + TILE - 1 + window - 1;
    const int last = window == 0 || reach / TILE >= tiles ? tiles - 1 : reach / TILE;
    load_tile(keys, k + own_kv, first, tokens, kv_stride, 1.0f);
    load_tile(values, v + own_kv, first, tokens, kv_stride, 1.0f);
    float of_k[MICRO][COLUMNS], of_v[MICRO][COLUMNS];
    clear(of_k);
    clear(of_v);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const size_t own_q = first_row * q_stride + head * AQLM_HEAD;
        for (int at = tile; at <= last; ++at) {
            __syncthreads();
            load_tile(queries, q + own_q, at * TILE, tokens, q_stride, scale);
            load_tile(grads, grad + own_q, at * TILE, tokens, q_stride, 1.0f);
            __syncthreads();
            float p[MICRO][MICRO], s[MICRO][MICRO], slope[MICRO][MICRO];
            inner_products(p, queries, keys);
#pragma unroll
            for (int i = 0; i < MICRO; ++i) {
                const int row = at * TILE + y * MICRO + i;
                const float stat = row < tokens ? stats[(first_row + row) * heads + head] : 0.0f;
#pragma unroll
                for (int j = 0; j < MICRO; ++j) {
                    const float score = capped(p[i][j], cap);
                    slope[i][j] = cap_slope(score, cap);
                    p[i][j] = attends(row, first + x + 16 * j, tokens, window) ? expf(score - stat) : 0.0f;
                }
            }
            store_scores(scores, p);
#pragma unroll
            for (int i = 0; i < MICRO; ++i)
#pragma unroll
                for (int j = 0; j < MICRO; ++j) p[i][j] *= slope[i][j];
            __syncthreads();
            add_product<true>(of_v, scores, grads);
            inner_products(s, grads, values);
#pragma unroll
            for (int i = 0; i < MICRO; ++i) {
                const int row = at * TILE + y * MICRO + i;
                const float mean = row < tokens ? delta[(first_row + row) * heads + head] : 0.0f;
#pragma unroll
                for (int j = 0; j < MICRO; ++j) s[i][j] = sees_one(row, window) ? 0.0f : p[i][j] * (s[i][j] - mean);
            }
            __syncthreads();
            store_scores(scores, s);
            __syncthreads();
            // The queries in shared memory carry the scale.
            add_product<true>(of_k, scores, queries);
        }
    }
    store_rows(grad_k + own_kv, of_k, first, tokens, kv_stride);
    store_rows(grad_v + own_kv, of_v, first, tokens, kv_stride);
}
