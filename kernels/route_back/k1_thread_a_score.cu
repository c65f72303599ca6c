#include "../common.cuh"
// route_back k1: the gradient of a router's scores, given those of its factors. The choice of experts has
// none.
//
// Parallel over: a thread a score.
// probabilities, grad_scores [rows, experts] f32; chosen [rows, used] u32 and weights [rows, used] f32 from
//   route_rows; places [rows, used] u32: where the gradient of a factor stands in grad_weights [rows x used]
//   f32. With g_e those of the chosen experts, zero elsewhere, and if `normalized` (g_e - sum of w g) / sum
//   of chosen p in their place: p_e (g_e - sum of p g).
// Arithmetic: f32, sums in the order of experts.
// Limits: rows x experts below 2^31.

extern "C" __global__ void route_back(const float* probabilities, const u32* chosen, const float* weights, const u32* places,
                                      const float* grad_weights, float* grad_scores, int rows, int experts, int used, int normalized) {
    const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const size_t row = at / experts;
    if (row >= static_cast<size_t>(rows)) return;
    const float* p = probabilities + row * experts;
    float mass = 0.0f, mean = 0.0f;
    for (int slot = 0; slot < used; ++slot) {
        const size_t own = row * used + slot;
        mass += p[chosen[own]];
        mean += weights[own] * grad_weights[places[own]];
    }
    float along = 0.0f, gradient = 0.0f;
    for (int slot = 0; slot < used; ++slot) {
        const size_t own = row * used + slot;
        float of_slot = grad_weights[places[own]];
        if (normalized) of_slot = (of_slot - mean) / mass;
        along += p[chosen[own]] * of_slot;
        if (chosen[own] == static_cast<u32>(at % experts)) gradient = of_slot;
    }
    grad_scores[at] = p[at % experts] * (gradient - along);
}
