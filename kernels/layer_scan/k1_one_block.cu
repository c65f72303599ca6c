#include "../common.cuh"
#include "../quantizer.cuh"
// layer_scan k1: exclusive prefix sums of integers, in place.
//
// Parallel over: one block; a thread a run of consecutive numbers.
// counts [count].

#define THREADS 1024

extern "C" __global__ void __launch_bounds__(THREADS) layer_scan(u32* counts, int count) {
    SHARED_MEMORY(shared);
    u32* sums = reinterpret_cast<u32*>(shared);  // [THREADS]
    const int each = (count + THREADS - 1) / THREADS;
    const int from = threadIdx.x * each < count ? threadIdx.x * each : count, to = from + each < count ? from + each : count;
    u32 own = 0;
    for (int i = from; i < to; ++i) own += counts[i];
    sums[threadIdx.x] = own;
    __syncthreads();
    for (int step = 1; step < THREADS; step *= 2) {
        const u32 other = static_cast<int>(threadIdx.x) >= step ? sums[threadIdx.x - step] : 0;
        __syncthreads();
        sums[threadIdx.x] += other;
        __syncthreads();
    }
    u32 before = sums[threadIdx.x] - own;
    for (int i = from; i < to; ++i) {
        const u32 here = counts[i];
        counts[i] = before;
        before += here;
    }
}
