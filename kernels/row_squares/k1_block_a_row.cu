#include "../common.cuh"
#include "../training.cuh"
// row_squares k1: for each row the sums of (a - b)^2 and of b^2.
//
// Parallel over: a block a row.
// a, b [rows, width] f32; sums [2, rows] f64: (a - b)^2, then b^2. With AQLM_GRADIENT, factor (a - b)
//   replaces a.
// Arithmetic: f64 sums of differences in f64; a thread in order, then the threads by a tree.
// Limits: none.
// Compile-time: AQLM_GRADIENT.

extern "C" __global__ void row_squares(float* a, const float* b, double* sums, int rows, int width, int factor_bits) {
    SHARED_MEMORY;
    double* scratch = reinterpret_cast<double*>(shared);
    const size_t at = static_cast<size_t>(blockIdx.x) * width;
    double difference = 0.0, norm = 0.0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const double to = b[at + i], by = static_cast<double>(a[at + i]) - to;
        difference += by * by;
        norm += to * to;
#if AQLM_GRADIENT
        a[at + i] = __int_as_float(factor_bits) * (a[at + i] - b[at + i]);
#endif
    }
    difference = sum_of_block(difference, scratch);
    norm = sum_of_block(norm, scratch);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = difference;
        sums[static_cast<size_t>(rows) + blockIdx.x] = norm;
    }
}
