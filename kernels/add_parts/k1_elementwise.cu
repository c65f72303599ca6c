#include "../common.cuh"
// add_parts k1: adds one number to each f64 sum: its parts, added up in their order.
//
// Parallel over: a thread a sum.
// parts [parts, count] f32, or f64 with AQLM_WIDE; total [count] f64.
// Limits: count below 2^31.
// Compile-time: AQLM_WIDE.

#if AQLM_WIDE
typedef double Part;
#else
typedef float Part;
#endif

extern "C" __global__ void add_parts(const Part* from, double* total, int count, int parts) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    double sum = 0.0;
    for (int part = 0; part < parts; ++part) sum += from[static_cast<size_t>(part) * count + i];
    total[i] += sum;
}
