#include "../common.cuh"
// swiglu k1: gate * sigmoid(gate) * up.
//
// Parallel over: a thread a number, a block row a row. gate, up [rows, stride] f16 with a stride each, of which `width` numbers count;
// biases [width] f32 (with AQLM_BIAS); out [rows, width] f16. Arithmetic: f32, rounded once.
// With AQLM_FETCH, blocks past the row's fetch `pieces` pieces of `piece_bytes` bytes of what the next kernel will read to L2, as rms_norm does.
// Cost at width 11008: 66 KB, all in L2: bound by the launch. Limits: none. Compile-time: AQLM_BIAS, AQLM_FETCH.

extern "C" __global__ void swiglu(const float* gate_bias, const float* up_bias, const u16* gate, const u16* up, u16* out,
#if AQLM_FETCH
                                  const unsigned char* ahead, int width, int gate_stride, int up_stride, int pieces, int piece_bytes, int apart
#else
                                  int width, int gate_stride, int up_stride
#endif
) {
    allow_next_kernel();
#if AQLM_FETCH
    const u32 own = (width + blockDim.x - 1) / blockDim.x;
    if (blockIdx.x >= own) {
        if (threadIdx.x >= 32) return;
        fetch_ahead(ahead, pieces, piece_bytes, static_cast<size_t>(apart) * 16, (blockIdx.x - own) * 32 + threadIdx.x, (gridDim.x - own) * 32);
        return;
    }
#endif
    wait_for_previous_kernel();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const size_t row = blockIdx.y;
    if (i >= static_cast<u32>(width)) return;
    float g = f32_of_f16(gate[row * gate_stride + i]), u = f32_of_f16(up[row * up_stride + i]);
#if AQLM_BIAS
    g += gate_bias[i];
    u += up_bias[i];
#endif
    out[row * width + i] = f16_of_f32(g / (1.0f + expf(-g)) * u);
}
