#include "../common.cuh"
#include "../quantizer.cuh"
// layer_diagonal k1: adds a number to every diagonal entry of a matrix.
//
// Parallel over: a thread an entry.
// matrix [n, n] f64; the number comes as the halves of a double.

extern "C" __global__ void layer_diagonal(double* matrix, int n, int low, int high) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) matrix[static_cast<size_t>(i) * n + i] += double_of(low, high);
}
