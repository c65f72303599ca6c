#include "../common.cuh"
// scale_logits k1: logits = scale * logits, and with a cap above 0 cap * tanh(scale * logits / cap), in
// place.
//
// Parallel over: a thread a logit. logits [count] f32.
// Arithmetic: f32.
// Bound by bytes: 8 a logit, in L2 right after the head.
// Limits: none.

extern "C" __global__ void scale_logits(float* logits, int count, int scale_bits, int cap_bits) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const float scale = __int_as_float(scale_bits), cap = __int_as_float(cap_bits);
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= static_cast<u32>(count)) return;
    const float logit = scale * logits[i];
    logits[i] = cap > 0.0f ? cap * tanhf(logit / cap) : logit;
}
