#include "../common.cuh"
#include "../quantizer.cuh"
// layer_permute k1: rows and columns of a matrix in another order.
//
// Parallel over: a thread a number; rows along the grid's second axis.
// from [rows, width]; row_order [rows], or nothing with AQLM_ROWS 0; column_order [width]; to [rows, width].
// Compile-time: AQLM_WIDE, AQLM_ROWS.

extern "C" __global__ void layer_permute(const real* from, const u32* row_order, const u32* column_order, real* to, int rows, int width) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
#if AQLM_ROWS
        const size_t source = row_order[row];
#else
        const size_t source = row;
#endif
        to[static_cast<size_t>(row) * width + column] = from[source * width + column_order[column]];
    }
}
