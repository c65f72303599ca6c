#include "../common.cuh"
#include "../quantizer.cuh"
// layer_trace k1: follows the best hypothesis of every output group back through the history.
//
// Parallel over: a thread an output group.
// parents [steps, out groups, hypotheses]; chosen [steps, out groups, hypotheses, each]; inputs_of [steps,
//   each] and planes_of [steps, each]: the input group and the codebook of each code; codes [codebooks, out
//   groups x inputs].
// The step decided last is followed first: step 0 with `backwards`, else the last one.

extern "C" __global__ void layer_trace(const u16* parents, const u16* chosen, const u32* inputs_of, const u32* planes_of, u16* codes, int out_groups,
                                       int hypotheses, int steps, int each, int inputs, int backwards) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o >= out_groups) return;
    int h = 0;
    for (int i = 0; i < steps; ++i) {
        const int step = backwards ? i : steps - 1 - i;
        const size_t slot = (static_cast<size_t>(step) * out_groups + o) * hypotheses + h;
        for (int m = 0; m < each; ++m) {
            const size_t plane = planes_of[step * each + m];
            codes[(plane * out_groups + o) * inputs + inputs_of[step * each + m]] = chosen[slot * each + m];
        }
        h = parents[slot];
    }
}
