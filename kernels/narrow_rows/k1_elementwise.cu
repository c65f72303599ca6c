#include "../common.cuh"
// narrow_rows k1: rounds f64 parameters to f32 for products.
//
// Parallel over: a thread a number.
// from [count] f64; to [count] f32.
// Limits: count below 2^31.

extern "C" __global__ void narrow_rows(const double* from, float* to, int count) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < static_cast<size_t>(count)) to[i] = static_cast<float>(from[i]);
}
