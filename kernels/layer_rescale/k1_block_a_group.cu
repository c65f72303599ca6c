#include "../common.cuh"
#include "../quantizer.cuh"
// layer_rescale k1: moves each output group's scale to the minimum of its loss, a parabola in the scale.
//
// Parallel over: a block an output group.
// weight, weight_image = W H, error = W - Q, image = E H, all [rows, width]; scales [out groups]; losses [out
//   groups], of the result. A scale stays if it does not affect the loss or its loss would not fall.
// Arithmetic: sums in f64. With AQLM_WIDE, <Q, Q>_H below `resolution` |Q|^2 counts as nothing.
// Compile-time: AQLM_WIDE.

extern "C" __global__ void layer_rescale(const real* weight, const real* weight_image, real* error, real* image, double* scales, double* losses, int band,
                                         int resolution_low, int resolution_high) {
    SHARED_MEMORY(shared);
    double* sums = reinterpret_cast<double*>(shared);
    const size_t first = static_cast<size_t>(blockIdx.x) * band;
    double before = 0.0, with_weight = 0.0, with_itself = 0.0, square = 0.0;
    for (int i = threadIdx.x; i < band; i += blockDim.x) {
        const double e = error[first + i], h = image[first + i];
        const double q = static_cast<real>(weight[first + i] - error[first + i]);
        const double g = static_cast<real>(weight_image[first + i] - image[first + i]);
        before += h * e;
        // W = E + Q keeps the digits of a small error.
        with_weight += g * e;
        with_itself += g * q;
        square += q * q;
    }
    before = block_sum(before, sums);
    with_weight = block_sum(with_weight, sums);
    with_itself = block_sum(with_itself, sums);
    square = block_sum(square, sums);
    const double change = with_weight / with_itself;
    const bool affects = with_itself > double_of(resolution_low, resolution_high) * square && fabs(change) < 1e300;
    double after = before;
    if (affects) {
        const real factor = static_cast<real>(change);
        double sum = 0.0;
        for (int i = threadIdx.x; i < band; i += blockDim.x) {
            const real e = error[first + i] - factor * (weight[first + i] - error[first + i]);
            const real h = image[first + i] - factor * (weight_image[first + i] - image[first + i]);
            sum += static_cast<double>(h) * static_cast<double>(e);
        }
        after = block_sum(sum, sums);
        const bool better = after < before;
        if (better) {
            for (int i = threadIdx.x; i < band; i += blockDim.x) {
                const real e = error[first + i] - factor * (weight[first + i] - error[first + i]);
                const real h = image[first + i] - factor * (weight_image[first + i] - image[first + i]);
                error[first + i] = e;
                image[first + i] = h;
            }
            if (threadIdx.x == 0) scales[blockIdx.x] *= 1.0 + change;
        } else {
            after = before;
        }
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = after;
}
