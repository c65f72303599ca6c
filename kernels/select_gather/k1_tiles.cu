#include "../common.cuh"
#include "../training.cuh"
#include "../coded.cuh"
// select_gather k1: the places of the largest numbers, in ascending order.
//
// Parallel over: a block a tile of 4,096 numbers; a thread 16 consecutive ones.
// values [count] f64; state [4] u32, of select_digit: the k-th largest, and how many equal numbers belong to
//   it; above [tiles + 1] and equal [tiles + 1] u32, prefix sums of select_tiles'; chosen u32, the places.
//   `equals` is how many numbers equal to the k-th largest are taken, the first ones; below zero, as many as
//   the state says. With AQLM_KEYS also keys u64, which ascend where the numbers descend.
// Compile-time: AQLM_KEYS.

#define EACH 16

// The sum of the values of all threads before this one.
__device__ __forceinline__ u32 sum_before(u32 own, u32* scratch) {
    __syncthreads();
    scratch[threadIdx.x] = own;
    __syncthreads();
    for (u32 step = 1; step < blockDim.x; step *= 2) {
        const u32 other = threadIdx.x >= step ? scratch[threadIdx.x - step] : 0;
        __syncthreads();
        scratch[threadIdx.x] += other;
        __syncthreads();
    }
    return scratch[threadIdx.x] - own;
}

extern "C" __global__ void select_gather(const double* values, const u32* state, const u32* above, const u32* equal, u32* chosen, unsigned long long* keys, int count, int equals) {
    SHARED_MEMORY;
    u32* scratch = reinterpret_cast<u32*>(shared);  // [threads]
    const unsigned long long last = static_cast<unsigned long long>(state[0]) << 32 | state[1];
    const u32 taken = equals < 0 ? state[2] : static_cast<u32>(equals);
    const size_t from = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * EACH;
    u32 more = 0, same = 0;
    for (size_t i = from; i < from + EACH && i < static_cast<size_t>(count); ++i) {
        const unsigned long long key = ordered(values[i]);
        more += key > last;
        same += key == last;
    }
    u32 more_before = above[blockIdx.x] + sum_before(more, scratch);
    u32 same_before = equal[blockIdx.x] + sum_before(same, scratch);
    for (size_t i = from; i < from + EACH && i < static_cast<size_t>(count); ++i) {
        const unsigned long long key = ordered(values[i]);
        if (key > last || (key == last && same_before < taken)) {
            const u32 to = more_before + (same_before < taken ? same_before : taken);
            chosen[to] = static_cast<u32>(i);
#if AQLM_KEYS
            keys[to] = ~key;
#endif
        }
        more_before += key > last;
        same_before += key == last;
    }
}
