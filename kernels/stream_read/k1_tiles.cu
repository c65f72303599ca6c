#include "../common.cuh"
// stream_read k1: adds up an array, to measure how fast a kernel can read memory.
//
// Parallel over: blocks take tiles of blockDim x AQLM_LOADS vectors in turn; a thread has AQLM_LOADS loads of
//   16 bytes in flight.
// from [tiles x blockDim x AQLM_LOADS] uint4; sums [gridDim] u32: the sum of all 32-bit words that the block
//   read, modulo 2^32.
// Bound: the rate at which memory is read.
// Limits: blockDim a power of two; shared memory for blockDim words.
// Compile-time: AQLM_LOADS.

extern "C" __global__ void stream_read(const uint4* from, u32* sums, int tiles) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    u32* partial = reinterpret_cast<u32*>(shared);
    u32 sum = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint4* at = from + static_cast<size_t>(tile) * blockDim.x * AQLM_LOADS + threadIdx.x;
        uint4 v[AQLM_LOADS];
#pragma unroll
        for (int i = 0; i < AQLM_LOADS; ++i) v[i] = load_once(at + static_cast<size_t>(i) * blockDim.x);
#pragma unroll
        for (int i = 0; i < AQLM_LOADS; ++i) sum += v[i].x + v[i].y + v[i].z + v[i].w;
    }
    partial[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}
