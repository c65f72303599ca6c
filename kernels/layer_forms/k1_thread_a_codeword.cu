#include "../common.cuh"
#include "../quantizer.cuh"
// layer_forms k1: the squared length of every codeword under each input group's metric.
//
// Parallel over: a thread a codeword; a block row an input group.
// codewords [states, out_group x in_group]; metrics, row stride `stride`, the blocks of consecutive input
//   groups `next` numbers apart; forms [input groups, states], those of consecutive input groups `apart`
//   codebooks apart.
// AQLM_METRIC 0: the identity. 1: a symmetric B, <c B, c>. 2: a lower triangular L, |c L|^2.
// Compile-time: AQLM_METRIC.

extern "C" __global__ void layer_forms(const float* codewords, const float* metrics, float* forms, int states, int out_group, int in_group, int stride, int next,
                                       int apart) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= states) return;
    const int len = out_group * in_group;
    const float* codeword = codewords + static_cast<size_t>(k) * len;
    float form = 0.0f;
#if AQLM_METRIC == 0
    for (int i = 0; i < len; ++i) form = fmaf(codeword[i], codeword[i], form);
#else
    const float* metric = metrics + static_cast<size_t>(blockIdx.y) * next;
    for (int a = 0; a < out_group; ++a) {
        const float* row = codeword + a * in_group;
        for (int j = 0; j < in_group; ++j) {
            float image = 0.0f;
            for (int i = AQLM_METRIC == 2 ? j : 0; i < in_group; ++i) image = fmaf(row[i], metric[static_cast<size_t>(i) * stride + j], image);
            form = fmaf(AQLM_METRIC == 2 ? image : row[j], image, form);
        }
    }
#endif
    forms[static_cast<size_t>(blockIdx.y) * apart * states + k] = form;
}
