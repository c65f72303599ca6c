#include "../common.cuh"
#include "../training.cuh"
// route_rows k1: the experts of each row: those of the `used` largest scores, of equal scores those of lower
// index.
//
// Parallel over: a thread a row.
// scores [rows, experts] f32, then their softmax; chosen [rows, used] u32, ascending; weights [rows, used]
//   f32: the chosen experts' probabilities, divided by their sum if `normalized`.
// Arithmetic: exponentials in f32 relative to the largest score, sums in f64 in the order of experts. NaN has
//   its place in the order, so that every index is an expert's whatever the scores are.
// Limits: used at most experts.

namespace {
// Grows with the number; NaN is beyond infinity.
__device__ __forceinline__ int order_of(float score) {
    const int bits = static_cast<int>(__float_as_uint(score));
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}
}  // namespace

extern "C" __global__ void route_rows(float* scores, u32* chosen, float* weights, int rows, int experts, int used, int normalized) {
    const size_t row = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= static_cast<size_t>(rows)) return;
    float* own = scores + row * experts;
    u32* list = chosen + row * used;
    // Each pass finds what comes next after the last found.
    int last_order = 0x7fffffff, last = -1;
    for (int slot = 0; slot < used; ++slot) {
        int next = -1, next_order = 0;
        for (int e = 0; e < experts; ++e) {
            const int order = order_of(own[e]);
            const bool after = order < last_order || (order == last_order && e > last);
            if (after && (next < 0 || order > next_order)) next = e, next_order = order;
        }
        int at = slot;
        for (; at > 0 && list[at - 1] > static_cast<u32>(next); --at) list[at] = list[at - 1];
        list[at] = static_cast<u32>(next);
        last = next;
        last_order = next_order;
    }
    float most = minus_infinity();
    for (int e = 0; e < experts; ++e) most = fmaxf(most, own[e]);
    double sum = 0.0, of_chosen = 0.0;
    for (int e = 0; e < experts; ++e) {
        own[e] = expf(own[e] - most);
        sum += own[e];
    }
    for (int slot = 0; slot < used; ++slot) of_chosen += own[list[slot]];
    const double whole = normalized ? of_chosen : sum;
    for (int slot = 0; slot < used; ++slot) weights[row * used + slot] = static_cast<float>(own[list[slot]] / whole);
    for (int e = 0; e < experts; ++e) own[e] = static_cast<float>(own[e] / sum);
}
