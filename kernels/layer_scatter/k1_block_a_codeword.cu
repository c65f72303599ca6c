#include "../common.cuh"
#include "../quantizer.cuh"
// layer_scatter k1: the adjoint of decoding: for every codeword, the sum of s^power x over the groups x that
//   use it.
//
// Parallel over: a block a codeword; parts of the block take every parts-th place, in the order of the
//   places, and their sums are added in the order of the parts.
// dense, the groups' numbers: those of weights [rows, width], or with AQLM_OF_INPUT [inputs, len], the same
//   for all output groups; scales [out groups]; starts [states + 1] and places [groups]: the groups sorted by
//   code; sums [states, len].
// Arithmetic: sums in f64.
// Compile-time: AQLM_WIDE, AQLM_OF_INPUT.

extern "C" __global__ void layer_scatter(const real* dense, const double* scales, const u32* starts, const u32* places, double* sums, int inputs,
                                         int width, int out_group, int in_group, int power) {
    SHARED_MEMORY(shared);
    double* partial = reinterpret_cast<double*>(shared);  // a thread
    const int len = out_group * in_group, threads = blockDim.x;
    const int lanes = len < threads ? len : threads, parts = threads / lanes;
    const int part = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    const u32 from = starts[blockIdx.x], to = starts[blockIdx.x + 1];
    for (int base = 0; base < len; base += lanes) {
        const int i = base + lane;
        const bool used = part < parts && i < len;
#if !AQLM_OF_INPUT
        const size_t offset = static_cast<size_t>(i / in_group) * width + i % in_group;
#endif
        double sum = 0.0;
        if (used) {
#pragma unroll 4
            for (u32 p = from + part; p < to; p += parts) {
                const u32 group = places[p], o = group / inputs, j = group % inputs;
#if AQLM_OF_INPUT
                const double x = dense[static_cast<size_t>(j) * len + i];
#else
                const double x = dense[static_cast<size_t>(o) * out_group * width + static_cast<size_t>(j) * in_group + offset];
#endif
                double weight = 1.0;
                if (power > 0) weight = scales[o];
                if (power > 1) weight *= weight;
                sum += weight * x;
            }
        }
        __syncthreads();
        partial[threadIdx.x] = sum;
        __syncthreads();
        if (part == 0 && i < len) {
            for (int other = 1; other < parts; ++other) sum += partial[other * lanes + lane];
            sums[static_cast<size_t>(blockIdx.x) * len + i] = sum;
        }
    }
}
