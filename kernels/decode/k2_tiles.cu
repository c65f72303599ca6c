#include "../common.cuh"
#include "../tiles.cuh"
// decode k2: codes in the layout of matmul k2, so that one copy of a matrix on the device serves both.
//
// Parallel over: a warp takes one tile of 8 rows and one unit of 16 input groups at a time; lane 4 g + t has
//   row g, input group t of four.
// Why faster than k1: a code takes 1 byte (B <= 8) or 2 and is read once, not once an element. Codewords are
//   read as 16-byte vectors from shared memory (conflict free with AQLM_REPLICAS 8) or L1. The weight is
//   written 16 bytes at a time, 64 neighbouring bytes a row.
// Bound: writing 2 bytes a weight. Predicted, 4096 -> 11008, 2x8g8: 101 MB at 2.4 TB/s 42 us; into a buffer
//   that stays in L2 about 20 us.
// Arithmetic: f32 sums, scaled, rounded once. With bf16 codebooks are bf16.
// Limits: out_group 1; G 8 or 16; M <= 8; sm_80. y is [tiles' rows, in], starting at row 8 first_tile of the
//   matrix.
// Compile-time: AQLM_M, AQLM_B, AQLM_G, AQLM_REPLICAS.

__device__ __forceinline__ void add_pair(float (&sum)[8], int at, u32 pair) {
    sum[at] += low_x(pair);
    sum[at + 1] += high_x(pair);
}

extern "C" __global__ void __launch_bounds__(512)
decode(const u32* codes, const uint4* codebooks, const u16* scales, u16* y, int out_features, int in_features, int units, int first_tile,
       int tiles) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, g = lane >> 2, t = lane & 3;
    allow_next_kernel();
#if AQLM_REPLICAS > 0
    for (int i = threadIdx.x; i < (AQLM_M << AQLM_B) * VECTORS; i += blockDim.x) {
        const uint4 word = codebooks[i];
#pragma unroll
        for (int r = 0; r < AQLM_REPLICAS; ++r) reinterpret_cast<uint4*>(shared)[i * AQLM_REPLICAS + (r + lane) % AQLM_REPLICAS] = word;
    }
    __syncthreads();
#endif
    wait_for_previous_kernel();
    const int tasks = tiles * units;
    for (int task = blockIdx.x * warps + warp; task < tasks; task += gridDim.x * warps) {
        const int tile = task / units, unit = task % units, row = (first_tile + tile) * 8 + g;
        const u32* from = codes + (static_cast<size_t>(first_tile + tile) * units + unit) * (WORDS * 32);
        u32 words[WORDS];
#pragma unroll
        for (int w = 0; w < WORDS; ++w) words[w] = from[(w / PART * 32 + lane) * PART + w % PART];
        const bool valid = row < out_features;
        const float scale = f32_of_f16(scales[valid ? row : 0]);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const int column = ((unit * STEPS + step) * 4 + t) * AQLM_G;
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                float sum[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (int m = 0; m < AQLM_M; ++m) {
                    const int bit = (step * AQLM_M + m) * FIELD;
                    const u32 code = words[bit / 32] >> bit % 32 & CODE_MASK;
                    const u32 vector = ((static_cast<u32>(m) << AQLM_B) + code) * VECTORS + v;
#if AQLM_REPLICAS > 0
                    const uint4 word = reinterpret_cast<const uint4*>(shared)[vector * AQLM_REPLICAS + (lane & (AQLM_REPLICAS - 1))];
#else
                    const uint4 word = load_often(codebooks + vector);
#endif
                    add_pair(sum, 0, word.x);
                    add_pair(sum, 2, word.y);
                    add_pair(sum, 4, word.z);
                    add_pair(sum, 6, word.w);
                }
                uint4 weights;
                weights.x = y_of_f32(sum[0] * scale) | static_cast<u32>(y_of_f32(sum[1] * scale)) << 16;
                weights.y = y_of_f32(sum[2] * scale) | static_cast<u32>(y_of_f32(sum[3] * scale)) << 16;
                weights.z = y_of_f32(sum[4] * scale) | static_cast<u32>(y_of_f32(sum[5] * scale)) << 16;
                weights.w = y_of_f32(sum[6] * scale) | static_cast<u32>(y_of_f32(sum[7] * scale)) << 16;
                if (valid && column < in_features) {
                    *reinterpret_cast<uint4*>(y + (static_cast<size_t>(tile) * 8 + g) * in_features + column + v * 8) = weights;
                }
            }
        }
    }
}
