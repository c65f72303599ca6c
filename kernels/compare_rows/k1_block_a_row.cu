#include "../common.cuh"
#include "../training.cuh"
// compare_rows k1: the next-token distributions of two models at each row. The results are the divergence of
// q, the model's, from p, the dense model's; both losses of the row's token; the dense model's largest
// probability; and whether both find the same token likeliest, of equal ones the smallest id.
//
// Parallel over: a block a row.
// dense, model [rows, vocab] f32, logits; targets [rows] u32, each below vocab (the host checks them);
//   numbers [rows, 4] f64: divergence, dense loss, loss, largest probability; same [rows] u32: 0 or 1.
// Arithmetic: f64, relative to the largest logit. A NaN anywhere makes the divergence NaN.
// Limits: none.

namespace {
// The likeliest token so far: the first of the largest logits.
struct Likeliest {
    float logit = minus_infinity();
    u32 token = 0xffffffffu;
    __device__ void take(float other, u32 index) {
        if (other > logit || (other == logit && index < token)) logit = other, token = index;
    }
};

// Of the block, the same in all threads.
__device__ Likeliest of_block(Likeliest own, unsigned char* shared) {
    float* logits = reinterpret_cast<float*>(shared);
    u32* tokens = reinterpret_cast<u32*>(logits + blockDim.x);
    __syncthreads();
    logits[threadIdx.x] = own.logit;
    tokens[threadIdx.x] = own.token;
    __syncthreads();
    for (u32 step = blockDim.x / 2; step > 0; step >>= 1) {
        if (threadIdx.x < step) {
            own.take(logits[threadIdx.x + step], tokens[threadIdx.x + step]);
            logits[threadIdx.x] = own.logit;
            tokens[threadIdx.x] = own.token;
        }
        __syncthreads();
    }
    own.logit = logits[0];
    own.token = tokens[0];
    return own;
}
}  // namespace

extern "C" __global__ void compare_rows(const float* dense, const float* model, const u32* targets,
                                        double* numbers, u32* same, int vocab) {
    SHARED_MEMORY;
    double* wide = reinterpret_cast<double*>(shared);
    const float* p = dense + static_cast<size_t>(blockIdx.x) * vocab;
    const float* q = model + static_cast<size_t>(blockIdx.x) * vocab;
    Likeliest top_p, top_q;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        top_p.take(p[i], static_cast<u32>(i));
        top_q.take(q[i], static_cast<u32>(i));
    }
    top_p = of_block(top_p, shared);
    top_q = of_block(top_q, shared);
    const double most_p = top_p.logit, most_q = top_q.logit;
    double sum_p = 0.0, sum_q = 0.0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        sum_p += exp(static_cast<double>(p[i]) - most_p);
        sum_q += exp(static_cast<double>(q[i]) - most_q);
    }
    sum_p = sum_of_block(sum_p, wide);
    sum_q = sum_of_block(sum_q, wide);
    const double log_p = log(sum_p), log_q = log(sum_q);
    double divergence = 0.0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        // A token without probability in the dense model adds nothing: its infinity must not meet the zero.
        if (p[i] == minus_infinity()) continue;
        const double of_p = (static_cast<double>(p[i]) - most_p) - log_p;
        const double of_q = (static_cast<double>(q[i]) - most_q) - log_q;
        divergence += exp(of_p) * (of_p - of_q);
    }
    divergence = sum_of_block(divergence, wide);
    if (threadIdx.x > 0) return;
    const u32 target = targets[blockIdx.x];
    double* row = numbers + static_cast<size_t>(blockIdx.x) * 4;
    row[0] = divergence;
    row[1] = log_p - (static_cast<double>(p[target]) - most_p);
    row[2] = log_q - (static_cast<double>(q[target]) - most_q);
    row[3] = exp(-log_p);
    same[blockIdx.x] = top_p.token == top_q.token;
}
