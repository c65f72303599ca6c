#include "../common.cuh"
// residual_norm k1: what rms_norm does, for blocks that are not plain: what a layer or several experts add to
// the residual stream may be normed first and has a factor, and the sum may be left as it is.
//
// Parallel over: a block a row, a thread every AQLM_THREADS-th element, held in registers between the sums
//   and the scaling.
// delta [rows, AQLM_SLOTS, width] f16, outputs of the previous layers; shares [AQLM_SLOTS] f32, their factors
//   (with AQLM_SHARES); bias [width] f32 (with AQLM_BIAS, for a single slot); d = sum of shares * delta, plus
//   bias; with AQLM_AFTER d = after * d / sqrt(mean(d^2) + after_eps).
// hidden [rows, width] f32 += factor * d; normed [rows, width] f16 = before * hidden / sqrt(mean(hidden^2) +
//   before_eps), or hidden itself without AQLM_BEFORE. before, after [width] f16.
// Arithmetic: f32, the sums of squares in a fixed order (lane, warp, then warps in order).
// Cost: as rms_norm, a launch and three dependent trips to L2; two more barriers with AQLM_AFTER.
// Limits: shares are those of one row, so several rows need AQLM_SHARES 0.
// Compile-time: AQLM_WIDTH, AQLM_THREADS (a multiple of 32), AQLM_SLOTS (0: nothing is added), AQLM_SHARES,
//   AQLM_BIAS, AQLM_AFTER, AQLM_BEFORE.

#define ITEMS ((AQLM_WIDTH + AQLM_THREADS - 1) / AQLM_THREADS)

// Over all threads of the block; `sums` [AQLM_THREADS / 32] must be unused so far.
__device__ __forceinline__ float block_sum(float own, float* sums) {
    for (int step = 16; step > 0; step >>= 1) own += __shfl_xor_sync(WARP_MASK, own, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = own;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < AQLM_THREADS / 32; ++warp) total += sums[warp];
    return total;
}

extern "C" __global__ void __launch_bounds__(AQLM_THREADS)
residual_norm(const u16* before, const u16* after, const float* bias, const float* shares, const u16* delta, float* hidden, u16* normed,
              int before_eps_bits, int after_eps_bits, int factor_bits) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const size_t row = static_cast<size_t>(blockIdx.x) * AQLM_WIDTH;
    allow_next_kernel();
    wait_for_previous_kernel();
    float held[ITEMS];
#if AQLM_SLOTS > 0
    float change[ITEMS];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int at = i * AQLM_THREADS + threadIdx.x;
        change[i] = 0.0f;
        if (at >= AQLM_WIDTH) continue;
#pragma unroll
        for (int slot = 0; slot < AQLM_SLOTS; ++slot) {
            const float one = f32_of_f16(delta[row * AQLM_SLOTS + slot * AQLM_WIDTH + at]);
#if AQLM_SHARES
            change[i] += shares[slot] * one;
#else
            change[i] += one;
#endif
        }
#if AQLM_BIAS
        change[i] += bias[at];
#endif
        squares += change[i] * change[i];
    }
    float factor = __int_as_float(factor_bits);
#if AQLM_AFTER
    factor /= sqrtf(block_sum(squares, reinterpret_cast<float*>(shared) + 32) / AQLM_WIDTH + __int_as_float(after_eps_bits));
#endif
#endif
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int at = i * AQLM_THREADS + threadIdx.x;
        if (at >= AQLM_WIDTH) continue;
        held[i] = hidden[row + at];
#if AQLM_SLOTS > 0
#if AQLM_AFTER
        held[i] += factor * change[i] * f32_of_f16(after[at]);
#else
        held[i] += factor * change[i];
#endif
        hidden[row + at] = held[i];
#endif
        sum += held[i] * held[i];
    }
#if AQLM_BEFORE
    const float to_normed = 1.0f / sqrtf(block_sum(sum, reinterpret_cast<float*>(shared)) / AQLM_WIDTH + __int_as_float(before_eps_bits));
#endif
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int at = i * AQLM_THREADS + threadIdx.x;
        if (at >= AQLM_WIDTH) continue;
#if AQLM_BEFORE
        normed[row + at] = f16_of_f32(held[i] * to_normed * f32_of_f16(before[at]));
#else
        normed[row + at] = f16_of_f32(held[i]);
#endif
    }
}
