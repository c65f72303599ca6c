#include "../common.cuh"
#include "../rotated.cuh"
// rope k1: rotates queries in place, and writes rotated keys and the values into the cache. For prompts;
// attention_step does this for a single new token.
//
// Parallel over: a block a (row, head), a thread a pair. Heads are numbered queries, then keys, then values.
// q [rows, heads, head] f16, read and written; k, v [rows, kv_heads, head] f16; biases f32 of one row each
//   (with AQLM_BIAS); cosines, sines [positions, head / 2] f32; keys, values [kv_heads, capacity, padded]
//   f16. Row r is at position first + r. Element i of a head is paired with element i + head / 2.
// Arithmetic: f32, each result rounded to f16 once.
// Bound by bytes: 3 x 2 x heads x head bytes a row.
// Limits: positions below capacity (the host checks).
// Compile-time: AQLM_HEAD, AQLM_PADDED (AQLM_HEAD rounded up to a multiple of 8), AQLM_BIAS; AQLM_ROTATED
//   where only so many numbers of a head are rotated, 0 for none; the tables are then [positions,
//   AQLM_ROTATED / 2].

extern "C" __global__ void rope(const float* cosines, const float* sines, const float* q_bias, const float* k_bias, const float* v_bias, u16* q,
                                const u16* k, const u16* v, u16* keys, u16* values, int heads, int kv_heads, int first, int capacity) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int row = blockIdx.x, position = first + row, all = heads + 2 * kv_heads;
    for (int head = blockIdx.y; head < all; head += gridDim.y) {
        const bool query = head < heads, key = !query && head < heads + kv_heads;
        const int index = query ? head : key ? head - heads : head - heads - kv_heads;
        const int width = (query ? heads : kv_heads) * AQLM_HEAD;
        const u16* from = (query ? q : key ? k : v) + static_cast<size_t>(row) * width + index * AQLM_HEAD;
        u16* cached = (key ? keys : values) + (static_cast<size_t>(index) * capacity + position) * AQLM_PADDED;
        u16* to = query ? q + static_cast<size_t>(row) * width + index * AQLM_HEAD : cached;
        for (int i = threadIdx.x; i < HALF; i += blockDim.x) {
            float a = f32_of_f16(from[i]), b = f32_of_f16(from[i + HALF]);
#if AQLM_BIAS
            const float* bias = (query ? q_bias : key ? k_bias : v_bias) + index * AQLM_HEAD;
            a += bias[i];
            b += bias[i + HALF];
#endif
            const float c = query || key ? cosines[position * HALF + i] : 1.0f, s = query || key ? sines[position * HALF + i] : 0.0f;
            to[i] = f16_of_f32(a * c - b * s);
            to[i + HALF] = f16_of_f32(b * c + a * s);
        }
#ifdef AQLM_ROTATED
        for (int i = TURNED + threadIdx.x; i < AQLM_HEAD; i += blockDim.x) {
            float a = f32_of_f16(from[i]);
#if AQLM_BIAS
            a += (query ? q_bias : key ? k_bias : v_bias)[index * AQLM_HEAD + i];
#endif
            to[i] = f16_of_f32(a);
        }
#endif
    }
}
