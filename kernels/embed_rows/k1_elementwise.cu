#include "../common.cuh"
// embed_rows k1: copies rows of an f32 embedding table.
//
// Parallel over: a thread an element; a block 256 elements of a token's row.
// table [vocabulary, width] f32; tokens [rows] u32, each below the vocabulary's size (the host checks them);
//   hidden [rows, width] f32.
// Limits: none.

extern "C" __global__ void embed_rows(const float* table, const u32* tokens, float* hidden, int width) {
    const int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    hidden[static_cast<size_t>(blockIdx.x) * width + i] = table[static_cast<size_t>(tokens[blockIdx.x]) * width + i];
}
