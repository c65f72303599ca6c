#include "../common.cuh"
#include "../training.cuh"
#include "../coded.cuh"
// select_tiles k1: how many numbers of each tile are above the k-th largest, and how many equal it.
//
// Parallel over: a block a tile of 4,096 numbers; a thread 16 consecutive ones.
// values [count] f64; state [4] u32, of select_digit: the k-th largest; above [tiles + 1] and equal [tiles +
//   1] u32, of which the last is zero, so their prefix sums end in the totals.

#define EACH 16

extern "C" __global__ void select_tiles(const double* values, const u32* state, u32* above, u32* equal, int count) {
    SHARED_MEMORY;
    u32* scratch = reinterpret_cast<u32*>(shared);  // [threads]
    const unsigned long long last = static_cast<unsigned long long>(state[0]) << 32 | state[1];
    const size_t from = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * EACH;
    u32 more = 0, same = 0;
    for (size_t i = from; i < from + EACH && i < static_cast<size_t>(count); ++i) {
        const unsigned long long key = ordered(values[i]);
        more += key > last;
        same += key == last;
    }
    more = sum_of_block(more, scratch);
    same = sum_of_block(same, scratch);
    if (threadIdx.x != 0) return;
    above[blockIdx.x] = more;
    equal[blockIdx.x] = same;
    if (blockIdx.x == gridDim.x - 1) above[gridDim.x] = equal[gridDim.x] = 0;
}
