#include "../common.cuh"
#include "../training.cuh"
// column_sums k1: sums columns of a gradient over chunks of rows; add_parts adds up the chunks.
//
// Parallel over: a block has 32 columns and a chunk of 256 rows, eight rows at a time.
// grad [rows, width] f32; sums [chunks, width] f64. With AQLM_NORM the sum is over grad x root, the gradient
//   of RMSNorm's weight: x [rows, width] f32, roots [rows] f32 from norm_rows.
// Arithmetic: f64, in a fixed order.
// Limits: at most 65,535 blocks of 32 columns.
// Compile-time: AQLM_NORM.

#define CHUNK 256

extern "C" __global__ void column_sums(const float* grad, const float* x, const float* roots, double* sums, int rows, int width) {
    SHARED_MEMORY;
    double* lanes = reinterpret_cast<double*>(shared);  // [8, 32]
    const int column = blockIdx.y * 32 + threadIdx.x % 32, lane = threadIdx.x / 32;
    const int first = blockIdx.x * CHUNK, last = first + CHUNK < rows ? first + CHUNK : rows;
    double sum = 0.0;
    if (column < width) {
        for (int row = first + lane; row < last; row += 8) {
            const size_t at = static_cast<size_t>(row) * width + column;
#if AQLM_NORM
            sum += static_cast<double>(grad[at]) * (roots[row] * x[at]);
#else
            sum += grad[at];
#endif
        }
    }
    lanes[threadIdx.x] = sum;
    __syncthreads();
    if (lane != 0 || column >= width) return;
    for (int i = 1; i < 8; ++i) sum += lanes[i * 32 + threadIdx.x];
    sums[static_cast<size_t>(blockIdx.x) * width + column] = sum;
}
