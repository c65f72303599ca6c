#include "../common.cuh"
#include "../training.cuh"
// scale_sums k1: adds to the gradients of scales: for each output group the inner product of the gradient and
// the decoded rows before scaling.
//
// Parallel over: a block an output group.
// codes [out_groups, in_groups, books] u16; codebooks [books, states, go, gi] f64; gradient [out_groups x go,
//   in_groups x gi] f32; sums [out_groups] f64.
// Arithmetic: f64; every thread adds its elements in order, then the threads by a tree.
// Limits: none. A scale of zero needs no case of its own, because the codewords are read, not the weight.

extern "C" __global__ void scale_sums(const u16* codes, const double* codebooks, const float* gradient, double* sums, int in_groups, int books, int states, int go, int gi) {
    SHARED_MEMORY;
    const int width = in_groups * gi;
    const size_t group = blockIdx.x;
    double sum = 0.0;
    for (int a = 0; a < go; ++a) {
        const float* row = gradient + (group * go + a) * width;
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            const u16* code = codes + (group * in_groups + i / gi) * books;
            double weight = 0.0;
            for (int m = 0; m < books; ++m) weight += codebooks[((static_cast<size_t>(m) * states + code[m]) * go + a) * gi + i % gi];
            sum += weight * row[i];
        }
    }
    sum = sum_of_block(sum, reinterpret_cast<double*>(shared));
    if (threadIdx.x == 0) sums[group] += sum;
}
