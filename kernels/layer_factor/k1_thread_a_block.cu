#include "../common.cuh"
#include "../quantizer.cuh"
// layer_factor k1: Cholesky factors of many small symmetric matrices plus the least jitter that works.
//
// Parallel over: a thread a matrix.
// matrices [count, order, order] f64; factors the same shape, lower triangles; a matrix with a zero diagonal
//   gets a factor of zeros. failed becomes 1 + the number of a matrix that a jitter of a thousandth does not
//   help.
// The jitter is zero, then order x epsilon x the largest diagonal entry, then a hundred times as much each
//   time.

#define EPSILON 2.220446049250313e-16

extern "C" __global__ void layer_factor(const double* matrices, double* factors, int* failed, int count, int order) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const double* a = matrices + static_cast<size_t>(index) * order * order;
    double* l = factors + static_cast<size_t>(index) * order * order;
    double largest = 0.0;
    bool finite = true;
    for (int i = 0; i < order; ++i) {
        const double x = fabs(a[i * (order + 1)]);
        finite = finite && x < 1e308;
        largest = x > largest ? x : largest;
    }
    for (int i = 0; i < order * order; ++i) l[i] = 0.0;
    if (finite && largest == 0.0) return;
    for (double jitter = 0.0;;) {
        bool positive = finite;
        for (int i = 0; i < order && positive; ++i) {
            for (int j = 0; j <= i && positive; ++j) {
                double value = a[i * order + j] + (i == j ? jitter : 0.0);
                for (int k = 0; k < j; ++k) value -= l[i * order + k] * l[j * order + k];
                if (i == j) {
                    positive = value > order * EPSILON * fabs(a[i * (order + 1)] + jitter);
                    l[i * (order + 1)] = sqrt(positive ? value : 0.0);
                } else {
                    l[i * order + j] = value / l[j * (order + 1)];
                }
            }
        }
        if (positive) return;
        if (jitter > 1e-3 * largest || !finite) {
            *failed = index + 1;
            return;
        }
        const double least = order * EPSILON * largest;
        jitter = 100.0 * jitter > least ? 100.0 * jitter : least;
    }
}
