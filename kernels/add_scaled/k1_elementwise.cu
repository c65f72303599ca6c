#include "../common.cuh"
#include "../training.cuh"
// add_scaled k1: adds a multiple of numbers to others.
//
// Parallel over: a thread a number.
// from, to [count] f32, or f64 with AQLM_WIDE. to += factor from.
// Arithmetic: that of the numbers; the factor is rounded to it.
// Limits: count below 2^31.
// Compile-time: AQLM_WIDE.

#if AQLM_WIDE
typedef double Number;
#else
typedef float Number;
#endif

extern "C" __global__ void add_scaled(const Number* from, Number* to, int count, int factor0, int factor1) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < static_cast<size_t>(count)) to[i] += static_cast<Number>(f64_of(factor0, factor1)) * from[i];
}
