#include "../common.cuh"
#include "../training.cuh"
#include "../moments.cuh"
// lamb_move k1: moves parameters by a step of LAMB; resets the gradient.
//
// Parallel over: a thread a parameter.
// values, gradient, first, second [count], f64 with AQLM_WIDE, else f32; ratio [1] f64, of lamb_ratio.
//   Integers: count, then as pairs of words the rate and epsilon.
// Arithmetic: f64; numbers of f32 are rounded once.
// Limits: count below 2^31.
// Compile-time: AQLM_WIDE; AQLM_LEAN (no first moments, for they are the gradient).

extern "C" __global__ void lamb_move(Kept* values, Kept* gradient, const Kept* first, const Kept* second, const double* ratio, int count, int rate0, int rate1, int eps0, int eps1) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
#if AQLM_LEAN
    const double m = gradient[i];
#else
    const double m = first[i];
#endif
    const double v = second[i];
    values[i] = static_cast<Kept>(values[i] - f64_of(rate0, rate1) * ratio[0] * m / (sqrt(v) + f64_of(eps0, eps1)));
    gradient[i] = static_cast<Kept>(0.0);
}
