#include "../common.cuh"
#include "../quantizer.cuh"
// layer_adopt k1: every hypothesis takes a copy of its ancestor's rows.
//
// Parallel over: a thread a number; rows along the grid's second axis.
// from, to [out groups, hypotheses, out_group, width], columns first_column to last_column; roots [out
//   groups, hypotheses].

extern "C" __global__ void layer_adopt(const float* from, const u16* roots, float* to, int rows, int hypotheses, int out_group, int width, int first_column,
                                       int last_column) {
    const int column = first_column + blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= last_column) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        const int slot = row / out_group, o = slot / hypotheses;
        const size_t source = (static_cast<size_t>(o) * hypotheses + roots[slot]) * out_group + row % out_group;
        to[static_cast<size_t>(row) * width + column] = from[source * width + column];
    }
}
