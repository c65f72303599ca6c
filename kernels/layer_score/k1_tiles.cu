#include "../common.cuh"
#include "../quantizer.cuh"
// layer_score k1: the codeword of the least score, form - 2 <x, c>, for every point x.
//
// Parallel over: a thread AQLM_POINTS points in registers; a block row an input group, whose points lie
//   `inputs` points apart and share the forms. Codewords pass through shared memory, 128 at a time.
// points [rows, inputs, LEN]; codewords [states, LEN]; forms [inputs, states], [1, states] with inputs 1;
//   codes [rows, inputs]; changed becomes 1 when a code changes.
// Arithmetic: f32, one order for all codewords. Among equals the lowest code wins; with `keep` the code that
//   a point has stays unless another is strictly better.
// Bound: LEN + 1 instructions for a point and codeword: the minimum is kept over 16 codewords, and only the
//   best 16 are looked at again for the code itself.
// Compile-time: AQLM_LEN.

#define THREADS 128
#define TILE 128
#define CHUNK 16
#if AQLM_LEN <= 8
#define POINTS 4
#elif AQLM_LEN <= 16
#define POINTS 2
#else
#define POINTS 1
#endif

__device__ __forceinline__ float score_of(const float (&x)[AQLM_LEN], const float* codeword, float form) {
    float score = form;
#pragma unroll
    for (int i = 0; i < AQLM_LEN; ++i) score = fmaf(x[i], codeword[i], score);
    return score;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_score(const float* points, const float* codewords, const float* forms, u16* codes, int* changed, int rows, int inputs, int states, int keep) {
    SHARED_MEMORY(shared);
    float* tile = reinterpret_cast<float*>(shared);  // [TILE, LEN], then the forms
    float* form = tile + TILE * AQLM_LEN;
    const int input = blockIdx.y;
    const float* own_forms = forms + static_cast<size_t>(input) * states;
    float x[POINTS][AQLM_LEN], best[POINTS];
    int at[POINTS];
    size_t index[POINTS];
    bool there[POINTS];
#pragma unroll
    for (int p = 0; p < POINTS; ++p) {
        const int row = (blockIdx.x * POINTS + p) * THREADS + threadIdx.x;
        there[p] = row < rows;
        index[p] = static_cast<size_t>(there[p] ? row : 0) * inputs + input;
#pragma unroll
        for (int i = 0; i < AQLM_LEN; ++i) x[p][i] = -2.0f * points[index[p] * AQLM_LEN + i];
        best[p] = INFINITE;
        at[p] = 0;
    }
    for (int first = 0; first < states; first += TILE) {
        __syncthreads();
        for (int i = threadIdx.x; i < TILE * AQLM_LEN; i += THREADS) {
            tile[i] = first + i / AQLM_LEN < states ? codewords[static_cast<size_t>(first) * AQLM_LEN + i] : 0.0f;
        }
        for (int i = threadIdx.x; i < TILE; i += THREADS) form[i] = first + i < states ? own_forms[first + i] : INFINITE;
        __syncthreads();
        for (int chunk = 0; chunk < TILE; chunk += CHUNK) {
            float least[POINTS];
#pragma unroll
            for (int p = 0; p < POINTS; ++p) least[p] = INFINITE;
#pragma unroll 4
            for (int k = chunk; k < chunk + CHUNK; ++k) {
                float codeword[AQLM_LEN];
#if AQLM_LEN % 4 == 0
                const float4* from = reinterpret_cast<const float4*>(tile + k * AQLM_LEN);
#pragma unroll
                for (int i = 0; i < AQLM_LEN / 4; ++i) {
                    const float4 four = from[i];
                    codeword[i * 4] = four.x;
                    codeword[i * 4 + 1] = four.y;
                    codeword[i * 4 + 2] = four.z;
                    codeword[i * 4 + 3] = four.w;
                }
#else
#pragma unroll
                for (int i = 0; i < AQLM_LEN; ++i) codeword[i] = tile[k * AQLM_LEN + i];
#endif
                const float own = form[k];
#pragma unroll
                for (int p = 0; p < POINTS; ++p) least[p] = fminf(least[p], score_of(x[p], codeword, own));
            }
#pragma unroll
            for (int p = 0; p < POINTS; ++p) {
                if (least[p] < best[p]) {
                    best[p] = least[p];
                    at[p] = first + chunk;
                }
            }
        }
    }
    bool moved = false;
#pragma unroll
    for (int p = 0; p < POINTS; ++p) {
        if (!there[p]) continue;
        int code = at[p];
        for (int k = at[p]; k < at[p] + CHUNK && k < states; ++k) {
            if (score_of(x[p], codewords + static_cast<size_t>(k) * AQLM_LEN, own_forms[k]) == best[p]) {
                code = k;
                break;
            }
        }
        const int before = codes[index[p]];
        if (keep) {
            const float current = score_of(x[p], codewords + static_cast<size_t>(before) * AQLM_LEN, own_forms[before]);
            const bool better = best[p] < current;
            if (!better) code = before;
        }
        moved |= code != before;
        codes[index[p]] = static_cast<u16>(code);
    }
    if (moved) *changed = 1;
}
