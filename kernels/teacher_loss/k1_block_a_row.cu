#include "../common.cuh"
#include "../training.cuh"
// teacher_loss k1: the Kullback-Leibler divergence of each row's distribution q from the teacher's p: the sum
// of p (ln p - ln q). With AQLM_GRADIENT, `scale` times the gradient, q - p, replaces the logits.
//
// Parallel over: a block a row.
// logits, teacher [rows, vocab] f32; losses [rows] f64.
// Arithmetic: exponentials in f32 relative to the largest logit, sums in f64.
// Limits: none.
// Compile-time: AQLM_GRADIENT.

extern "C" __global__ void teacher_loss(float* logits, const float* teacher, double* losses, int vocab, int scale0, int scale1) {
    SHARED_MEMORY;
    float* narrow = reinterpret_cast<float*>(shared);
    double* wide = reinterpret_cast<double*>(shared);
    float* student = logits + static_cast<size_t>(blockIdx.x) * vocab;
    const float* other = teacher + static_cast<size_t>(blockIdx.x) * vocab;
    float most_q = minus_infinity(), most_p = minus_infinity();
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) most_q = fmaxf(most_q, student[i]), most_p = fmaxf(most_p, other[i]);
    most_q = largest_of_block(most_q, narrow);
    most_p = largest_of_block(most_p, narrow);
    double sum_q = 0.0, sum_p = 0.0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) sum_q += expf(student[i] - most_q), sum_p += expf(other[i] - most_p);
    sum_q = sum_of_block(sum_q, wide);
    sum_p = sum_of_block(sum_p, wide);
    // ln p - ln q is the difference of the logits plus this.
    const double offset = (static_cast<double>(most_q) + log(sum_q)) - (static_cast<double>(most_p) + log(sum_p));
#if AQLM_GRADIENT
    const double scale = f64_of(scale0, scale1);
    const float factor_q = static_cast<float>(scale / sum_q), factor_p = static_cast<float>(scale / sum_p);
#endif
    double loss = 0.0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        const float p = expf(other[i] - most_p);
        loss += static_cast<double>(p) * ((static_cast<double>(other[i]) - static_cast<double>(student[i])) + offset);
#if AQLM_GRADIENT
        student[i] = factor_q * expf(student[i] - most_q) - factor_p * p;
#endif
    }
    loss = sum_of_block(loss, wide);
    if (threadIdx.x == 0) losses[blockIdx.x] = loss / sum_p;
}
