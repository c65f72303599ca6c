#include "../common.cuh"
#include "../training.cuh"
// norm_back k1: adds the gradient of RMSNorm with respect to its input.
//
// Parallel over: a warp a row, eight rows a block.
// x, grad_y, grad_x [rows, width] f32; weight [width] f32; roots [rows] f32 from norm_rows. `plus` is 0 or 1.
// With r the root and u = (plus + weight) grad_y: grad_x += r u - x r^3 <u, x> / width.
// Limits: none.

#define WARPS 8

extern "C" __global__ void norm_back(const float* x, const float* weight, const float* roots, const float* grad_y, float* grad_x, int rows, int width, int plus) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const size_t at = static_cast<size_t>(row) * width;
    float sum = 0.0f;
    for (int i = lane; i < width; i += 32) sum += x[at + i] * (static_cast<float>(plus) + weight[i]) * grad_y[at + i];
    const float root = roots[row];
    const float along = sum_of_warp(sum) * root * root * root / width;
    for (int i = lane; i < width; i += 32) {
        const float factor = static_cast<float>(plus) + weight[i];
        grad_x[at + i] += root * factor * grad_y[at + i] - along * x[at + i];
    }
}
