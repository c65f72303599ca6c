#include "../common.cuh"
#include "../experts.cuh"
// dense k1: y = W x for a weight in f16: the head, and the layers of an unquantized model.
//
// Parallel over: a warp an output row, eight loads of 16 bytes a lane in flight; a block row an input row,
//   or with AQLM_EXPERTS one of the chosen experts, whose weights follow one another.
// weight [out, in] f16; x [rows, in] f16; y [rows, out] f32 (AQLM_WIDE 1) or f16.
// Arithmetic: products and sums in f32 in a fixed order.
// Bound: reading the weight once an input row, so for few rows only; larger batches go through cuBLAS. The
//   first loads start before the previous kernel has ended. H100, 32000 x 4096: 94.9 us, 2.8 TB/s.
// Limits: in_features a multiple of AQLM_VECTOR (8 or 1).
// Compile-time: AQLM_VECTOR, AQLM_WIDE, AQLM_EXPERTS (with AQLM_WIDE 0; experts.cuh).

#define AHEAD 8
#ifdef AQLM_EXPERTS
#define X_STRIDE x_stride
#define Y_STRIDE y_stride
#else
#define X_STRIDE in_features
#define Y_STRIDE out_features
#endif

#if AQLM_VECTOR == 8
__device__ __forceinline__ float product(const uint4& w, const uint4& x) {
    float sum = low_f32(w.x) * low_f32(x.x) + high_f32(w.x) * high_f32(x.x);
    sum += low_f32(w.y) * low_f32(x.y) + high_f32(w.y) * high_f32(x.y);
    sum += low_f32(w.z) * low_f32(x.z) + high_f32(w.z) * high_f32(x.z);
    return sum + (low_f32(w.w) * low_f32(x.w) + high_f32(w.w) * high_f32(x.w));
}
#endif

extern "C" __global__ void dense(const u16* weight, const u16* x, void* y, EXPERT_POINTER int out_features, int in_features
#ifdef AQLM_EXPERTS
                                 , int x_stride, int y_stride
#endif
) {
    const int lane = threadIdx.x & 31, row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const size_t batch_row = blockIdx.y;
    allow_next_kernel();
#ifdef AQLM_EXPERTS
    wait_for_previous_kernel();  // for the choice
    weight += static_cast<size_t>(chosen[batch_row]) * out_features * in_features;
#endif
    float sum = 0.0f;
#if AQLM_VECTOR == 8
    const int vectors = row < out_features ? in_features / 8 : 0;
    const uint4* from = reinterpret_cast<const uint4*>(weight + static_cast<size_t>(row < out_features ? row : 0) * in_features);
    const uint4* inputs = reinterpret_cast<const uint4*>(x + batch_row * X_STRIDE);
    uint4 next[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
        if (i * 32 + lane < vectors) next[i] = load_once(from + i * 32 + lane);
    }
    wait_for_previous_kernel();
    for (int first = lane; first < vectors; first += AHEAD * 32) {
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int at = first + i * 32, after = at + AHEAD * 32;
            if (at < vectors) {
                sum += product(next[i], inputs[at]);
                if (after < vectors) next[i] = load_once(from + after);
            }
        }
    }
#else
    wait_for_previous_kernel();
    if (row < out_features) {
        for (int i = lane; i < in_features; i += 32) {
            sum += f32_of_f16(weight[static_cast<size_t>(row) * in_features + i]) * f32_of_f16(x[batch_row * X_STRIDE + i]);
        }
    }
#endif
    for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(WARP_MASK, sum, step);
    if (lane != 0 || row >= out_features) return;
#if AQLM_WIDE
    static_cast<float*>(y)[batch_row * Y_STRIDE + row] = sum;
#else
    static_cast<u16*>(y)[batch_row * Y_STRIDE + row] = f16_of_f32(sum);
#endif
}
