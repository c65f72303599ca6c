#include "../common.cuh"
#include "../quantizer.cuh"
// layer_solve k1: solves L L^T x = b for every row of every codeword.
//
// Parallel over: a thread a row.
// factors [states, order, order]; right, solutions [states, rows, order]. The solution of a factor of zeros
//   is zero.

extern "C" __global__ void layer_solve(const double* factors, const double* right, double* solutions, int states, int rows, int order) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= states * rows) return;
    const double* l = factors + static_cast<size_t>(index / rows) * order * order;
    const double* b = right + static_cast<size_t>(index) * order;
    double* x = solutions + static_cast<size_t>(index) * order;
    if (l[0] == 0.0) {
        for (int i = 0; i < order; ++i) x[i] = 0.0;
        return;
    }
    for (int i = 0; i < order; ++i) {
        double value = b[i];
        for (int k = 0; k < i; ++k) value -= l[i * order + k] * x[k];
        x[i] = value / l[i * (order + 1)];
    }
    for (int i = order - 1; i >= 0; --i) {
        double value = x[i];
        for (int k = i + 1; k < order; ++k) value -= l[k * order + i] * x[k];
        x[i] = value / l[i * (order + 1)];
    }
}
