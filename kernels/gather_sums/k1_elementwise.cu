#include "../common.cuh"
// gather_sums k1: for each row the sum of the rows that its experts computed. With AQLM_WEIGHTED each is
// multiplied by its factor.
//
// Parallel over: a thread an element of a result.
// from [rows x used, width] f32; places [rows, used] u32: where each row's parts stand in `from`; weights
//   [rows, used] f32; to [rows, width] f32.
// Arithmetic: f32, in the order of `places`.
// Limits: rows x width below 2^31.
// Compile-time: AQLM_WEIGHTED.

extern "C" __global__ void gather_sums(const float* from, const u32* places, const float* weights, float* to, int count, int width, int used) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const size_t row = i / width, column = i % width;
    float sum = 0.0f;
    for (int slot = 0; slot < used; ++slot) {
        const size_t own = row * used + slot;
        const float part = from[static_cast<size_t>(places[own]) * width + column];
#if AQLM_WEIGHTED
        sum += weights[own] * part;
#else
        sum += part;
#endif
    }
    to[i] = sum;
}
