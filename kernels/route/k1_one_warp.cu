#include "../common.cuh"
// route k1: the experts of one token, from the scores of the router.
//
// Parallel over: one warp. Lane l has the scores l, l + 32, and so on; each of the `used` rounds takes the
//   largest one left. Of equal scores, the expert with the lower index is chosen. A score that is not a
//   number is chosen last.
// scores [experts] f32, and with AQLM_SHARED_EXPERT one more, of the gate of the expert that every token
//   passes; chosen [used] u32, distinct; shares [used] f32: e^score over the sum of e^score of all experts,
//   or with AQLM_NORMALIZED of the chosen ones; shares[used] is the sigmoid of the gate's score.
// Arithmetic: f32; sums in a fixed order.
// Cost: bound by the launch and by `used` reductions of 10 shuffles.
// Limits: used at most experts (the host checks).
// Compile-time: AQLM_EXPERT_COUNT, AQLM_USED, AQLM_NORMALIZED, AQLM_SHARED_EXPERT.

#define ITEMS ((AQLM_EXPERT_COUNT + 31) / 32)
#define TAKEN -3e38f

extern "C" __global__ void __launch_bounds__(32) route(const float* scores, u32* chosen, float* shares) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int lane = threadIdx.x;
    float own[ITEMS];
    float most = TAKEN;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int expert = i * 32 + lane;
        own[i] = expert < AQLM_EXPERT_COUNT ? fmaxf(scores[expert], TAKEN) : 2.0f * TAKEN;
        most = fmaxf(most, own[i]);
    }
    for (int step = 16; step > 0; step >>= 1) most = fmaxf(most, __shfl_xor_sync(WARP_MASK, most, step));
    float whole = 0.0f;
#if !AQLM_NORMALIZED
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) whole += i * 32 + lane < AQLM_EXPERT_COUNT ? expf(own[i] - most) : 0.0f;
    for (int step = 16; step > 0; step >>= 1) whole += __shfl_xor_sync(WARP_MASK, whole, step);
#endif
    float exponential[AQLM_USED];
#pragma unroll
    for (int round = 0; round < AQLM_USED; ++round) {
        // Numbers of experts are exact in f32.
        float best = 2.0f * TAKEN, place = static_cast<float>(AQLM_EXPERT_COUNT);
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            if (own[i] > best) best = own[i], place = static_cast<float>(i * 32 + lane);
        }
        for (int step = 16; step > 0; step >>= 1) {
            const float other = __shfl_xor_sync(WARP_MASK, best, step), there = __shfl_xor_sync(WARP_MASK, place, step);
            if (other > best || (other == best && there < place)) best = other, place = there;
        }
        const int expert = static_cast<int>(place);
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            if (i * 32 + lane == expert) own[i] = 2.0f * TAKEN;
        }
        exponential[round] = expf(best - most);
#if AQLM_NORMALIZED
        whole += exponential[round];
#endif
        if (lane == 0) chosen[round] = static_cast<u32>(expert);
    }
    if (lane > 0) return;
#pragma unroll
    for (int round = 0; round < AQLM_USED; ++round) shares[round] = exponential[round] / whole;
#if AQLM_SHARED_EXPERT
    shares[AQLM_USED] = 1.0f / (1.0f + expf(-scores[AQLM_EXPERT_COUNT]));
#endif
}
