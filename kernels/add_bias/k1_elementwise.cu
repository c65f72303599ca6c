#include "../common.cuh"
// add_bias k1: adds a layer's bias to every row.
//
// Parallel over: a thread an element.
// bias [width] f32; x [count / width, width] f32.
// Limits: count below 2^31.

extern "C" __global__ void add_bias(const float* bias, float* x, int count, int width) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < static_cast<size_t>(count)) x[i] += bias[i % width];
}
