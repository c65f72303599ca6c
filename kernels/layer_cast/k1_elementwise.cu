#include "../common.cuh"
#include "../quantizer.cuh"
// layer_cast k1: numbers in the other width.
//
// Parallel over: a thread a number.
// from, to [count]: f64 from f32 with AQLM_WIDE, else f32 from f64.
// Compile-time: AQLM_WIDE.

#if AQLM_WIDE
typedef float source;
#else
typedef double source;
#endif

extern "C" __global__ void layer_cast(const source* from, real* to, int count) {
    const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < static_cast<size_t>(count)) to[at] = static_cast<real>(from[at]);
}
