#include "../common.cuh"
#include "../training.cuh"
// codeword_sums k1: adds to the gradients of codebooks: for each codeword the sum, over the groups that use
// it, of the scale times the gradient of the decoded group.
//
// Parallel over: a block a codeword. Its threads share the groups, each thread one element of every few.
//   Groups are sorted by code beforehand, so no two blocks write the same sum and no atomic is needed.
// starts [books, states + 1] u32, groups [books, out_groups x in_groups] u32: the groups of each codeword, in
//   ascending order; scales [out_groups] f64; gradient [out_groups x go, in_groups x gi] f32; sums [books,
//   states, go, gi] f64.
// Arithmetic: f64; every thread adds its groups in order, then one thread adds up the threads in order.
// Limits: none.

extern "C" __global__ void codeword_sums(const u32* starts, const u32* groups, const double* scales, const float* gradient, double* sums, int total, int states, int in_groups, int go, int gi) {
    SHARED_MEMORY;
    double* lanes = reinterpret_cast<double*>(shared);  // [threads]
    const int m = blockIdx.x / states, k = blockIdx.x % states, length = go * gi;
    const u32* range = starts + static_cast<size_t>(m) * (states + 1) + k;
    const u32 from = range[0], to = range[1];
    const u32* of_book = groups + static_cast<size_t>(m) * total;
    const size_t width = static_cast<size_t>(in_groups) * gi;
    const int together = length < static_cast<int>(blockDim.x) ? length : static_cast<int>(blockDim.x);
    const int slots = blockDim.x / together, slot = threadIdx.x / together;
    for (int base = 0; base < length; base += together) {
        const int element = base + threadIdx.x % together;
        double sum = 0.0;
        if (slot < slots && element < length) {
            for (u32 i = from + slot; i < to; i += slots) {
                const u32 group = of_book[i], o = group / in_groups, j = group % in_groups;
                const size_t at = (static_cast<size_t>(o) * go + element / gi) * width + static_cast<size_t>(j) * gi + element % gi;
                sum += scales[o] * gradient[at];
            }
        }
        __syncthreads();
        lanes[threadIdx.x] = sum;
        __syncthreads();
        if (slot == 0 && element < length) {
            for (int i = 1; i < slots; ++i) sum += lanes[i * together + threadIdx.x];
            sums[static_cast<size_t>(blockIdx.x) * length + element] += sum;
        }
    }
}
