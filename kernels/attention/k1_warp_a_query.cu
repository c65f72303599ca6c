#include "../common.cuh"
// attention k1: the queries of a prompt over the cache, no optimization.
//
// Parallel over: a warp a (row, query head). Its lanes share out the head's elements. Keys come one after the
//   other, with a running maximum and sum of the softmax. q [rows, heads, head] f16, rotated; keys, values
//   [kv_heads, capacity, padded] f16, the rows' own positions included; out [rows, heads, head] f16. Row r is
//   at position first + r. It sees the positions up to its own, or with window > 0 the last `window` of them.
// Arithmetic: f32; scores, softmax and sums are never rounded to f16.
// Cost: every query reads its keys and values through L1 and L2, 4 x head bytes a (query, key), and waits for
//   a shuffle reduction a key.
// Limits: none.
// Compile-time: AQLM_HEAD, AQLM_PADDED; AQLM_SCORES for a factor of scores of its own and, above 0, a cap:
//   cap tanh(score / cap).

#define ITEMS ((AQLM_HEAD + 31) / 32)

extern "C" __global__ void attention(const u16* keys, const u16* values, const u16* q, u16* out, int rows, int heads, int kv_heads, int first,
                                     int capacity, int window
#ifdef AQLM_SCORES
                                     , int scale_bits, int cap_bits
#endif
) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int lane = threadIdx.x & 31, row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), head = blockIdx.y;
    if (row >= rows) return;
    const int position = first + row, begin = window > 0 && position + 1 > window ? position + 1 - window : 0;
    const size_t cached = static_cast<size_t>(head / (heads / kv_heads)) * capacity * AQLM_PADDED;
    const size_t own = (static_cast<size_t>(row) * heads + head) * AQLM_HEAD;
#ifdef AQLM_SCORES
    const float scale = __int_as_float(scale_bits), cap = __int_as_float(cap_bits);
#else
    const float scale = 1.0f / sqrtf(static_cast<float>(AQLM_HEAD));
#endif
    float query[ITEMS], sum[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int d = i * 32 + lane;
        query[i] = d < AQLM_HEAD ? f32_of_f16(q[own + d]) * scale : 0.0f;
        sum[i] = 0.0f;
    }
    float most = -1e30f, total = 0.0f;
    for (int j = begin; j <= position; ++j) {
        const u16* key = keys + cached + static_cast<size_t>(j) * AQLM_PADDED;
        const u16* value = values + cached + static_cast<size_t>(j) * AQLM_PADDED;
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            if (i * 32 + lane < AQLM_HEAD) score += query[i] * f32_of_f16(key[i * 32 + lane]);
        }
        for (int step = 16; step > 0; step >>= 1) score += __shfl_xor_sync(WARP_MASK, score, step);
#ifdef AQLM_SCORES
        if (cap > 0.0f) score = cap * tanhf(score / cap);
#endif
        const float now = fmaxf(most, score), keep = expf(most - now), weight = expf(score - now);
        most = now;
        total = total * keep + weight;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const float add = i * 32 + lane < AQLM_HEAD ? f32_of_f16(value[i * 32 + lane]) : 0.0f;
            sum[i] = sum[i] * keep + weight * add;
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (i * 32 + lane < AQLM_HEAD) out[own + i * 32 + lane] = f16_of_f32(sum[i] / total);
    }
}
