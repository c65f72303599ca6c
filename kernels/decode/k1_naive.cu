#include "../common.cuh"
// decode k1: every scheme, no optimization.
//
// Parallel over: one thread an element of the dense weight, neighbours along the row.
// codes [out_groups, in_groups, M] u16; codebooks [M, 2^B, out_group, in_group] f16; scales [out_groups] f16;
//   y [out, in] f16 or bf16, rounded once.
// Limits: none but 16-bit codes.
// Compile-time: AQLM_M, AQLM_B, AQLM_G, AQLM_OUT_G.

extern "C" __global__ void decode(const u16* codes, const u16* codebooks, const u16* scales, u16* y, int out_features, int in_features) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= in_features) return;
    for (int row = blockIdx.y; row < out_features; row += gridDim.y) {
        const int out_group = row / AQLM_OUT_G, group = column / AQLM_G;
        float sum = 0.0f;
        for (int m = 0; m < AQLM_M; ++m) {
            const u32 code = codes[(static_cast<size_t>(out_group) * (in_features / AQLM_G) + group) * AQLM_M + m];
            sum += f32_of_f16(codebooks[((((static_cast<size_t>(m) << AQLM_B) + code) * AQLM_OUT_G) + row % AQLM_OUT_G) * AQLM_G + column % AQLM_G]);
        }
        y[static_cast<size_t>(row) * in_features + column] = y_of_f32(sum * f32_of_f16(scales[out_group]));
    }
}
