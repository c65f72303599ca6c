#include "../common.cuh"
#include "../gelu.cuh"
// gate_back k1: gradients of SwiGLU, or with AQLM_GELU of GeGLU. That of up replaces the gradient of the
// result.
//
// Parallel over: a thread an element.
// gate, up, grad (read, then the gradient of up), grad_gate [count] f32. With s the sigmoid of g: d silu / dg
//   = s (1 + g (1 - s)).
// Limits: count below 2^31.
// Compile-time: AQLM_GELU.

extern "C" __global__ void gate_back(const float* gate, const float* up, float* grad, float* grad_gate, int count) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const float g = gate[i], of_y = grad[i];
#if AQLM_GELU
    const float s = gelu_share(g);
    grad_gate[i] = of_y * up[i] * (s + g * s * (1.0f - s) * gelu_rise(g));
#else
    const float s = 1.0f / (1.0f + expf(-g));
    grad_gate[i] = of_y * up[i] * s * (1.0f + g * (1.0f - s));
#endif
    grad[i] = of_y * g * s;
}
