#include "../common.cuh"
#include "../quantizer.cuh"
// layer_below k1: X with X L^T = A for the rows A below a factored diagonal block L of a large matrix, in
//   place.
//
// Parallel over: a thread a row, which it keeps in registers.
// matrix [n, n] f64.

#define SIDE 32
#define THREADS 64

extern "C" __global__ void __launch_bounds__(THREADS) layer_below(double* matrix, int n, int first, int order) {
    SHARED_MEMORY(shared);
    double* l = reinterpret_cast<double*>(shared);  // [SIDE, SIDE]
    for (int i = threadIdx.x; i < SIDE * SIDE; i += THREADS) {
        const int row = i / SIDE, column = i % SIDE;
        const bool inside = row < order && column <= row;
        l[i] = inside ? matrix[static_cast<size_t>(first + row) * n + first + column] : (row == column ? 1.0 : 0.0);
    }
    __syncthreads();
    const int row = first + order + blockIdx.x * THREADS + threadIdx.x;
    if (row >= n) return;
    double* own = matrix + static_cast<size_t>(row) * n + first;
    double x[SIDE];
#pragma unroll
    for (int i = 0; i < SIDE; ++i) x[i] = i < order ? own[i] : 0.0;
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
#pragma unroll
        for (int k = 0; k < i; ++k) x[i] -= l[i * SIDE + k] * x[k];
        x[i] /= l[i * SIDE + i];
    }
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        if (i < order) own[i] = x[i];
    }
}
