#include "../common.cuh"
// embed k1: copies rows of the embedding table into the residual stream.
//
// Parallel over: one thread an element; a block row a token.
// table [vocabulary, width] f16; tokens [rows] u32, each below the vocabulary's size (the host checks them);
//   hidden [rows, width] f32.
// Cost: one row of the table a token, 8 KB at width 4096; bound by the launch and two dependent loads. H100:
//   4 us alone in a graph, mostly the start of the graph.
// Limits: none.
// Compile-time: AQLM_SCALED for a factor of all embeddings.

extern "C" __global__ void embed(const u16* table, const u32* tokens, float* hidden, int width
#ifdef AQLM_SCALED
                                 , int scale_bits
#endif
) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const u32 row = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= static_cast<u32>(width)) return;
#ifdef AQLM_SCALED
    hidden[static_cast<size_t>(row) * width + i] = __int_as_float(scale_bits) * f32_of_f16(table[static_cast<size_t>(tokens[row]) * width + i]);
#else
    hidden[static_cast<size_t>(row) * width + i] = f32_of_f16(table[static_cast<size_t>(tokens[row]) * width + i]);
#endif
}
