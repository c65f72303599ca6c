#include "../common.cuh"
#include "../quantizer.cuh"
// layer_count k1: first step of a stable sort of groups by eight bits of their codes.
//
// Parallel over: a block a tile of 4,096 places; a thread 64 consecutive ones, which it counts in its own
//   counters, so no order is left to chance.
// codes [groups], `stride` numbers apart; order [groups], the places sorted so far, unless AQLM_FIRST; counts
//   [256, tiles].
// Compile-time: AQLM_FIRST (the places are in their own order).

#define THREADS 64
#define EACH 64
#define DIGITS 256

extern "C" __global__ void __launch_bounds__(THREADS) layer_count(const u16* codes, const u32* order, u32* counts, int groups, int shift, int stride) {
    SHARED_MEMORY(shared);
    u16* counters = reinterpret_cast<u16*>(shared);  // [DIGITS, THREADS]
    unsigned char* digits = shared + DIGITS * THREADS * 2;
    const int first = blockIdx.x * THREADS * EACH;
    for (int i = threadIdx.x; i < DIGITS * THREADS; i += THREADS) counters[i] = 0;
    for (int i = threadIdx.x; i < THREADS * EACH; i += THREADS) {
        if (first + i >= groups) continue;
#if AQLM_FIRST
        digits[i] = static_cast<unsigned char>(codes[static_cast<size_t>(first + i) * stride] >> shift);
#else
        digits[i] = static_cast<unsigned char>(codes[static_cast<size_t>(order[first + i]) * stride] >> shift);
#endif
    }
    __syncthreads();
    for (int e = 0; e < EACH; ++e) {
        const int i = threadIdx.x * EACH + e;
        if (first + i < groups) ++counters[digits[i] * THREADS + threadIdx.x];
    }
    __syncthreads();
    for (int digit = threadIdx.x; digit < DIGITS; digit += THREADS) {
        u32 sum = 0;
        for (int t = 0; t < THREADS; ++t) sum += counters[digit * THREADS + (t + threadIdx.x) % THREADS];
        counts[static_cast<size_t>(digit) * gridDim.x + blockIdx.x] = sum;
    }
}
