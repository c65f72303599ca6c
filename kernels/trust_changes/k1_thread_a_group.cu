#include "../common.cuh"
// trust_changes k1: how far each chosen group would move.
//
// Parallel over: a thread a chosen group.
// codes [groups, books] u16; found [count, books] u16, the new codes; chosen [count] u32; codebooks [books,
//   states, length] f64; scales [out_groups] f64; changes [count] f64, squared norms with the scale.
// Arithmetic: f64.

extern "C" __global__ void trust_changes(const u16* codes, const u16* found, const u32* chosen, const double* codebooks, const double* scales, double* changes, int count, int in_groups, int books, int states, int length) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const size_t group = chosen[at];
    const double scale = scales[group / in_groups];
    double squares = 0.0;
    for (int i = 0; i < length; ++i) {
        double moved = 0.0;
        for (int m = 0; m < books; ++m) {
            const double* codebook = codebooks + static_cast<size_t>(m) * states * length + i;
            moved += codebook[static_cast<size_t>(found[static_cast<size_t>(at) * books + m]) * length] - codebook[static_cast<size_t>(codes[group * books + m]) * length];
        }
        squares += scale * moved * (scale * moved);
    }
    changes[at] = squares;
}
