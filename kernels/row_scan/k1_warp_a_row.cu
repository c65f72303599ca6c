#include "../common.cuh"
#include "../training.cuh"
// row_scan k1: for each row its largest magnitude, and the first column whose number is not finite.
//
// Parallel over: a warp a row, eight rows a block.
// x [rows, width] f32; largest [rows] f32, which passes over NaN; bad [rows] f32: the column, or `width`.
//   Columns are exact in f32 below 2^24.
// Limits: width below 2^24.

#define WARPS 8

extern "C" __global__ void row_scan(const float* x, float* largest, float* bad, int rows, int width) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    float most = 0.0f, first = static_cast<float>(width);
    for (int i = lane; i < width; i += 32) {
        const float value = x[static_cast<size_t>(row) * width + i];
        most = fmaxf(most, fabsf(value));
        // Only infinities and NaN have all bits of the exponent.
        if ((__float_as_uint(value) & 0x7f800000u) == 0x7f800000u) first = fminf(first, static_cast<float>(i));
    }
    for (int step = 16; step > 0; step >>= 1) {
        most = fmaxf(most, __shfl_xor_sync(WARP_MASK, most, step));
        first = fminf(first, __shfl_xor_sync(WARP_MASK, first, step));
    }
    if (lane == 0) largest[row] = most, bad[row] = first;
}
