#include "../common.cuh"
#include "../training.cuh"
#include "../attention_mask.cuh"
#include "../attention_cap.cuh"
#include "../attention_tiles.cuh"
// attention_rows k1: causal attention within each sequence, without a matrix of tokens x tokens in memory.
//
// Parallel over: a block has TILE queries of one head and passes over the tiles of keys that they attend to,
//   with a running maximum and sum. Blocks with the most keys start first.
// q, out [rows, heads x head] f32; k, v [rows, kv_heads x head] f32; stats [rows, heads] f32: for each query
//   the logarithm of the sum of its exponentials, for the backward pass. Rows hold sequences of `tokens`
//   rows. Query head h reads key head h / (heads / kv_heads).
// Arithmetic: f32.
// Shared: two tiles of rows and one of scores.
// Limits: AQLM_HEAD at most 256.
// Compile-time: AQLM_CAPPED (attention_cap.cuh).

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
attention_rows(const float* q, const float* k, const float* v, float* out, float* stats, int sequences, int tokens, int heads, int kv_heads, int window, int scale_bits, int cap_bits) {
    SHARED_MEMORY;
    float* queries = reinterpret_cast<float*>(shared);  // [TILE, STRIDE]
    float* keys = queries + TILE * STRIDE;              // [TILE, STRIDE], then values
    float* scores = keys + TILE * STRIDE;               // [TILE, SCORE_STRIDE]
    const int tiles = (tokens + TILE - 1) / TILE, pairs = sequences * heads;
    const int tile = tiles - 1 - static_cast<int>(blockIdx.x) / pairs, pair = static_cast<int>(blockIdx.x) % pairs;
    const int sequence = pair / heads, head = pair % heads, kv_head = head / (heads / kv_heads);
    const size_t q_stride = static_cast<size_t>(heads) * AQLM_HEAD, kv_stride = static_cast<size_t>(kv_heads) * AQLM_HEAD;
    const size_t first_row = static_cast<size_t>(sequence) * tokens;
    const float* own_q = q + first_row * q_stride + head * AQLM_HEAD;
    const float* own_k = k + first_row * kv_stride + kv_head * AQLM_HEAD;
    const float* own_v = v + first_row * kv_stride + kv_head * AQLM_HEAD;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, first = tile * TILE;
    const float cap = __int_as_float(cap_bits);
    load_tile(queries, own_q, first, tokens, q_stride, __int_as_float(scale_bits));
    float sum[MICRO], most[MICRO], result[MICRO][COLUMNS];
    clear(result);
#pragma unroll
    for (int i = 0; i < MICRO; ++i) sum[i] = 0.0f, most[i] = minus_infinity();
    for (int at = first_seen(first, window) / TILE; at <= tile; ++at) {
        __syncthreads();
        load_tile(keys, own_k, at * TILE, tokens, kv_stride, 1.0f);
        __syncthreads();
        float s[MICRO][MICRO];
        inner_products(s, queries, keys);
#pragma unroll
        for (int i = 0; i < MICRO; ++i) {
            float now = most[i];
#pragma unroll
            for (int j = 0; j < MICRO; ++j) {
                s[i][j] = attends(first + y * MICRO + i, at * TILE + x + 16 * j, tokens, window) ? capped(s[i][j], cap) : minus_infinity();
                now = fmaxf(now, s[i][j]);
            }
            for (int step = 8; step > 0; step >>= 1) now = fmaxf(now, __shfl_xor_sync(WARP_MASK, now, step));
            // A query that attends to nothing so far keeps a sum of zero.
            const float shrink = most[i] == minus_infinity() ? 0.0f : expf(most[i] - now);
            float added = 0.0f;
#pragma unroll
            for (int j = 0; j < MICRO; ++j) {
                s[i][j] = s[i][j] == minus_infinity() ? 0.0f : expf(s[i][j] - now);
                added += s[i][j];
            }
            for (int step = 8; step > 0; step >>= 1) added += __shfl_xor_sync(WARP_MASK, added, step);
            sum[i] = sum[i] * shrink + added;
            most[i] = now;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) result[i][c] *= shrink;
        }
        store_scores(scores, s);
        __syncthreads();
        load_tile(keys, own_v, at * TILE, tokens, kv_stride, 1.0f);
        __syncthreads();
        add_product<false>(result, scores, keys);
    }
#pragma unroll
    for (int i = 0; i < MICRO; ++i) {
        const int row = first + y * MICRO + i;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) result[i][c] /= sum[i];
        if (x == 0 && row < tokens) stats[(first_row + row) * heads + head] = most[i] + logf(sum[i]);
    }
    store_rows(out + first_row * q_stride + head * AQLM_HEAD, result, first, tokens, q_stride);
}
