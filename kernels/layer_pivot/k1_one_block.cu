#include "../common.cuh"
#include "../quantizer.cuh"
// layer_pivot k1: factors a diagonal block of a large matrix in place, the pivot of a blocked Cholesky.
//
// Parallel over: one block, a thread a number of the block's lower triangle and its mirror.
// matrix [n, n] f64, lower triangle; failed becomes 1 + the pivot that is not positive, unless it is set
//   already.

#define SIDE 32

extern "C" __global__ void __launch_bounds__(SIDE * SIDE) layer_pivot(double* matrix, int* failed, int n, int first, int order) {
    SHARED_MEMORY(shared);
    double* a = reinterpret_cast<double*>(shared);  // [SIDE, SIDE + 1]
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    const bool own = row < order && column <= row;
    double* at = matrix + static_cast<size_t>(first + row) * n + first + column;
    a[row * (SIDE + 1) + column] = own ? *at : 0.0;
    for (int k = 0; k < order; ++k) {
        __syncthreads();
        const double pivot = a[k * (SIDE + 1) + k];
        const bool positive = pivot > 0.0 && pivot < 1e308;
        const double root = positive ? sqrt(pivot) : 1.0;
        __syncthreads();
        if (threadIdx.x == 0 && !positive && *failed == 0) *failed = first + k + 1;
        if (own && column == k) a[row * (SIDE + 1) + k] = row == k ? root : a[row * (SIDE + 1) + k] / root;
        __syncthreads();
        if (own && column > k) a[row * (SIDE + 1) + column] -= a[row * (SIDE + 1) + k] * a[column * (SIDE + 1) + k];
    }
    __syncthreads();
    if (own) *at = a[row * (SIDE + 1) + column];
}
