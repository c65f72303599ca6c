// GELU in its tanh approximation (Hendrycks and Gimpel 2016): g/2 (1 + tanh z) with z = sqrt(2/pi) (g +
// 0.044715 g^3).
// This is g s with s the sigmoid of 2 z, in which nothing cancels.
#pragma once

#define GELU_TWICE_ROOT 1.5957692f  // 2 sqrt(2/pi)
#define GELU_CUBIC 0.044715f

// s
__device__ __forceinline__ float gelu_share(float g) {
    return 1.0f / (1.0f + expf(-GELU_TWICE_ROOT * (g + GELU_CUBIC * g * g * g)));
}

// d 2z / dg. The slope of GELU is s + g s (1 - s) times this.
__device__ __forceinline__ float gelu_rise(float g) { return GELU_TWICE_ROOT * (1.0f + 3.0f * GELU_CUBIC * g * g); }
