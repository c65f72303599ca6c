#include "../common.cuh"
// argmax k1: finds the likeliest token and advances the generation state to it.
//
// Parallel over: one block. Each thread takes four logits of every 4 blockDim, then a tree reduction finds
//   the best over all threads. The lowest index wins ties. logits [count] f32; chosen [.] u32, by position;
//   state {position, token, advance} u32. The token becomes the chosen one and the position grows by
//   `advance`: 1 in generation, 0 where one context is measured repeatedly.
// Cost: 128 KB for 32,000 tokens through one multiprocessor: one trip to L2 for all of them, and ten
//   barriers; H100: 6 us alone in a graph.
// Limits: count at least 1, blockDim a power of two.

extern "C" __global__ void argmax(const float* logits, u32* chosen, u32* state, int count) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    float* values = reinterpret_cast<float*>(shared);
    int* places = reinterpret_cast<int*>(values + blockDim.x);
    allow_next_kernel();
    wait_for_previous_kernel();
    float best = -__int_as_float(0x7f800000);
    int place = 0x7fffffff;
    // Four logits a load, eight loads in flight; the rest one by one.
    const int vectors = count / 4;
    for (int first = threadIdx.x; first < vectors; first += 8 * blockDim.x) {
        float4 v[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const int at = first + k * blockDim.x;
            if (at < vectors) v[k] = reinterpret_cast<const float4*>(logits)[at];
        }
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const int at = first + k * blockDim.x;
            if (at >= vectors) continue;
            if (v[k].x > best) best = v[k].x, place = at * 4;
            if (v[k].y > best) best = v[k].y, place = at * 4 + 1;
            if (v[k].z > best) best = v[k].z, place = at * 4 + 2;
            if (v[k].w > best) best = v[k].w, place = at * 4 + 3;
        }
    }
    for (int i = vectors * 4 + threadIdx.x; i < count; i += blockDim.x) {
        if (logits[i] > best) best = logits[i], place = i;
    }
    values[threadIdx.x] = best;
    places[threadIdx.x] = place;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            const float other = values[threadIdx.x + half];
            const int there = places[threadIdx.x + half];
            if (other > values[threadIdx.x] || (other == values[threadIdx.x] && there < places[threadIdx.x])) {
                values[threadIdx.x] = other;
                places[threadIdx.x] = there;
            }
        }
    }
    if (threadIdx.x == 0) {
        // If no logit is above -infinity: the first token.
        const u32 token = places[0] < count ? places[0] : 0;
        const u32 position = state[0];
        chosen[position] = token;
        state[1] = token;
        state[0] = position + state[2];
    }
}
