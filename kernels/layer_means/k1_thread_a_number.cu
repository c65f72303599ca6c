#include "../common.cuh"
#include "../quantizer.cuh"
// layer_means k1: centroids move to the means of their points.
//
// Parallel over: a thread a coordinate of a centroid.
// sums [states, len] f64; starts [states + 1]; centroids [states, len], those of empty clusters stay; moved
//   becomes 1 when a coordinate moved by more than 1e-8 + 1e-6 of its size, or is not a number.

extern "C" __global__ void layer_means(const double* sums, const u32* starts, float* centroids, int* moved, int states, int len) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= states * len) return;
    const u32 count = starts[at / len + 1] - starts[at / len];
    if (count == 0) return;
    const double before = centroids[at];
    const float mean = static_cast<float>(sums[at] / count);
    centroids[at] = mean;
    const bool stands = fabs(mean - before) <= 1e-8 + 1e-6 * fabs(before);
    if (!stands) *moved = 1;
}
