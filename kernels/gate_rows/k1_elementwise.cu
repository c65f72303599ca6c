#include "../common.cuh"
#include "../gelu.cuh"
// gate_rows k1: SwiGLU in f32, y = silu(gate) up with silu(g) = g / (1 + e^-g); or with AQLM_GELU GeGLU
// (gelu.cuh).
//
// Parallel over: a thread an element.
// gate, up, y [count] f32.
// Limits: count below 2^31.
// Compile-time: AQLM_GELU.

extern "C" __global__ void gate_rows(const float* gate, const float* up, float* y, int count) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const float g = gate[i];
#if AQLM_GELU
    y[i] = g * gelu_share(g) * up[i];
#else
    y[i] = g / (1.0f + expf(-g)) * up[i];
#endif
}
