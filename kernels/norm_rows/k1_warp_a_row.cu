#include "../common.cuh"
#include "../training.cuh"
// norm_rows k1: RMSNorm, y = (plus + weight) x root with root = 1 / sqrt(mean(x^2) + eps).
//
// Parallel over: a warp a row, eight rows a block.
// x, y [rows, width] f32; weight [width] f32; roots [rows] f32, for the backward pass. `plus` is 0 or 1.
// Arithmetic: f32; a lane sums every 32nd square, then the lanes by a tree.
// Limits: none.

#define WARPS 8

extern "C" __global__ void norm_rows(const float* x, const float* weight, float* y, float* roots, int rows, int width, int plus, int eps_bits) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const size_t at = static_cast<size_t>(row) * width;
    float sum = 0.0f;
    for (int i = lane; i < width; i += 32) sum += x[at + i] * x[at + i];
    const float root = 1.0f / sqrtf(sum_of_warp(sum) / width + __int_as_float(eps_bits));
    if (lane == 0) roots[row] = root;
    for (int i = lane; i < width; i += 32) y[at + i] = root * x[at + i] * (static_cast<float>(plus) + weight[i]);
}
