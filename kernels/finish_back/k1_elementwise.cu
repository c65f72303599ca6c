#include "../common.cuh"
// finish_back k1: makes gradients of the products before finish_logits from those of logits, in place.
//
// Parallel over: a thread a logit.
// logits, grad [count] f32; logits, the results of finish_logits, are read with a cap only. A cap of 0 is
//   none. grad *= factor (1 - (logit / cap)^2).
// Limits: count below 2^31.

extern "C" __global__ void finish_back(const float* logits, float* grad, int count, int factor_bits, int cap_bits) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const float cap = __int_as_float(cap_bits);
    float slope = __int_as_float(factor_bits);
    if (cap > 0.0f) {
        const float t = logits[i] / cap;
        slope *= 1.0f - t * t;
    }
    grad[i] *= slope;
}
