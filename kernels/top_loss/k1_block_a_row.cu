#include "../common.cuh"
#include "../training.cuh"
// top_loss k1: teacher_loss from a teacher of which only the likeliest tokens are known. All others form one
// outcome of probability r, compared with the student's total u of them: the loss is the sum of p (ln p - ln
// q) over listed tokens plus r (ln r - ln u). With AQLM_GRADIENT, `scale` times the gradient replaces the
// logits: q - p for listed tokens, q - r q / u for the others.
//
// Parallel over: a block a row.
// logits [rows, vocab] f32; tokens [rows, listed] u32, distinct and below vocab (the host checks them); known
//   [rows, listed] f32, ln p; rest [rows] f32, r; before [rows, listed] f32, scratch; losses [rows] f64.
// Arithmetic: exponentials in f32, sums in f64. u is summed over the other tokens themselves, because one
//   minus the listed would cancel a small remainder.
// Limits: none.
// Compile-time: AQLM_GRADIENT.

extern "C" __global__ void top_loss(float* logits, const u32* tokens, const float* known, const float* rest, float* before, double* losses, int vocab, int listed, int scale0, int scale1) {
    SHARED_MEMORY;
    double* wide = reinterpret_cast<double*>(shared);
    float* row = logits + static_cast<size_t>(blockIdx.x) * vocab;
    const size_t list = static_cast<size_t>(blockIdx.x) * listed;
    float most = minus_infinity();
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) most = fmaxf(most, row[i]);
    most = largest_of_block(most, reinterpret_cast<float*>(shared));
    double sum = 0.0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) sum += expf(row[i] - most);
    sum = sum_of_block(sum, wide);
    // Listed logits are put aside, and minus infinity in their place makes their exponentials zero.
    for (int i = threadIdx.x; i < listed; i += blockDim.x) before[list + i] = row[tokens[list + i]];
    __syncthreads();
    for (int i = threadIdx.x; i < listed; i += blockDim.x) row[tokens[list + i]] = minus_infinity();
    __syncthreads();
    double others = 0.0, loss = 0.0, total = 0.0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) others += expf(row[i] - most);
    for (int i = threadIdx.x; i < listed; i += blockDim.x) {
        const double log_p = known[list + i], p = exp(log_p);
        const double log_q = (static_cast<double>(before[list + i]) - static_cast<double>(most)) - log(sum);
        // A token of probability zero adds nothing, whatever its logarithm.
        if (p > 0.0) loss += p * (log_p - log_q);
        total += p;
    }
    others = sum_of_block(others, wide);
    loss = sum_of_block(loss, wide);
    total = sum_of_block(total, wide);
    const double unlisted = others / sum;
    const double r = unlisted > 0.0 ? static_cast<double>(rest[blockIdx.x]) : 0.0;
    total += r;
    if (threadIdx.x == 0) losses[blockIdx.x] = loss + (r > 0.0 ? r * log(r / unlisted) : 0.0);
    __syncthreads();
#if AQLM_GRADIENT
    const double scale = f64_of(scale0, scale1);
    const float factor = static_cast<float>(scale * (r > 0.0 ? total - r / unlisted : total) / sum);
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) row[i] = factor * expf(row[i] - most);
    __syncthreads();
    for (int i = threadIdx.x; i < listed; i += blockDim.x) {
        const double q = static_cast<double>(expf(before[list + i] - most)) / sum;
        row[tokens[list + i]] = static_cast<float>(scale * (total * q - exp(static_cast<double>(known[list + i]))));
    }
#else
    for (int i = threadIdx.x; i < listed; i += blockDim.x) row[tokens[list + i]] = before[list + i];
#endif
}
