#include "../common.cuh"
#include "../coded.cuh"
// decode_rows k1: decodes a weight from the f64 codebooks and scales that training keeps.
//
// Parallel over: a thread an element; neighbours read the same codes and neighbouring codebook entries.
// codes [out_groups, in_groups, books] u16; codebooks [books, states, go, gi] f64; scales [out_groups] f64;
//   weight [out_groups x go, in_groups x gi] f32.
// Arithmetic: f64, rounded once.
// Limits: fewer than 2^31 elements.

extern "C" __global__ void decode_rows(const u16* codes, const double* codebooks, const double* scales, float* weight, int count, int in_groups, int books, int states, int go, int gi) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const size_t width = static_cast<size_t>(in_groups) * gi;
    const size_t row = i / width, column = i % width;
    const u16* code = codes + (row / go * in_groups + column / gi) * books;
    const int inside = static_cast<int>(row % go * gi + column % gi);
    weight[i] = decoded(code, codebooks, scales[row / go], books, states, go * gi, inside);
}
