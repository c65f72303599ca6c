#include "../common.cuh"
#include "../experts.cuh"
// matvec k2: all codebooks and x in shared memory, codes bit-packed.
//
// Parallel over: one warp for four whole rows at a time, so no sum is split between warps; lane = input group
//   modulo 32.
// Why faster than k1: a codeword is one 16-byte read of shared memory instead of a gather through L1/L2. x is
//   read once for four rows. Codes take B bits each and are stored in the order of use, loaded 16 bytes a
//   lane.
// Bound: shared memory. A warp's 32 random 16-byte reads take 4 passes without bank conflicts. With
//   AQLM_REPLICAS 8 each lane modulo 8 has its own copy of the codebook in its own banks, so there are no
//   conflicts. With AQLM_REPLICAS 1 conflicts make the reads about 2.8 times as expensive.
// Arithmetic: f16 products and sums inside a group (at most M G / 2 terms), f32 across groups; with bf16 f32
//   throughout.
// Limits: out_group 1; G 8 or 16; AQLM_REPLICAS M 2^B G 2 bytes + x within the block's shared memory; 4 M B
//   AQLM_UNIT a multiple of 128.
// codes: [task][unit][word of unit / 4][lane] of 16 bytes. A task is 4 rows, a unit AQLM_UNIT steps of 32
//   input groups. A lane's bits run over (step, row, codebook), low bits first.
// Compile-time: AQLM_M, AQLM_B, AQLM_G, AQLM_REPLICAS, AQLM_UNIT, AQLM_EXPERTS (experts.cuh).

#define ROWS 4             // of a task
#define MOST_THREADS 768
#define VECTORS (AQLM_G / 8)                                 // 16-byte vectors in a codeword
#define UNIT_LOADS (ROWS * AQLM_M * AQLM_B * AQLM_UNIT / 128)   // 16-byte loads of a lane in a unit
#define CODE_MASK ((1u << AQLM_B) - 1u)

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
matvec(const uint4* codes, const uint4* codebooks, const u16* scales, const uint4* x, u16* y, EXPERT_POINTER int out_features, int in_features,
       int tasks, int units EXPERT_SIZES
#ifdef AQLM_EXPERTS
       , int codes_stride, int codebooks_stride, int scales_stride
#endif
) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    uint4* words = reinterpret_cast<uint4*>(shared);                             // [M 2^B][vector][replica]
    uint4* inputs = words + (AQLM_M << AQLM_B) * VECTORS * AQLM_REPLICAS;        // [vector][input group], so that lanes are neighbours
    const int padded_groups = units * AQLM_UNIT * 32;
    allow_next_kernel();
#ifdef AQLM_EXPERTS
    wait_for_previous_kernel();  // for the choice
    const u32 expert = chosen[SLOT];
    codes = of_expert(codes, expert, codes_stride);
    codebooks = of_expert(codebooks, expert, codebooks_stride);
    scales = of_expert(scales, expert, scales_stride);
    x += static_cast<size_t>(SLOT) * (x_stride / 8);
    y += static_cast<size_t>(SLOT) * y_stride;
#endif
#if AQLM_REPLICAS == 1
    for (int i = threadIdx.x; i < (AQLM_M << AQLM_B) * VECTORS; i += blockDim.x) start_copy16(words + i, codebooks + i);
#else
    for (int i = threadIdx.x; i < (AQLM_M << AQLM_B) * VECTORS * AQLM_REPLICAS; i += blockDim.x) words[i] = codebooks[i / AQLM_REPLICAS];
#endif
    wait_for_previous_kernel();
    for (int i = threadIdx.x; i < padded_groups * VECTORS; i += blockDim.x) {
        const int group = i / VECTORS, vector = i % VECTORS;
        const uint4 zero = {0, 0, 0, 0};
        inputs[vector * padded_groups + group] = group * AQLM_G < in_features ? x[i] : zero;
    }
    complete_copies();
    __syncthreads();
    // Tasks are dealt block by block, so that no two multiprocessors differ by more than one task.
    for (int task = blockIdx.x + gridDim.x * warp; task < tasks; task += gridDim.x * warps) {
        const uint4* stream = codes + static_cast<size_t>(task) * units * UNIT_LOADS * 32 + lane;
        float sum[ROWS] = {0.0f, 0.0f, 0.0f, 0.0f};
        uint4 next[UNIT_LOADS];
#pragma unroll
        for (int i = 0; i < UNIT_LOADS; ++i) next[i] = load_once(stream + i * 32);
        for (int unit = 0; unit < units; ++unit) {
            u32 bits[UNIT_LOADS * 4 + 1];
#pragma unroll
            for (int i = 0; i < UNIT_LOADS; ++i) {
                bits[4 * i] = next[i].x;
                bits[4 * i + 1] = next[i].y;
                bits[4 * i + 2] = next[i].z;
                bits[4 * i + 3] = next[i].w;
            }
            bits[UNIT_LOADS * 4] = 0;
            stream += UNIT_LOADS * 32;
            if (unit + 1 < units) {
#pragma unroll
                for (int i = 0; i < UNIT_LOADS; ++i) next[i] = load_once(stream + i * 32);
            }
#pragma unroll
            for (int step = 0; step < AQLM_UNIT; ++step) {
                const int group = (unit * AQLM_UNIT + step) * 32 + lane;
                uint4 input[VECTORS];
#pragma unroll
                for (int v = 0; v < VECTORS; ++v) input[v] = inputs[v * padded_groups + group];
#pragma unroll
                for (int row = 0; row < ROWS; ++row) {
                    GroupSum pair = 0;
#pragma unroll
                    for (int m = 0; m < AQLM_M; ++m) {
                        const int bit = ((step * ROWS + row) * AQLM_M + m) * AQLM_B;
                        const u32 code = __funnelshift_r(bits[bit / 32], bits[bit / 32 + 1], bit % 32) & CODE_MASK;
#pragma unroll
                        for (int v = 0; v < VECTORS; ++v) {
                            const uint4 word =
                                words[(((m << AQLM_B) + code) * VECTORS + v) * AQLM_REPLICAS + (lane & (AQLM_REPLICAS - 1))];
                            add_products(pair, word, input[v]);
                        }
                    }
                    sum[row] += group_total(pair);
                }
            }
        }
        const float total = sum_four_rows(sum[0], sum[1], sum[2], sum[3]);
        const int row = task * ROWS + (lane >> 3);
        if ((lane & 7) == 0 && row < out_features) y[row] = y_of_f32(total * f32_of_f16(scales[row]));
    }
}
