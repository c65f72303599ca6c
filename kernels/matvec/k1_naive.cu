#include "../common.cuh"
#include "../experts.cuh"
// matvec k1: every scheme, no optimization. The first rung of the ladder, and the fallback where no faster
// kernel applies.
//
// Parallel over: one warp a row; lanes stride over the row's input groups.
// codes [out_groups, in_groups, M] u16; codebooks [M, 2^B, out_group, in_group] f16; scales [out_groups] f16;
//   x [in], y [out] f16 or bf16.
// Cost a group: M gathers of G f16 out of L1/L2.
// Limits: none but 16-bit codes.
// Compile-time: AQLM_M, AQLM_B, AQLM_G, AQLM_OUT_G, AQLM_EXPERTS (experts.cuh).

extern "C" __global__ void matvec(const u16* codes, const u16* codebooks, const u16* scales, const u16* x, u16* y, EXPERT_POINTER
                                  int out_features, int in_features EXPERT_SIZES
#ifdef AQLM_EXPERTS
                                  , int codes_stride, int codebooks_stride, int scales_stride
#endif
) {
    allow_next_kernel();
    wait_for_previous_kernel();
#ifdef AQLM_EXPERTS
    const u32 expert = chosen[SLOT];
    codes = of_expert(codes, expert, codes_stride);
    codebooks = of_expert(codebooks, expert, codebooks_stride);
    scales = of_expert(scales, expert, scales_stride);
    x += static_cast<size_t>(SLOT) * x_stride;
    y += static_cast<size_t>(SLOT) * y_stride;
#endif
    const int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const int lane = threadIdx.x & 31;
    if (row >= out_features) return;
    const int out_group = row / AQLM_OUT_G, row_in_group = row % AQLM_OUT_G;
    const int groups = in_features / AQLM_G;
    float sum = 0.0f;
    for (int j = lane; j < groups; j += 32) {
        for (int m = 0; m < AQLM_M; ++m) {
            const u32 code = codes[(static_cast<size_t>(out_group) * groups + j) * AQLM_M + m];
            const u16* word = codebooks + (((static_cast<size_t>(m) << AQLM_B) + code) * AQLM_OUT_G + row_in_group) * AQLM_G;
            for (int i = 0; i < AQLM_G; ++i) sum += f32_of_f16(word[i]) * f32_of_x(x[j * AQLM_G + i]);
        }
    }
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(WARP_MASK, sum, step);
    if (lane == 0) y[row] = y_of_f32(sum * f32_of_f16(scales[out_group]));
}
