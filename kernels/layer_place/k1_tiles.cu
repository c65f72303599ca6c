#include "../common.cuh"
#include "../quantizer.cuh"
// layer_place k1: last step of a stable sort of groups by eight bits of their codes.
//
// Parallel over: as layer_count, whose counts it reads after layer_scan: where each tile's places with each
//   digit begin.
// codes [groups], `stride` numbers apart; order [groups], the places sorted so far, unless AQLM_FIRST; begins
//   [256, tiles]; sorted [groups].
// Compile-time: AQLM_FIRST.

#define THREADS 64
#define EACH 64
#define DIGITS 256

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_place(const u16* codes, const u32* order, const u32* begins, u32* sorted, int groups, int shift, int stride) {
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
    // A thread's counter becomes the number of places with the digit that earlier threads have.
    for (int digit = threadIdx.x; digit < DIGITS; digit += THREADS) {
        u16 before = 0;
        for (int t = 0; t < THREADS; ++t) {
            const u16 here = counters[digit * THREADS + t];
            counters[digit * THREADS + t] = before;
            before = static_cast<u16>(before + here);
        }
    }
    __syncthreads();
    for (int e = 0; e < EACH; ++e) {
        const int i = threadIdx.x * EACH + e;
        if (first + i >= groups) break;
        const int digit = digits[i];
        const u32 to = begins[static_cast<size_t>(digit) * gridDim.x + blockIdx.x] + counters[digit * THREADS + threadIdx.x]++;
#if AQLM_FIRST
        sorted[to] = static_cast<u32>(first + i);
#else
        sorted[to] = order[first + i];
#endif
    }
}
