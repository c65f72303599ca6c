#include "../common.cuh"
// token_sums k1: adds to the gradient of an embedding: for each token the sum of the gradients of its places.
//
// Parallel over: a block a distinct token. Places are sorted by token beforehand, so no two blocks write the
//   same row.
// tokens [distinct] u32; starts [distinct + 1] u32; rows u32, the places of each token in ascending order;
//   gradient [rows, width] f32; sums [vocabulary, width] f64.
// Arithmetic: f64, in the order of the places; each call adds one number to each sum.
// Limits: none.

extern "C" __global__ void token_sums(const u32* tokens, const u32* starts, const u32* rows, const float* gradient, double* sums, int width) {
    const u32 from = starts[blockIdx.x], to = starts[blockIdx.x + 1];
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        double sum = 0.0;
        for (u32 place = from; place < to; ++place) sum += gradient[static_cast<size_t>(rows[place]) * width + i];
        sums[static_cast<size_t>(tokens[blockIdx.x]) * width + i] += sum;
    }
}
