// Tiles of the attention kernels of training: TILE rows of one head in shared memory, products of two tiles
// in registers of 256 threads. Thread 16 y + x owns MICRO rows from MICRO y on and every 16th column from x
// on, so that its loads of neighbouring rows lie in different banks.
//
// Compile-time: AQLM_HEAD, AQLM_TILE (16, 32 or 64).
#pragma once

#define ATTENTION_THREADS 256
#define TILE AQLM_TILE
#define MICRO (TILE / 16)
#define PADDED ((AQLM_HEAD + 15) / 16 * 16)
#define STRIDE (PADDED + 1)
#define COLUMNS (PADDED / 16)
#define SCORE_STRIDE (TILE + 1)

// Rows `first` to first + TILE of one head, times `factor`; zero past the sequence's end and the head's
// width.
__device__ __forceinline__ void load_tile(float* to, const float* from, int first, int tokens, size_t row_stride, float factor) {
    for (int i = threadIdx.x; i < TILE * PADDED; i += ATTENTION_THREADS) {
        const int row = i / PADDED, column = i % PADDED;
        const bool there = first + row < tokens && column < AQLM_HEAD;
        to[row * STRIDE + column] = there ? factor * from[static_cast<size_t>(first + row) * row_stride + column] : 0.0f;
    }
}

// Inner products of the rows of two tiles.
__device__ __forceinline__ void inner_products(float (&s)[MICRO][MICRO], const float* a, const float* b) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < MICRO; ++i)
#pragma unroll
        for (int j = 0; j < MICRO; ++j) s[i][j] = 0.0f;
#pragma unroll 8
    for (int d = 0; d < AQLM_HEAD; ++d) {
        float left[MICRO], right[MICRO];
#pragma unroll
        for (int i = 0; i < MICRO; ++i) left[i] = a[(y * MICRO + i) * STRIDE + d];
#pragma unroll
        for (int j = 0; j < MICRO; ++j) right[j] = b[(x + 16 * j) * STRIDE + d];
#pragma unroll
        for (int i = 0; i < MICRO; ++i)
#pragma unroll
            for (int j = 0; j < MICRO; ++j) s[i][j] += left[i] * right[j];
    }
}

__device__ __forceinline__ void store_scores(float* to, const float (&s)[MICRO][MICRO]) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < MICRO; ++i)
#pragma unroll
        for (int j = 0; j < MICRO; ++j) to[(y * MICRO + i) * SCORE_STRIDE + x + 16 * j] = s[i][j];
}

// out += scores rows, or their transpose.
template <bool TRANSPOSED> __device__ __forceinline__ void add_product(float (&out)[MICRO][COLUMNS], const float* scores, const float* rows) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 8
    for (int k = 0; k < TILE; ++k) {
        float left[MICRO], right[COLUMNS];
#pragma unroll
        for (int i = 0; i < MICRO; ++i) left[i] = TRANSPOSED ? scores[k * SCORE_STRIDE + y * MICRO + i] : scores[(y * MICRO + i) * SCORE_STRIDE + k];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) right[c] = rows[k * STRIDE + x + 16 * c];
#pragma unroll
        for (int i = 0; i < MICRO; ++i)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) out[i][c] += left[i] * right[c];
    }
}

__device__ __forceinline__ void clear(float (&out)[MICRO][COLUMNS]) {
#pragma unroll
    for (int i = 0; i < MICRO; ++i)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) out[i][c] = 0.0f;
}

// Writes this thread's part of rows `first` to first + TILE of one head.
__device__ __forceinline__ void store_rows(float* to, const float (&out)[MICRO][COLUMNS], int first, int tokens, size_t row_stride) {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < MICRO; ++i) {
        const int row = first + y * MICRO + i;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            const int column = x + 16 * c;
            if (row < tokens && column < AQLM_HEAD) to[static_cast<size_t>(row) * row_stride + column] = out[i][c];
        }
    }
}
