#include "../common.cuh"
// rms_norm k1: adds a layer's output to the residual stream and normalises it, in one pass.
//
// Parallel over: a block a row. Each thread holds its elements in registers between the sum of squares and
//   the scaling, so the row is read once. The norm's weight is fetched before the previous kernel has ended.
// hidden [rows, width] f32, read and written; delta [rows, width] f16, the previous layer's output (with
//   AQLM_DELTA); bias [width] f32, that layer's bias (with AQLM_BIAS); weight [width] f16; normed [rows,
//   width] f16 = weight * hidden / sqrt(mean(hidden^2) + eps).
// Arithmetic: f32, the sum of squares in a fixed order (lane, warp, then warps in order).
// Cost at width 4096: 16 KB read, 24 KB moved in all. The bound is a launch and three dependent trips to L2,
//   not bytes. H100: 1.55 us a launch, overlapped with its neighbours (docs/decoding.md).
// Limits: AQLM_WIDTH a multiple of AQLM_VECTOR (4 or 1).
// Compile-time: AQLM_WIDTH, AQLM_VECTOR, AQLM_THREADS (a multiple of 32), AQLM_DELTA, AQLM_BIAS.

#define ITEMS ((AQLM_WIDTH / AQLM_VECTOR + AQLM_THREADS - 1) / AQLM_THREADS)

__device__ __forceinline__ void load_f32(float (&to)[AQLM_VECTOR], const float* from) {
#if AQLM_VECTOR == 4
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
#else
    to[0] = *from;
#endif
}

__device__ __forceinline__ void load_f16(float (&to)[AQLM_VECTOR], const u16* from) {
#if AQLM_VECTOR == 4
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    to[0] = low_f32(v.x), to[1] = high_f32(v.x), to[2] = low_f32(v.y), to[3] = high_f32(v.y);
#else
    to[0] = f32_of_f16(*from);
#endif
}

__device__ __forceinline__ void store_f32(float* to, const float (&from)[AQLM_VECTOR]) {
#if AQLM_VECTOR == 4
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
#else
    *to = from[0];
#endif
}

__device__ __forceinline__ void store_f16(u16* to, const float (&from)[AQLM_VECTOR]) {
#if AQLM_VECTOR == 4
    const u32 low = f16_of_f32(from[0]) | static_cast<u32>(f16_of_f32(from[1])) << 16;
    const u32 high = f16_of_f32(from[2]) | static_cast<u32>(f16_of_f32(from[3])) << 16;
    *reinterpret_cast<uint2*>(to) = {low, high};
#else
    *to = f16_of_f32(from[0]);
#endif
}

extern "C" __global__ void __launch_bounds__(AQLM_THREADS)
rms_norm(const u16* weight, const float* bias, const u16* delta, float* hidden, u16* normed, int eps_bits) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    float* sums = reinterpret_cast<float*>(shared);  // [warp]
    const size_t row = static_cast<size_t>(blockIdx.x) * AQLM_WIDTH;
    allow_next_kernel();
    float scale[ITEMS][AQLM_VECTOR], held[ITEMS][AQLM_VECTOR];
#if AQLM_BIAS
    float added[ITEMS][AQLM_VECTOR];
#endif
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int at = (i * AQLM_THREADS + threadIdx.x) * AQLM_VECTOR;
        if (at < AQLM_WIDTH) {
            load_f16(scale[i], weight + at);
#if AQLM_BIAS
            load_f32(added[i], bias + at);
#endif
        }
    }
    wait_for_previous_kernel();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int at = (i * AQLM_THREADS + threadIdx.x) * AQLM_VECTOR;
        if (at >= AQLM_WIDTH) continue;
        load_f32(held[i], hidden + row + at);
#if AQLM_DELTA
        float change[AQLM_VECTOR];
        load_f16(change, delta + row + at);
#pragma unroll
        for (int k = 0; k < AQLM_VECTOR; ++k) {
            held[i][k] += change[k];
#if AQLM_BIAS
            held[i][k] += added[i][k];
#endif
        }
        store_f32(hidden + row + at, held[i]);
#endif
#pragma unroll
        for (int k = 0; k < AQLM_VECTOR; ++k) sum += held[i][k] * held[i][k];
    }
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(WARP_MASK, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < AQLM_THREADS / 32; ++warp) total += sums[warp];
    const float factor = 1.0f / sqrtf(total / AQLM_WIDTH + __int_as_float(eps_bits));
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int at = (i * AQLM_THREADS + threadIdx.x) * AQLM_VECTOR;
        if (at >= AQLM_WIDTH) continue;
#pragma unroll
        for (int k = 0; k < AQLM_VECTOR; ++k) held[i][k] *= factor * scale[i][k];
        store_f16(normed + row + at, held[i]);
    }
}
