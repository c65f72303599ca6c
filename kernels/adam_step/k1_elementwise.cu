#include "../common.cuh"
#include "../training.cuh"
// adam_step k1: one step of Adam; resets the gradient.
//
// Parallel over: a thread a parameter.
// values, gradient, first, second [count] f64. Integers: count, then as pairs of words the rate lr / (1 -
//   beta1^t), 1 / (1 - beta2^t), beta1, beta2, epsilon. Epsilon is added to the root of the corrected second
//   moment.
// Arithmetic: f64.
// Limits: count below 2^31.

extern "C" __global__ void adam_step(double* values, double* gradient, double* first, double* second, int count, int rate0, int rate1, int corr0, int corr1, int b10, int b11, int b20, int b21, int eps0, int eps1) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const double g = gradient[i];
    const double m = first[i] + (1.0 - f64_of(b10, b11)) * (g - first[i]);
    const double v = second[i] + (1.0 - f64_of(b20, b21)) * (g * g - second[i]);
    first[i] = m;
    second[i] = v;
    values[i] -= f64_of(rate0, rate1) * m / (sqrt(v * f64_of(corr0, corr1)) + f64_of(eps0, eps1));
    gradient[i] = 0.0;
}
