#include "../common.cuh"
// finish_logits k1: makes logits of the products l of states and output layer, in place: factor l, and with a
// cap cap tanh(factor l / cap).
//
// Parallel over: a thread a logit.
// logits [count] f32. A cap of 0 is none.
// Limits: count below 2^31.

extern "C" __global__ void finish_logits(float* logits, int count, int factor_bits, int cap_bits) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const float cap = __int_as_float(cap_bits), scaled = __int_as_float(factor_bits) * logits[i];
    logits[i] = cap > 0.0f ? cap * tanhf(scaled / cap) : scaled;
}
