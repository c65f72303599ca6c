#include "../common.cuh"
// add_triangle k1: adds the lower triangle of a square f32 matrix to that of f64 sums.
//
// Parallel over: a thread a number; a block has 256 columns of a row, and those above the diagonal end.
// part [width, width] f32, which is not read above the diagonal; total [width, width] f64.
// Limits: width below 65,536, the rows of a grid.

extern "C" __global__ void add_triangle(const float* part, double* total, int width) {
    const int row = blockIdx.y, column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (column > row) return;
    const size_t at = static_cast<size_t>(row) * width + column;
    total[at] += part[at];
}
