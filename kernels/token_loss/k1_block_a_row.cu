#include "../common.cuh"
#include "../training.cuh"
// token_loss k1: the negative log-likelihood of each row's target. With AQLM_GRADIENT, `scale` times the
// gradient replaces the logits: softmax minus the target's indicator.
//
// Parallel over: a block a row.
// logits [rows, vocab] f32; targets [rows] u32, each below vocab (the host checks them); losses [rows] f64.
// Arithmetic: exponentials in f32 relative to the largest logit, their sum in f64. A NaN anywhere makes the
//   loss NaN.
// Limits: none.
// Compile-time: AQLM_GRADIENT.

extern "C" __global__ void token_loss(float* logits, const u32* targets, double* losses, int vocab, int scale0, int scale1) {
    SHARED_MEMORY;
    float* row = logits + static_cast<size_t>(blockIdx.x) * vocab;
    float most = minus_infinity();
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) most = fmaxf(most, row[i]);
    most = largest_of_block(most, reinterpret_cast<float*>(shared));
    double sum = 0.0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) sum += expf(row[i] - most);
    sum = sum_of_block(sum, reinterpret_cast<double*>(shared));
    const u32 target = targets[blockIdx.x];
    if (threadIdx.x == 0) losses[blockIdx.x] = log(sum) + (static_cast<double>(most) - static_cast<double>(row[target]));
#if AQLM_GRADIENT
    __syncthreads();
    const double scale = f64_of(scale0, scale1);
    const float factor = static_cast<float>(scale / sum);
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        const float value = factor * expf(row[i] - most);
        row[i] = static_cast<u32>(i) == target ? value - static_cast<float>(scale) : value;
    }
#endif
}
