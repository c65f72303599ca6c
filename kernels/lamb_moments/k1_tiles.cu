#include "../common.cuh"
#include "../training.cuh"
#include "../moments.cuh"
// lamb_moments k1: the moments of a step of LAMB, and the squares of parameters and of updates.
//
// Parallel over: a block a tile of 4,096 parameters, whose squares it adds up.
// values, gradient, first, second [count], f64 with AQLM_WIDE, else f32; squares [2, tiles] f64: those of
//   the parameters, then those of the updates u = m / (sqrt(v) + epsilon). Integers: count, then as pairs of
//   words beta1, beta2, epsilon.
// Arithmetic: f64; numbers of f32 are rounded once. Every thread adds its squares in order, then the threads
//   by a tree.
// Limits: count below 2^31.
// Compile-time: AQLM_WIDE; AQLM_LEAN (no first moments, for they are the gradient).

#define TILE 4096

extern "C" __global__ void lamb_moments(const Kept* values, const Kept* gradient, Kept* first, Kept* second, double* squares, int count, int b10, int b11, int b20, int b21, int eps0, int eps1) {
    SHARED_MEMORY;
    double* scratch = reinterpret_cast<double*>(shared);  // [threads]
    const size_t from = static_cast<size_t>(blockIdx.x) * TILE;
    double of_values = 0.0, of_updates = 0.0;
    for (size_t i = from + threadIdx.x; i < from + TILE && i < static_cast<size_t>(count); i += blockDim.x) {
        const double value = values[i];
        const Moments now = moved_moments(gradient[i], first, second, i, f64_of(b10, b11), f64_of(b20, b21));
        const double update = now.m / (sqrt(now.v) + f64_of(eps0, eps1));
        of_values += value * value;
        of_updates += update * update;
    }
    of_values = sum_of_block(of_values, scratch);
    of_updates = sum_of_block(of_updates, scratch);
    if (threadIdx.x == 0) {
        squares[blockIdx.x] = of_values;
        squares[gridDim.x + blockIdx.x] = of_updates;
    }
}
