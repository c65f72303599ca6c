#include "../common.cuh"
#include "../training.cuh"
#include "../attention_mask.cuh"
#include "../attention_cap.cuh"
#include "../attention_tiles.cuh"
// attention_back_q k1: the gradient of attention_rows with respect to the queries.
//
// Parallel over: as attention_rows: a block has TILE queries of one head and passes over their keys in order,
//   so its sums need no atomics. Probabilities P are computed anew from `stats`.
// q, grad, grad_q [rows, heads x head] f32 (grad: of the result); k, v [rows, kv_heads x head] f32; stats,
//   delta [rows, heads] f32 from attention_rows and attention_delta. With dP = grad V^T: grad_q = P (dP -
//   delta) K scale, with a cap times its slope.
// Arithmetic: f32.
// Shared: three tiles of rows and one of scores.
// Limits: AQLM_HEAD at most 256.
// Compile-time: AQLM_CAPPED (attention_cap.cuh).

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
attention_back_q(const float* q, const float* k, const float* v, const float* grad, const float* stats, const float* delta, float* grad_q, int sequences, int tokens, int heads, int kv_heads, int window, int scale_bits, int cap_bits) {
    SHARED_MEMORY;
    float* queries = reinterpret_cast<float*>(shared);  // [TILE, STRIDE]
    float* grads = queries + TILE * STRIDE;             // [TILE, STRIDE]
    float* keys = grads + TILE * STRIDE;                // [TILE, STRIDE], first values
    float* scores = keys + TILE * STRIDE;               // [TILE, SCORE_STRIDE]
    const int tiles = (tokens + TILE - 1) / TILE, pairs = sequences * heads;
    const int tile = tiles - 1 - static_cast<int>(blockIdx.x) / pairs, pair = static_cast<int>(blockIdx.x) % pairs;
    const int sequence = pair / heads, head = pair % heads, kv_head = head / (heads / kv_heads);
    const size_t q_stride = static_cast<size_t>(heads) * AQLM_HEAD, kv_stride = static_cast<size_t>(kv_heads) * AQLM_HEAD;
    const size_t first_row = static_cast<size_t>(sequence) * tokens;
    const size_t own_q = first_row * q_stride + head * AQLM_HEAD, own_kv = first_row * kv_stride + kv_head * AQLM_HEAD;
    const float scale = __int_as_float(scale_bits), cap = __int_as_float(cap_bits);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, first = tile * TILE;
    load_tile(queries, q + own_q, first, tokens, q_stride, scale);
    load_tile(grads, grad + own_q, first, tokens, q_stride, 1.0f);
    float result[MICRO][COLUMNS], stat[MICRO], mean[MICRO];
    clear(result);
#pragma unroll
    for (int i = 0; i < MICRO; ++i) {
        const int row = first + y * MICRO + i;
        stat[i] = row < tokens ? stats[(first_row + row) * heads + head] : 0.0f;
        mean[i] = row < tokens ? delta[(first_row + row) * heads + head] : 0.0f;
    }
    for (int at = first_seen(first, window) / TILE; at <= tile; ++at) {
        __syncthreads();
        load_tile(keys, v + own_kv, at * TILE, tokens, kv_stride, 1.0f);
        __syncthreads();
        float of_p[MICRO][MICRO], s[MICRO][MICRO];
        inner_products(of_p, grads, keys);
        __syncthreads();
        load_tile(keys, k + own_kv, at * TILE, tokens, kv_stride, 1.0f);
        __syncthreads();
        inner_products(s, queries, keys);
#pragma unroll
        for (int i = 0; i < MICRO; ++i)
#pragma unroll
            for (int j = 0; j < MICRO; ++j) {
                const int query = first + y * MICRO + i;
                const bool moves = attends(query, at * TILE + x + 16 * j, tokens, window) && !sees_one(query, window);
                const float score = capped(s[i][j], cap);
                s[i][j] = moves ? expf(score - stat[i]) * (of_p[i][j] - mean[i]) * cap_slope(score, cap) : 0.0f;
            }
        store_scores(scores, s);
        __syncthreads();
        add_product<false>(result, scores, keys);
    }
#pragma unroll
    for (int i = 0; i < MICRO; ++i)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) result[i][c] *= scale;
    store_rows(grad_q + own_q, result, first, tokens, q_stride);
}
