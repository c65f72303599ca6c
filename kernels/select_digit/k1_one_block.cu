#include "../common.cuh"
#include "../training.cuh"
// select_digit k1: the next digit of the k-th largest number, from the highest on (radix select).
//
// Parallel over: one block, a thread a value of the digit.
// counts [256] u32, of select_count, then zeros again; state [4] u32: the digits so far, high and low word;
//   how many numbers are still to be taken among those with these digits; zero. k 0: continue; else begin,
//   with k numbers to be taken.

extern "C" __global__ void select_digit(u32* counts, u32* state, int k) {
    SHARED_MEMORY;
    u32* sums = reinterpret_cast<u32*>(shared);  // [256]: of the counts from a digit up
    const u32 digit = threadIdx.x, own = counts[digit];
    const unsigned long long before = k != 0 ? 0 : static_cast<unsigned long long>(state[0]) << 32 | state[1];
    const u32 left = k != 0 ? static_cast<u32>(k) : state[2];
    sums[digit] = own;
    __syncthreads();
    for (u32 step = 1; step < 256; step *= 2) {
        const u32 other = digit + step < 256 ? sums[digit + step] : 0;
        __syncthreads();
        sums[digit] += other;
        __syncthreads();
    }
    const u32 above = sums[digit] - own;
    if (above < left && left <= sums[digit]) {
        const unsigned long long now = before << 8 | digit;
        state[0] = static_cast<u32>(now >> 32);
        state[1] = static_cast<u32>(now);
        state[2] = left - above;
        state[3] = 0;
    }
    counts[digit] = 0;
}
