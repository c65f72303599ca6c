#include "../common.cuh"
// sigmoid_rows k1: 1 / (1 + e^-x) in place, the factor of a shared expert. With AQLM_BACK: the gradient of x
// from that of the sigmoid y, in place: y (1 - y) grad.
//
// Parallel over: a thread a number.
// y [count] f32, read with AQLM_BACK only; x [count] f32.
// Limits: count below 2^31.
// Compile-time: AQLM_BACK.

extern "C" __global__ void sigmoid_rows(const float* y, float* x, int count) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
#if AQLM_BACK
    x[i] *= y[i] * (1.0f - y[i]);
#else
    x[i] = 1.0f / (1.0f + expf(-x[i]));
#endif
}
