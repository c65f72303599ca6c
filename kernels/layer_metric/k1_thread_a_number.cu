#include "../common.cuh"
#include "../quantizer.cuh"
// layer_metric k1: x B for every row x of every group, B being the metric of its input group.
//
// Parallel over: a thread a number.
// groups, images [out groups, inputs, out_group x in_group]; metrics [inputs, in_group, in_group].

extern "C" __global__ void layer_metric(const float* groups, const float* metrics, float* images, int count, int inputs, int out_group, int in_group) {
    const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= static_cast<size_t>(count)) return;
    const int i = at % in_group;
    const size_t j = at / (out_group * in_group) % inputs;
    const float* metric = metrics + j * in_group * in_group + i;
    const float* row = groups + (at - i);
    float sum = 0.0f;
    for (int b = 0; b < in_group; ++b) sum = fmaf(row[b], metric[b * in_group], sum);
    images[at] = sum;
}
