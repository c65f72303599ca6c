#include "../common.cuh"
// swiglu k1: gate * sigmoid(gate) * up.
//
// Parallel over: a thread an element, a block row a row. gate, up [rows, stride] f16, each with its own
//   stride, of which the first `width` elements are used; biases [width] f32 (with AQLM_BIAS); out [rows,
//   width] f16.
// Arithmetic: f32, rounded once.
// Cost at width 11008: 66 KB, all in L2: bound by the launch. H100: 0.97 us, overlapped.
// Limits: none.
// Compile-time: AQLM_BIAS; AQLM_GELU for GELU in its tanh approximation instead of gate * sigmoid(gate).

extern "C" __global__ void swiglu(const float* gate_bias, const float* up_bias, const u16* gate, const u16* up, u16* out, int width,
                                  int gate_stride, int up_stride) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const size_t row = blockIdx.y;
    if (i >= static_cast<u32>(width)) return;
    float g = f32_of_f16(gate[row * gate_stride + i]), u = f32_of_f16(up[row * up_stride + i]);
#if AQLM_BIAS
    g += gate_bias[i];
    u += up_bias[i];
#endif
#ifdef AQLM_GELU
    out[row * width + i] = f16_of_f32(0.5f * g * (1.0f + tanhf(0.7978845608f * (g + 0.044715f * g * g * g))) * u);
#else
    out[row * width + i] = f16_of_f32(g / (1.0f + expf(-g)) * u);
#endif
}
