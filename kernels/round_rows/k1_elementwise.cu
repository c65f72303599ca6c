#include "../common.cuh"
// round_rows k1: rounds every number to bf16, to the nearest, ties to even, and keeps it in f32.
//
// Parallel over: a thread a number.
// x [count] f32.
// Limits: count below 2^31.

extern "C" __global__ void round_rows(float* x, int count) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < static_cast<size_t>(count)) x[i] = __uint_as_float(static_cast<u32>(bf16_of_f32(x[i])) << 16);
}
