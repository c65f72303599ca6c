#include "../common.cuh"
// stream_copy k1: copies an array, to measure how fast a kernel can read and write memory.
//
// Parallel over: blocks take tiles of blockDim x AQLM_LOADS vectors in turn; a thread has AQLM_LOADS loads of
//   16 bytes in flight.
// from, to [tiles x blockDim x AQLM_LOADS] uint4.
// Bound: the rate at which memory is read and written.
// Limits: none.
// Compile-time: AQLM_LOADS.

extern "C" __global__ void stream_copy(const uint4* from, uint4* to, int tiles) {
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const size_t first = static_cast<size_t>(tile) * blockDim.x * AQLM_LOADS + threadIdx.x;
        uint4 v[AQLM_LOADS];
#pragma unroll
        for (int i = 0; i < AQLM_LOADS; ++i) v[i] = load_once(from + first + static_cast<size_t>(i) * blockDim.x);
#pragma unroll
        for (int i = 0; i < AQLM_LOADS; ++i) to[first + static_cast<size_t>(i) * blockDim.x] = v[i];
    }
}
