#include "../common.cuh"
#include "../training.cuh"
#include "../coded.cuh"
// select_count k1: how often each value of a digit occurs among the numbers that agree with the digits
//   chosen before. Part of the search for the k-th largest number (radix select).
//
// Parallel over: a block a tile of 4,096 numbers.
// values [count] f64; state [4] u32, of select_digit: the digits so far, high and low word; counts [256] u32,
//   to which this adds. A number's digits are the bytes of `ordered`, from the highest; digit `shift` / 8
//   from the lowest is counted.
// Counts are integers, so the order of their additions changes nothing.

#define TILE 4096
#define DIGITS 256

extern "C" __global__ void select_count(const double* values, const u32* state, u32* counts, int count, int shift) {
    SHARED_MEMORY;
    u32* own = reinterpret_cast<u32*>(shared);  // [DIGITS]
    for (int i = threadIdx.x; i < DIGITS; i += blockDim.x) own[i] = 0;
    __syncthreads();
    const size_t from = static_cast<size_t>(blockIdx.x) * TILE;
    const unsigned long long before = static_cast<unsigned long long>(state[0]) << 32 | state[1];
    for (size_t i = from + threadIdx.x; i < from + TILE && i < static_cast<size_t>(count); i += blockDim.x) {
        const unsigned long long key = ordered(values[i]);
        // A shift by all 64 bits is undefined.
        if (shift == 56 || key >> (shift + 8) == before) atomicAdd(own + (key >> shift & 255), 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < DIGITS; i += blockDim.x) {
        if (own[i] != 0) atomicAdd(counts + i, own[i]);
    }
}
