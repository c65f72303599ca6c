#include "../common.cuh"
#include "../quantizer.cuh"
// layer_dot k1: inner products of consecutive parts of two arrays, in f64.
//
// Parallel over: a block a part.
// a, b [count]; sums [parts], added up by the caller in order.
// Compile-time: AQLM_WIDE.

extern "C" __global__ void layer_dot(const real* a, const real* b, double* sums, int count, int each) {
    SHARED_MEMORY(shared);
    const size_t from = static_cast<size_t>(blockIdx.x) * each;
    const size_t to = from + each < static_cast<size_t>(count) ? from + each : static_cast<size_t>(count);
    double sum = 0.0;
    for (size_t i = from + threadIdx.x; i < to; i += blockDim.x) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    sum = block_sum(sum, reinterpret_cast<double*>(shared));
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
