#include "../common.cuh"
#include "../training.cuh"
#include "../moments.cuh"
// adam_step k1: one step of Adam, PyTorch's or the official engine's; resets the gradient.
//
// Parallel over: a thread a parameter.
// values, gradient, first, second [count], f64 with AQLM_WIDE, else f32. Integers: count, then as pairs of
//   words the rate, the correction of the second moment, beta1, beta2, epsilon: values -= rate m / (sqrt(v
//   correction) + epsilon). PyTorch's rate is lr / (1 - beta1^t) and its correction 1 / (1 - beta2^t); the
//   official engine has no correction inside the root.
// Arithmetic: f64; numbers of f32 are rounded once.
// Limits: count below 2^31.
// Compile-time: AQLM_WIDE; AQLM_LEAN (no first moments, for they are the gradient).

extern "C" __global__ void adam_step(Kept* values, Kept* gradient, Kept* first, Kept* second, int count, int rate0, int rate1, int corr0, int corr1, int b10, int b11, int b20, int b21, int eps0, int eps1) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const Moments now = moved_moments(gradient[i], first, second, i, f64_of(b10, b11), f64_of(b20, b21));
    values[i] = static_cast<Kept>(values[i] - f64_of(rate0, rate1) * now.m / (sqrt(now.v * f64_of(corr0, corr1)) + f64_of(eps0, eps1)));
    gradient[i] = static_cast<Kept>(0.0);
}
