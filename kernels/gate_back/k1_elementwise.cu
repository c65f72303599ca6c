#include "../common.cuh"
// gate_back k1: gradients of SwiGLU. That of up replaces the gradient of the result.
//
// Parallel over: a thread an element.
// gate, up, grad (read, then the gradient of up), grad_gate [count] f32. With s the sigmoid of g: d silu / dg
//   = s (1 + g (1 - s)).
// Limits: count below 2^31.

extern "C" __global__ void gate_back(const float* gate, const float* up, float* grad, float* grad_gate, int count) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const float g = gate[i], s = 1.0f / (1.0f + expf(-g)), of_y = grad[i];
    grad_gate[i] = of_y * up[i] * s * (1.0f + g * (1.0f - s));
    grad[i] = of_y * g * s;
}
