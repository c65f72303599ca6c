#include "../common.cuh"
// rotate_rows k1: rotary position embedding in place, in the rotate-half convention: element i of a head
// turns with element i + half; what is beyond the first 2 half elements stays.
//
// Parallel over: a thread a pair.
// cosines, sines [positions, half] f32; x [rows, heads x width] f32, whose row r is at position r mod
//   tokens. `sign` is 1, or -1 for the transpose, which gradients need.
// Limits: rows x heads x half below 2^31.

extern "C" __global__ void rotate_rows(const float* cosines, const float* sines, float* x, int rows, int tokens, int heads, int width, int half, int sign) {
    const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int i = static_cast<int>(at % half), head = static_cast<int>(at / half % heads);
    const size_t row = at / half / heads;
    if (row >= static_cast<size_t>(rows)) return;
    const size_t angle = row % tokens * half + i;
    const float cosine = cosines[angle], sine = static_cast<float>(sign) * sines[angle];
    float* first = x + (row * heads + head) * width + i;
    const float a = first[0], b = first[half];
    first[0] = a * cosine - b * sine;
    first[half] = b * cosine + a * sine;
}
