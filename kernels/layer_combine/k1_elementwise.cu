#include "../common.cuh"
#include "../quantizer.cuh"
// layer_combine k1: y = a x + b y.
//
// Parallel over: a thread a number.
// x, y [count]; the factors come as halves of doubles and are rounded to the arrays' type.
// Compile-time: AQLM_WIDE.

extern "C" __global__ void layer_combine(const real* x, real* y, int count, int a_low, int a_high, int b_low, int b_high) {
    const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= static_cast<size_t>(count)) return;
    const real a = static_cast<real>(double_of(a_low, a_high)), b = static_cast<real>(double_of(b_low, b_high));
    y[at] = a * x[at] + b * y[at];
}
