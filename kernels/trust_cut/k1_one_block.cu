#include "../common.cuh"
#include "../training.cuh"
// trust_cut k1: how many changes are kept, in their order: one more than those whose joint norm stays below a
//   share of the weight's.
//
// Parallel over: one block; a thread a run of consecutive changes.
// changes [count] f64, squared norms; order [count] u32, the numbers of the changes by priority; squares
//   [parts] f64, whose sum is the weight's squared norm; kept [1] u32. Integers: count, parts, then the share
//   as a pair of words.
// Arithmetic: f64; every thread adds its run in order; the runs are added in one order, too.

extern "C" __global__ void trust_cut(const double* changes, const u32* order, const double* squares, u32* kept, int count, int parts, int share0, int share1) {
    SHARED_MEMORY;
    double* scratch = reinterpret_cast<double*>(shared);  // [threads]
    u32* firsts = reinterpret_cast<u32*>(scratch + blockDim.x);
    double weight = 0.0;
    for (int i = threadIdx.x; i < parts; i += blockDim.x) weight += squares[i];
    const double bound = f64_of(share0, share1) * sqrt(sum_of_block(weight, scratch));
    const int each = (count + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x), mine = static_cast<int>(threadIdx.x) * each;
    const int from = mine < count ? mine : count, to = from + each < count ? from + each : count;
    double own = 0.0;
    for (int i = from; i < to; ++i) own += changes[order[i]];
    __syncthreads();
    scratch[threadIdx.x] = own;
    __syncthreads();
    for (u32 step = 1; step < blockDim.x; step *= 2) {
        const double other = threadIdx.x >= step ? scratch[threadIdx.x - step] : 0.0;
        __syncthreads();
        scratch[threadIdx.x] += other;
        __syncthreads();
    }
    double sum = threadIdx.x > 0 ? scratch[threadIdx.x - 1] : 0.0;
    u32 first = static_cast<u32>(count);
    for (int i = from; i < to; ++i) {
        sum += changes[order[i]];
        // NaN ends the changes, too.
        if (!(sqrt(sum) < bound)) {
            first = static_cast<u32>(i + 1);
            break;
        }
    }
    firsts[threadIdx.x] = first;
    __syncthreads();
    for (u32 step = blockDim.x / 2; step > 0; step >>= 1) {
        if (threadIdx.x < step && firsts[threadIdx.x + step] < firsts[threadIdx.x]) firsts[threadIdx.x] = firsts[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) kept[0] = firsts[0];
}
