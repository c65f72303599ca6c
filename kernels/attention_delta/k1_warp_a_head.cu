#include "../common.cuh"
#include "../training.cuh"
// attention_delta k1: for each row and head the inner product of the result of attention and its gradient. It
// equals the sum of each probability times its gradient, which the softmax's gradient needs.
//
// Parallel over: a warp a row and head, eight a block.
// out, grad [pairs, head] f32 with pairs = rows x heads; delta [pairs] f32.
// Limits: pairs below 2^31.

#define WARPS 8

extern "C" __global__ void attention_delta(const float* out, const float* grad, float* delta, int pairs, int head) {
    const int pair = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (pair >= pairs) return;
    float sum = 0.0f;
    for (int i = lane; i < head; i += 32) sum += out[static_cast<size_t>(pair) * head + i] * grad[static_cast<size_t>(pair) * head + i];
    sum = sum_of_warp(sum);
    if (lane == 0) delta[pair] = sum;
}
