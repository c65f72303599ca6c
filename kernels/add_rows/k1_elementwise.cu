#include "../common.cuh"
// add_rows k1: adds f32 numbers to f32 sums.
//
// Parallel over: a thread a sum.
// from [count], to [count] f32.
// Limits: count below 2^31.

extern "C" __global__ void add_rows(const float* from, float* to, int count) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < static_cast<size_t>(count)) to[i] += from[i];
}
