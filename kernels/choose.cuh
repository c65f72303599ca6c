// Shared by the kernels that search codes: the best codewords for many targets at once.
//
// A block of 256 threads searches for several owners (output groups), each with up to `cap` rows: its
// hypotheses, or its choices of a group's first codebooks. Scores are of the form form + <row, codeword>. The
// search goes through buckets, 256 a row: a bucket's least score is known first, for all rows from one pass
// over the codewords. The best `keep` codewords of an owner lie in the `keep` buckets with the least minima,
// because every other bucket's minimum is above `keep` scores. Only these buckets are looked at again.
//
// Compile-time: AQLM_GO, AQLM_GI, the rows and columns of a group.
#pragma once

#define THREADS 256
#define BUCKETS 256
#define WARPS 8
// Rows that share each load of a codeword.
#define ROWS 16
#define LEN (AQLM_GO * AQLM_GI)
// Codewords that a thread keeps in registers at once.
#if AQLM_GO * AQLM_GI <= 8
#define HELD 4
// Blocks that share a multiprocessor, which bounds the registers.
#define BLOCKS 2
#else
#define HELD 1
#define BLOCKS 1
#endif
// More than any key.
#define NO_KEY 1e9f

// A candidate's value and its rank among equals, an integer below 2^24.
struct Candidate {
    float value, key;
};

__device__ __forceinline__ Candidate no_candidate() { return {INFINITE, NO_KEY}; }

__device__ __forceinline__ bool precedes(const Candidate& a, const Candidate& b) {
    return a.value < b.value || (a.value == b.value && a.key < b.key);
}

// The candidate that comes first in the warp, known to all its lanes.
__device__ __forceinline__ Candidate first_of_warp(Candidate own) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        Candidate other;
        other.value = __shfl_xor_sync(WARP_MASK, own.value, step);
        other.key = __shfl_xor_sync(WARP_MASK, own.key, step);
        if (precedes(other, own)) own = other;
    }
    return own;
}

// A group's numbers from shared memory.
__device__ __forceinline__ void load_group(float (&to)[LEN], const float* from) {
#if AQLM_GO * AQLM_GI % 4 == 0
#pragma unroll
    for (int i = 0; i < LEN / 4; ++i) {
        const float4 four = reinterpret_cast<const float4*>(from)[i];
        to[i * 4] = four.x;
        to[i * 4 + 1] = four.y;
        to[i * 4 + 2] = four.z;
        to[i * 4 + 3] = four.w;
    }
#else
#pragma unroll
    for (int i = 0; i < LEN; ++i) to[i] = from[i];
#endif
}

__device__ __forceinline__ float inner(float start, const float (&a)[LEN], const float (&b)[LEN]) {
#pragma unroll
    for (int i = 0; i < LEN; ++i) start = fmaf(a[i], b[i], start);
    return start;
}

__device__ __forceinline__ float inner(float start, const float* a, const float* b) {
#pragma unroll
    for (int i = 0; i < LEN; ++i) start = fmaf(a[i], b[i], start);
    return start;
}

// The least score of each bucket for every row, least [rows, BUCKETS]. Bucket t holds the codewords t, t +
// 256, … of a codebook in global memory. `vectors` [rows, LEN] in shared memory, rows a multiple of ROWS.
__device__ __forceinline__ void least_of_codewords(const float* vectors, int rows, const float* codewords, const float* forms, int states, float* least) {
    for (int first = 0; first < rows; first += ROWS) {
        float lowest[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) lowest[r] = INFINITE;
        for (int k = threadIdx.x; k < states; k += BUCKETS * HELD) {
            // Or the compiler would keep all rows' vectors in registers, and spill.
            keep_order();
            float codeword[HELD][LEN], form[HELD];
#pragma unroll
            for (int q = 0; q < HELD; ++q) {
                const int at = k + q * BUCKETS;
                const bool there = at < states;
                load_group(codeword[q], codewords + static_cast<size_t>(there ? at : k) * LEN);
                form[q] = there ? forms[at] : INFINITE;
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float vector[LEN];
                load_group(vector, vectors + (first + r) * LEN);
#pragma unroll
                for (int q = 0; q < HELD; ++q) lowest[r] = fminf(lowest[r], inner(form[q], vector, codeword[q]));
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) least[(first + r) * BUCKETS + threadIdx.x] = lowest[r];
    }
}

// The number of the warp's one lane with `here`, known to all lanes.
__device__ __forceinline__ int lane_of_warp(bool here) {
    float lane = here ? static_cast<float>(threadIdx.x % 32) : -1.0f;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) lane = fmaxf(lane, __shfl_xor_sync(WARP_MASK, lane, step));
    return static_cast<int>(lane);
}

// The `keep` first of `count` candidates `at(e)`, whose keys differ; `take(rank, candidate)` gets them in
// order, in one lane. Returns how many there are. All lanes of a warp call it. Each lane knows the first of
// its own candidates, e = lane, lane + 32, …; when one is taken, all lanes look for the next of that lane.
template <class At, class Take> __device__ __forceinline__ int pick(int count, int keep, At at, Take take) {
    const int lane = threadIdx.x % 32;
    Candidate own = no_candidate();
    for (int e = lane; e < count; e += 32) {
        const Candidate here = at(e);
        if (here.value < INFINITE && precedes(here, own)) own = here;
    }
    int found = 0;
    while (found < keep) {
        const Candidate taken = first_of_warp(own);
        if (taken.key >= NO_KEY) break;
        if (lane == 0) take(found, taken);
        if (++found == keep) break;
        const int winner = lane_of_warp(own.key == taken.key);
        Candidate next = no_candidate();
        for (int e = winner + 32 * lane; e < count; e += 1024) {
            const Candidate here = at(e);
            if (here.value < INFINITE && precedes(taken, here) && precedes(here, next)) next = here;
        }
        next = first_of_warp(next);
        if (lane == winner) own = next;
    }
    __syncwarp();
    return found;
}

// The `keep` buckets with the least values, weight x least + offset, among an owner's `valid` rows. Writes
// row x 256 + bucket of each and returns how many there are, at least one. All lanes of a warp call it.
__device__ __forceinline__ int pick_buckets(const float* least, const float* offsets, float weight, int valid, int keep, int* picked) {
    const auto at = [&](int e) { return Candidate{fmaf(weight, least[e], offsets[e / BUCKETS]), static_cast<float>(e)}; };
    const auto take = [&](int rank, const Candidate& taken) { picked[rank] = static_cast<int>(taken.key); };
    const int count = pick(valid * BUCKETS, keep, at, take);
    if (count > 0) return count;
    // Scores beyond f32: any choice is as good.
    if (threadIdx.x % 32 == 0) picked[0] = 0;
    __syncwarp();
    return 1;
}
