#include "../common.cuh"
#include "../training.cuh"
#include "../coded.cuh"
// code_decay k1: what remains of a buffer after a step: (1 - d) B + d W.
//
// Parallel over: a thread an element.
// buffer [out_groups x go, in_groups x gi] f32; codes [out_groups, in_groups, books] u16; codebooks [books,
//   states, go, gi] f64; scales [out_groups] f64. Integers: the shape, then d as a pair of words.
// Arithmetic: W is f32; f64, rounded once.
// Limits: fewer than 2^31 elements.

extern "C" __global__ void code_decay(float* buffer, const u16* codes, const double* codebooks, const double* scales, int count, int in_groups, int books, int states, int go, int gi, int d0, int d1) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(count)) return;
    const size_t width = static_cast<size_t>(in_groups) * gi;
    const size_t row = i / width, column = i % width;
    const u16* code = codes + (row / go * in_groups + column / gi) * books;
    const float weight = decoded(code, codebooks, scales[row / go], books, states, go * gi, static_cast<int>(row % go * gi + column % gi));
    const double d = f64_of(d0, d1);
    buffer[i] = static_cast<float>((1.0 - d) * buffer[i] + d * weight);
}
