#include "../common.cuh"
#include "../quantizer.cuh"
// layer_decode k1: base + sign x scale x sum of the codewords of each group.
//
// Parallel over: a thread a weight; rows along the grid's second axis.
// base [rows, width], or nothing with AQLM_BASE 0; codes, one plane of `groups` for each codebook; codebooks
//   [codebooks, states, out_group x in_group], f64, or f32 with AQLM_NARROW; scales [out groups] f64, or
//   nothing with AQLM_SCALED 0; to [rows, width], which may be the base.
// Arithmetic: f32 on numbers rounded to f32, f64 with AQLM_WIDE. Codebook `skipped` is left out.
// Compile-time: AQLM_WIDE, AQLM_BASE, AQLM_SCALED, AQLM_NARROW.

#if AQLM_NARROW
typedef float number;
#else
typedef double number;
#endif

extern "C" __global__ void layer_decode(const real* base, const u16* codes, const number* codebooks, const double* scales, real* to, int rows, int width,
                                        int groups, int count, int states, int out_group, int in_group, int sign, int skipped) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const int inputs = width / in_group, len = out_group * in_group, j = column / in_group;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        const int o = row / out_group;
        const int within = row % out_group * in_group + column % in_group;
        const size_t group = static_cast<size_t>(o) * inputs + j;
        real sum = 0;
        for (int m = 0; m < count; ++m) {
            if (m == skipped) continue;
            const int code = codes[static_cast<size_t>(m) * groups + group];
            sum += static_cast<real>(codebooks[(static_cast<size_t>(m) * states + code) * len + within]);
        }
#if AQLM_SCALED
        sum *= static_cast<real>(scales[o]);
#endif
        const size_t at = static_cast<size_t>(row) * width + column;
#if AQLM_BASE
        to[at] = sign < 0 ? base[at] - sum : base[at] + sum;
#else
        to[at] = sign < 0 ? -sum : sum;
#endif
    }
}
