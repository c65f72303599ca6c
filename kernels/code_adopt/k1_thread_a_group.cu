#include "../common.cuh"
#include "../training.cuh"
// code_adopt k1: gives chosen groups their new codes and counts those that change.
//
// Parallel over: a thread a chosen group.
// codes [groups, books] u16, changed in place; found [count, books] u16; chosen [count] u32; changed u32, one
//   number, to which this adds. With AQLM_ORDERED only the first kept [1] u32 of `order` [count] u32, the
//   numbers of the chosen groups by priority.
// The count is an integer, so the order of its additions changes nothing.
// Compile-time: AQLM_ORDERED.

extern "C" __global__ void code_adopt(u16* codes, const u16* found, const u32* chosen, const u32* order, const u32* kept, u32* changed, int count, int books) {
    SHARED_MEMORY;
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
#if AQLM_ORDERED
    const u32 end = kept[0];
#else
    const u32 end = static_cast<u32>(count);
#endif
    u32 differs = 0;
    if (at < end) {
#if AQLM_ORDERED
        const size_t number = order[at];
#else
        const size_t number = at;
#endif
        const size_t group = chosen[number];
        for (int m = 0; m < books; ++m) {
            const u16 code = found[number * books + m];
            if (codes[group * books + m] != code) differs = 1;
            codes[group * books + m] = code;
        }
    }
    differs = sum_of_block(differs, reinterpret_cast<u32*>(shared));
    if (threadIdx.x == 0 && differs != 0) atomicAdd(changed, differs);
}
