#include "../common.cuh"
// bf16_rows k1: rounds f32 to bf16, to the nearest, ties to even, or takes bf16 back to f32, which is exact.
//
// Parallel over: a thread a number.
// from [count] f32 and to [count] bf16; the other way round with AQLM_BACK.
// Limits: count below 2^31.
// Compile-time: AQLM_BACK.

#if AQLM_BACK
extern "C" __global__ void bf16_rows(const u16* from, float* to, int count) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < static_cast<size_t>(count)) to[i] = __uint_as_float(static_cast<u32>(from[i]) << 16);
}
#else
extern "C" __global__ void bf16_rows(const float* from, u16* to, int count) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < static_cast<size_t>(count)) to[i] = bf16_of_f32(from[i]);
}
#endif
