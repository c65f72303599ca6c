// Soft caps of attention's scores (Gemma 2, section 2): a score s becomes cap tanh(s / cap).
//
// Compile-time: AQLM_CAPPED. Without it scores stay as they are.
#pragma once

#if AQLM_CAPPED
__device__ __forceinline__ float capped(float score, float cap) { return cap * tanhf(score / cap); }

// The slope of `capped` where its value is this.
__device__ __forceinline__ float cap_slope(float value, float cap) {
    const float t = value / cap;
    return 1.0f - t * t;
}
#else
__device__ __forceinline__ float capped(float score, float) { return score; }
__device__ __forceinline__ float cap_slope(float, float) { return 1.0f; }
#endif
