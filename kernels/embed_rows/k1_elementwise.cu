#include "../common.cuh"
// embed_rows k1: rows of an f32 table, each number times a factor.
//
// Parallel over: a thread an element; a block 256 elements of a token's row.
// table [vocabulary, width] f32; tokens [rows] u32, each below the vocabulary's size (the host checks them);
//   hidden [rows, width] f32.
// Limits: none.

extern "C" __global__ void embed_rows(const float* table, const u32* tokens, float* hidden, int width, int factor_bits) {
    const int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    hidden[static_cast<size_t>(blockIdx.x) * width + i] = __int_as_float(factor_bits) * table[static_cast<size_t>(tokens[blockIdx.x]) * width + i];
}
