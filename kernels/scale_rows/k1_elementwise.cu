#include "../common.cuh"
// scale_rows k1: multiplies each row by a factor of its own, in place.
//
// Parallel over: a thread an element.
// factors f32; order [count / width] u32: with AQLM_ORDERED the number of each row's factor, else not read;
//   x [count / width, width] f32.
// Limits: count below 2^31.
// Compile-time: AQLM_ORDERED.

extern "C" __global__ void scale_rows(const float* factors, const u32* order, float* x, int count, int width) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
#if AQLM_ORDERED
    x[i] *= factors[order[i / width]];
#else
    x[i] *= factors[i / width];
#endif
}
