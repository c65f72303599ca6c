#include "../common.cuh"
#include "../quantizer.cuh"
// layer_groups k1: the groups of a weight, one after the other, divided by their scales.
//
// Parallel over: a thread a weight.
// weight [out_groups out_group, inputs in_group]; scales [out groups] f64; groups [out groups, inputs,
//   out_group x in_group].

extern "C" __global__ void layer_groups(const float* weight, const double* scales, float* groups, int count, int inputs, int out_group, int in_group) {
    const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= static_cast<size_t>(count)) return;
    const int len = out_group * in_group, i = at % len;
    const size_t group = at / len, o = group / inputs, j = group % inputs;
    const float w = weight[((o * out_group + i / in_group) * inputs + j) * in_group + i % in_group];
    groups[at] = static_cast<float>(w / scales[o]);
}
