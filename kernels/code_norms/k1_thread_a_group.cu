#include "../common.cuh"
#include "../training.cuh"
#include "../coded.cuh"
// code_norms k1: how far a buffer is from each group of its matrix, and the squares of the weight.
//
// Parallel over: a thread a group.
// buffer [out_groups x go, in_groups x gi] f32; codes [groups, books] u16; codebooks [books, states, go, gi]
//   f64; scales [out_groups] f64; norms [groups] f64, the squared norms of buffer - weight; squares [blocks]
//   f64, those of each block's groups of the weight.
// Arithmetic: the weight and differences are f32, squares and sums f64; the threads' sums are added by a
//   tree.
// Limits: groups below 2^31.

extern "C" __global__ void code_norms(const float* buffer, const u16* codes, const double* codebooks, const double* scales, double* norms, double* squares, int groups, int in_groups, int books, int states, int go, int gi) {
    SHARED_MEMORY;
    const size_t group = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    double norm = 0.0, of_weight = 0.0;
    if (group < static_cast<size_t>(groups)) {
        const size_t o = group / in_groups, j = group % in_groups, width = static_cast<size_t>(in_groups) * gi;
        const u16* code = codes + group * books;
        const double scale = scales[o];
        for (int a = 0; a < go; ++a) {
            const float* row = buffer + (o * go + a) * width + j * gi;
            for (int i = 0; i < gi; ++i) {
                const float weight = decoded(code, codebooks, scale, books, states, go * gi, a * gi + i);
                const double difference = row[i] - weight;
                norm += difference * difference;
                of_weight += static_cast<double>(weight) * weight;
            }
        }
        norms[group] = norm;
    }
    of_weight = sum_of_block(of_weight, reinterpret_cast<double*>(shared));
    if (threadIdx.x == 0) squares[blockIdx.x] = of_weight;
}
