// Template for your own matvec kernel. Copy this file, change it and benchmark it; no rebuild is needed:
//
//     aqlm bench --op matvec --scheme 2x8g8 --shape 11008x4096 --kernel my_matvec.cu
//
// The bench compiles it at run time, checks it against the reference, and times it beside the shipped
// kernels, FP16 through cuBLAS and the roofline. A wrong kernel is refused and its worst elements are shown.
//
// The `aqlm:` line below describes the launch. `like` names the shipped kernel whose operands, constants and
// launch this kernel takes. These keys change that launch: block (threads), rows_per_block (the grid covers
// all rows) and shared (bytes of dynamic shared memory).
// aqlm: like=matvec/k1_naive block=128 rows_per_block=4
//
// like=matvec/k1_naive means, all row-major: codes [out_groups, in_groups, M] u16, codebooks [M, 2^B,
// out_group, G] f16, scales [out_groups] f16, x [in_features] f16, y [out_features] f16 and the constants
// AQLM_M, AQLM_B, AQLM_G (input group size), AQLM_OUT_G. The entry is named after the operation and has C
// linkage. matmul/k1_naive is the same with x [batch, in_features], y [batch, out_features] and `int batch`
// as a last argument. decode/k1_naive has no x and writes y [out_features, in_features]. The include is
// optional. It supplies u16, u32, f16 arithmetic, loads past L1 and warp sums, and the bench pastes it in
// wherever this file lies.
#include "../common.cuh"

#if AQLM_OUT_G != 1 || AQLM_G % 8 != 0
#error "this example reads whole codewords as 16-byte vectors: out_group 1, groups of a multiple of 8"
#endif

// One warp a row; lanes stride over its input groups. A codeword and its part of x are read as 16-byte loads,
// where k1 reads 2 bytes at a time.
extern "C" __global__ void matvec(const u16* codes, const uint4* codebooks, const u16* scales, const uint4* x, u16* y, int out_features,
                                  int in_features) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= out_features) return;
    const int groups = in_features / AQLM_G, vectors = AQLM_G / 8;
    float sum = 0.0f;
    for (int j = lane; j < groups; j += 32) {
        for (int v = 0; v < vectors; ++v) {
            const uint4 input = x[j * vectors + v];
            for (int m = 0; m < AQLM_M; ++m) {
                const u32 code = codes[(static_cast<size_t>(row) * groups + j) * AQLM_M + m];
                const uint4 word = codebooks[((m << AQLM_B) + code) * vectors + v];
                sum += low_f32(word.x) * low_f32(input.x) + high_f32(word.x) * high_f32(input.x);
                sum += low_f32(word.y) * low_f32(input.y) + high_f32(word.y) * high_f32(input.y);
                sum += low_f32(word.z) * low_f32(input.z) + high_f32(word.z) * high_f32(input.z);
                sum += low_f32(word.w) * low_f32(input.w) + high_f32(word.w) * high_f32(input.w);
            }
        }
    }
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(WARP_MASK, sum, step);
    if (lane == 0) y[row] = f16_of_f32(sum * f32_of_f16(scales[row]));
}
