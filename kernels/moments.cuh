// Shared by the kernels of Adam and LAMB: how parameters are kept, and how their moments move.
//
// Compile-time: AQLM_WIDE (f64, else f32); AQLM_LEAN (no first moments, for they are the gradient).
#pragma once

#if AQLM_WIDE
typedef double Kept;
#else
typedef float Kept;
#endif

// Both moments of parameter i, as they were kept: rounded.
struct Moments {
    double m, v;
};

// Moves them along the gradient g.
__device__ __forceinline__ Moments moved_moments(double g, Kept* first, Kept* second, size_t i, double beta1, double beta2) {
    Moments moments;
    const double old = second[i];
#if AQLM_LEAN
    moments.m = g;
#else
    const double before = first[i];
    first[i] = static_cast<Kept>(before + (1.0 - beta1) * (g - before));
    moments.m = first[i];
#endif
    second[i] = static_cast<Kept>(old + (1.0 - beta2) * (g * g - old));
    moments.v = second[i];
    return moments;
}
