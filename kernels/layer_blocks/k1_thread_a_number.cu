#include "../common.cuh"
#include "../quantizer.cuh"
// layer_blocks k1: the blocks on the diagonal of a matrix, in f64.
//
// Parallel over: a thread a number.
// matrix [width, width]; blocks [width / side, side, side].
// Compile-time: AQLM_WIDE.

extern "C" __global__ void layer_blocks(const real* matrix, double* blocks, int width, int side) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= width * side) return;
    const int row = at / side, column = row / side * side + at % side;
    blocks[at] = matrix[static_cast<size_t>(row) * width + column];
}
