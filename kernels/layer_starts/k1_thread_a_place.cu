#include "../common.cuh"
#include "../quantizer.cuh"
// layer_starts k1: where the places of each code begin.
//
// Parallel over: a thread a place.
// codes [groups], `stride` numbers apart; sorted [groups], by code; starts [states + 1].

extern "C" __global__ void layer_starts(const u16* codes, const u32* sorted, u32* starts, int groups, int states, int stride) {
    const int place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= groups) return;
    const int code = codes[static_cast<size_t>(sorted[place]) * stride];
    const int before = place == 0 ? -1 : codes[static_cast<size_t>(sorted[place - 1]) * stride];
    for (int k = before + 1; k <= code; ++k) starts[k] = static_cast<u32>(place);
    if (place == groups - 1) {
        for (int k = code + 1; k <= states; ++k) starts[k] = static_cast<u32>(groups);
    }
}
