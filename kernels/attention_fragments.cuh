// Fragments of the attention kernels of training on tensor cores, in tf32 with f32 sums. A block of four
// warps owns 64 rows, a warp 16 of them. Lane 4 g + t of a warp holds of a [16 x 8] result the elements (g, 2
// t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1): multiply_16x8x8 in common.cuh.
//
// A result becomes the left factor of the next product without leaving its registers: the sum over eight
// neighbours may take them in any order, so element 2 t stands for column t and element 2 t + 1 for column t
// + 4, and the right factor's rows are read in the same order.
//
// Compile-time: AQLM_HEAD.
#pragma once

#define FRAGMENT_THREADS 128
#define OWN_ROWS 64
#define OCTETS ((AQLM_HEAD + 7) / 8)
#define FRAGMENT_STRIDE (OCTETS * 8 + 4)

// To 10 bits after the point, to the nearest.
__device__ __forceinline__ float tf32_of(float f) {
#ifdef AQLM_ON_CPU
    return __uint_as_float((__float_as_uint(f) + 0x1000u) & 0xffffe000u);
#else
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(f));
    return __uint_as_float(bits);
#endif
}

// e^f for results that tf32 rounds anyway: off by at most 2 units in the last place of f32, and by |f| of
// them.
__device__ __forceinline__ float exponential(float f) {
#ifdef AQLM_ON_CPU
    return expf(f);
#else
    return __expf(f);
#endif
}

// `count` rows of one head from row `first` on, times `factor`, in tf32; zero past the sequence's end and the
// head's width. `from` and row_stride are multiples of 16 bytes where the head's width is.
__device__ __forceinline__ void load_fragments(float* to, const float* from, int first, int count, int tokens, size_t row_stride, float factor) {
#if AQLM_HEAD % 8 == 0
#pragma unroll 4
    for (int i = threadIdx.x; i < count * OCTETS * 2; i += FRAGMENT_THREADS) {
        const int row = i / (OCTETS * 2), column = i % (OCTETS * 2) * 4;
        float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + row < tokens) four = *reinterpret_cast<const float4*>(from + static_cast<size_t>(first + row) * row_stride + column);
        *reinterpret_cast<float4*>(to + row * FRAGMENT_STRIDE + column) =
            make_float4(tf32_of(factor * four.x), tf32_of(factor * four.y), tf32_of(factor * four.z), tf32_of(factor * four.w));
    }
#else
    for (int i = threadIdx.x; i < count * OCTETS * 8; i += FRAGMENT_THREADS) {
        const int row = i / (OCTETS * 8), column = i % (OCTETS * 8);
        const bool there = first + row < tokens && column < AQLM_HEAD;
        to[row * FRAGMENT_STRIDE + column] = there ? tf32_of(factor * from[static_cast<size_t>(first + row) * row_stride + column]) : 0.0f;
    }
#endif
}

// s[n] = the warp's 16 rows of `own` times rows 8 n to 8 n + 8 of `other`, transposed.
template <int N> __device__ __forceinline__ void multiply_rows(float (&s)[N][4], const float* own, const float* other) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const float* left = own + (threadIdx.x / 32 * 16 + g) * FRAGMENT_STRIDE + t;
    const float* right = other + g * FRAGMENT_STRIDE + t;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = 0.0f;
#pragma unroll 4
    for (int k = 0; k < OCTETS; ++k) {
        const float a[4] = {left[8 * k], left[8 * FRAGMENT_STRIDE + 8 * k], left[8 * k + 4], left[8 * FRAGMENT_STRIDE + 8 * k + 4]};
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float b[2] = {right[8 * n * FRAGMENT_STRIDE + 8 * k], right[8 * n * FRAGMENT_STRIDE + 8 * k + 4]};
            multiply_16x8x8(s[n], a, b);
        }
    }
}

// out += p times the rows of `other`: p's columns 8 n to 8 n + 8 belong to those rows.
template <int N> __device__ __forceinline__ void add_rows(float (&out)[OCTETS][4], const float (&p)[N][4], const float* other) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const float a[4] = {tf32_of(p[n][0]), tf32_of(p[n][2]), tf32_of(p[n][1]), tf32_of(p[n][3])};
        const float* right = other + (8 * n + 2 * t) * FRAGMENT_STRIDE + g;
#pragma unroll
        for (int k = 0; k < OCTETS; ++k) {
            const float b[2] = {right[8 * k], right[FRAGMENT_STRIDE + 8 * k]};
            multiply_16x8x8(out[k], a, b);
        }
    }
}

__device__ __forceinline__ void clear(float (&out)[OCTETS][4]) {
#pragma unroll
    for (int k = 0; k < OCTETS; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[k][i] = 0.0f;
}

// Writes the warp's rows, each times its factor: that of row g, that of row g + 8.
__device__ __forceinline__ void store_fragments(float* to, const float (&out)[OCTETS][4], int first, int tokens, size_t row_stride, float low, float high) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int k = 0; k < OCTETS; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = first + static_cast<int>(threadIdx.x) / 32 * 16 + g + i / 2 * 8, column = 8 * k + 2 * t + i % 2;
            if (row < tokens && column < AQLM_HEAD) to[static_cast<size_t>(row) * row_stride + column] = (i < 2 ? low : high) * out[k][i];
        }
}
