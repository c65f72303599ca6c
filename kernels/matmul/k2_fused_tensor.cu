#include "../common.cuh"
#include "../tiles.cuh"
// matmul k2: codewords go from the codebook straight into the fragments of a tensor-core product; no decoded
// weight is ever stored.
//
// Parallel over: a block has AQLM_ROW_WARPS * AQLM_TILES tiles of 8 output rows and AQLM_BATCH_TILES tiles of
//   16 input rows. Its warps form AQLM_SLICES teams. Team s takes every AQLM_SLICES-th unit of the input
//   features, and the teams' sums are added in order at the end. The warps of a team share a stage of x and
//   have AQLM_TILES tiles of rows each. Batches above 16 AQLM_BATCH_TILES take further blocks along y.
// Why it should be fast: the sum over input features may take its terms in any order. So index k of a product
//   is assigned such that lane (g, t) needs exactly the codeword of row g and input group t. One 16-byte read
//   of the codebook is then the B operand of two products, with no shuffle and no dense tile between. x is
//   stored in shared memory in the same order, so its fragments are 16-byte reads too.
// With AQLM_REPLICAS 8 each lane modulo 8 has its own copy of the codebook in its own banks; 1 keeps it in
//   shared memory once; 0 leaves it in global memory, read through L1 and L2.
// Arithmetic: codewords of several codebooks are added in f16 (M - 1 roundings). With bf16 the codebooks are
//   bf16 and the additions too. Products are exact, sums f32.
// Predicted, 4096 -> 11008: 16 rows 2x8g8, codewords 180 MB of shared memory at 128 B a clock on 132
//   multiprocessors 5.6 us, overlapping 4.7 us of codes, then launch, codebook copies and the last sums 3 us:
//   10 us. 1x16g8: 5.6 M codewords of a 32-byte sector each, 180 MB out of L2 at 5.5 TB/s: 33 us, less what
//   L1 holds. 128 rows: 5.6 M products of 2048 at about 1.7 clocks a multiprocessor 19 us, overlapping 20 us
//   of shared memory for fragments of x and codewords, 115 of 132 multiprocessors: 28 us.
// Limits: out_group 1; G 8 or 16; M <= 8; sm_80.
// codes: [tile of 8 rows][unit][part][lane] of PART words. A unit is 4 steps, a step 4 input groups. Lane 4 g
//   + t has row g, input group t. A lane's bits run over (step, codebook), 8 bits a code for B <= 8, else 16.
// Compile-time: AQLM_M, AQLM_B, AQLM_G, AQLM_REPLICAS, AQLM_ROW_WARPS, AQLM_TILES, AQLM_SLICES,
//   AQLM_BATCH_TILES.

#define UNIT_VECTORS (STEPS * 4 * VECTORS)           // 16-byte vectors of x in a row of a unit
#define ROW_PADDING 64
#define ROW_BYTES (UNIT_VECTORS * 16 + ROW_PADDING)  // 64 modulo 128, so that eight lanes over two rows have no bank conflict
#define BATCH (AQLM_BATCH_TILES * 16)
#define STAGE_BYTES (BATCH * ROW_BYTES)
#define TEAM (AQLM_ROW_WARPS * 32)
#define BLOCK_ROWS (AQLM_ROW_WARPS * AQLM_TILES * 8)
#define SUM_STRIDE (BLOCK_ROWS + (BLOCK_ROWS / 8 % 2 == 0 ? SUM_PADDING : 0))
#define CODEBOOK_BYTES (AQLM_REPLICAS * (AQLM_M << AQLM_B) * AQLM_G * 2)

// Loads a lane's words of a unit.
__device__ __forceinline__ void load_codes(u32 (&words)[WORDS], const u32* from, int lane) {
#pragma unroll
    for (int part = 0; part < WORDS / PART; ++part) {
        const u32* at = from + (part * 32 + lane) * PART;
#if AQLM_M * FIELD / 8 % 4 == 0
        const uint4 v = load_once(reinterpret_cast<const uint4*>(at));
        words[part * 4] = v.x, words[part * 4 + 1] = v.y, words[part * 4 + 2] = v.z, words[part * 4 + 3] = v.w;
#elif AQLM_M * FIELD / 8 % 2 == 0
        const uint2 v = load_once(reinterpret_cast<const uint2*>(at));
        words[part * 2] = v.x, words[part * 2 + 1] = v.y;
#else
        words[part] = load_once(at);
#endif
    }
}

// Loads the words of all tiles of a warp. Tiles past the last row repeat the last; their sums are not
// written.
__device__ __forceinline__ void load_tiles(u32 (&words)[AQLM_TILES][WORDS], const u32* codes, int first, int tiles, int unit, int units, int lane) {
#pragma unroll
    for (int i = 0; i < AQLM_TILES; ++i) {
        const int tile = first + i < tiles ? first + i : tiles - 1;
        load_codes(words[i], codes + static_cast<size_t>(tile * units + unit) * (WORDS * 32), lane);
    }
}

// Barrier of a team that also orders its memory accesses.
__device__ __forceinline__ void meet_team(int slice) {
#if AQLM_ROW_WARPS == 1
    __syncwarp();
#else
    team_barrier(1 + slice, TEAM);
#endif
}

// Eight weights of one row, before scaling: vector v of the sum of the codewords of a step.
__device__ __forceinline__ uint4 codeword(const u32 (&words)[WORDS], int step, int v, const unsigned char* codebook, int lane) {
    uint4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int m = 0; m < AQLM_M; ++m) {
        const int bit = (step * AQLM_M + m) * FIELD;
        const u32 code = words[bit / 32] >> bit % 32 & CODE_MASK;
#if AQLM_REPLICAS > 0
        const u32 place = ((code * VECTORS + v) * AQLM_REPLICAS + (lane & (AQLM_REPLICAS - 1))) * 16;
        const uint4 word =
            *reinterpret_cast<const uint4*>(codebook + place + static_cast<size_t>(m << AQLM_B) * (VECTORS * AQLM_REPLICAS * 16));
#else
        const uint4 word = load_often(reinterpret_cast<const uint4*>(codebook) + ((static_cast<u32>(m) << AQLM_B) + code) * VECTORS + v);
#endif
        if (m == 0) {
            sum = word;
        } else {
            sum.x = add_x2(sum.x, word.x);
            sum.y = add_x2(sum.y, word.y);
            sum.z = add_x2(sum.z, word.z);
            sum.w = add_x2(sum.w, word.w);
        }
    }
    return sum;
}

// Starts the copy of a unit of x, [BATCH] rows, in the order in which lanes read it: vector v of input group
// t of a step lies at 4 v + t.
__device__ __forceinline__ void stage_inputs(unsigned char* to, const u16* x, int unit, int first, int batch, int in_features, int thread) {
    for (int i = thread; i < BATCH * UNIT_VECTORS; i += TEAM) {
        const int row = i / UNIT_VECTORS, vector = i % UNIT_VECTORS, k = (unit * UNIT_VECTORS + vector) * 8;
        const bool valid = first + row < batch && k < in_features;
        const u16* from = valid ? x + static_cast<size_t>(first + row) * in_features + k : x;
        const int in_step = vector % (4 * VECTORS);
        const int place = vector - in_step + in_step % VECTORS * 4 + in_step / VECTORS;
        start_copy16_or_zero(to + row * ROW_BYTES + place * 16, from, valid);
    }
}

extern "C" __global__ void __launch_bounds__(TEAM* AQLM_SLICES, 1)
matmul(const u32* codes, const uint4* codebooks, const u16* scales, const u16* x, u16* y, int out_features, int in_features, int batch,
       int units) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int row_warp = warp % AQLM_ROW_WARPS, slice = warp / AQLM_ROW_WARPS, team_thread = row_warp * 32 + lane;
    const int tiles = (out_features + 7) / 8, first_tile = (blockIdx.x * AQLM_ROW_WARPS + row_warp) * AQLM_TILES;
    const int first_input = blockIdx.y * BATCH;
    unsigned char* stages = shared + CODEBOOK_BYTES + slice * (2 * STAGE_BYTES);
    allow_next_kernel();

    u32 next[AQLM_TILES][WORDS];
    if (slice < units) load_tiles(next, codes, first_tile, tiles, slice, units, lane);
#if AQLM_REPLICAS > 0
    for (int i = threadIdx.x; i < (AQLM_M << AQLM_B) * VECTORS; i += blockDim.x) {
        const uint4 word = codebooks[i];
#pragma unroll
        for (int r = 0; r < AQLM_REPLICAS; ++r) reinterpret_cast<uint4*>(shared)[i * AQLM_REPLICAS + (r + lane) % AQLM_REPLICAS] = word;
    }
    const unsigned char* codebook = shared;
#else
    const unsigned char* codebook = reinterpret_cast<const unsigned char*>(codebooks);
#endif
    wait_for_previous_kernel();
    if (slice < units) stage_inputs(stages, x, slice, first_input, batch, in_features, team_thread);
    close_copies();

    float sum[AQLM_BATCH_TILES][AQLM_TILES][4];
#pragma unroll
    for (int b = 0; b < AQLM_BATCH_TILES; ++b) {
#pragma unroll
        for (int i = 0; i < AQLM_TILES; ++i) {
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[b][i][k] = 0.0f;
        }
    }
    __syncthreads();  // the codebook is there

    int stage = 0;
    for (int unit = slice; unit < units; unit += AQLM_SLICES, stage ^= 1) {
        u32 words[AQLM_TILES][WORDS];
#pragma unroll
        for (int i = 0; i < AQLM_TILES; ++i) {
#pragma unroll
            for (int w = 0; w < WORDS; ++w) words[i][w] = next[i][w];
        }
        const int after = unit + AQLM_SLICES;
        if (after < units) {
            stage_inputs(stages + (stage ^ 1) * STAGE_BYTES, x, after, first_input, batch, in_features, team_thread);
            load_tiles(next, codes, first_tile, tiles, after, units, lane);
        }
        close_copies();
        copies_in_flight<1>();
        meet_team(slice);
        const unsigned char* inputs = stages + stage * STAGE_BYTES + g * ROW_BYTES + t * 16;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) {
                const unsigned char* at = inputs + (step * VECTORS + v) * 64;
#if AQLM_BATCH_TILES <= 2
                uint4 upper[AQLM_BATCH_TILES], lower[AQLM_BATCH_TILES];
#pragma unroll
                for (int b = 0; b < AQLM_BATCH_TILES; ++b) {
                    upper[b] = *reinterpret_cast<const uint4*>(at + b * 16 * ROW_BYTES);
                    lower[b] = *reinterpret_cast<const uint4*>(at + (b * 16 + 8) * ROW_BYTES);
                }
#pragma unroll
                for (int i = 0; i < AQLM_TILES; ++i) {
                    const uint4 word = codeword(words[i], step, v, codebook, lane);
#pragma unroll
                    for (int b = 0; b < AQLM_BATCH_TILES; ++b) {
                        multiply_16x8x16(sum[b][i], upper[b].x, lower[b].x, upper[b].y, lower[b].y, word.x, word.y);
                        multiply_16x8x16(sum[b][i], upper[b].z, lower[b].z, upper[b].w, lower[b].w, word.z, word.w);
                    }
                }
#else
                uint4 word[AQLM_TILES];
#pragma unroll
                for (int i = 0; i < AQLM_TILES; ++i) word[i] = codeword(words[i], step, v, codebook, lane);
#pragma unroll
                for (int b = 0; b < AQLM_BATCH_TILES; ++b) {
                    const uint4 upper = *reinterpret_cast<const uint4*>(at + b * 16 * ROW_BYTES);
                    const uint4 lower = *reinterpret_cast<const uint4*>(at + (b * 16 + 8) * ROW_BYTES);
#pragma unroll
                    for (int i = 0; i < AQLM_TILES; ++i) {
                        multiply_16x8x16(sum[b][i], upper.x, lower.x, upper.y, lower.y, word[i].x, word[i].y);
                        multiply_16x8x16(sum[b][i], upper.z, lower.z, upper.w, lower.w, word[i].z, word[i].w);
                    }
                }
#endif
            }
        }
        meet_team(slice);  // the stage is read and may be overwritten
    }

    complete_copies();
    __syncthreads();
    float* sums = reinterpret_cast<float*>(shared + CODEBOOK_BYTES);  // [slice][input row][output row], where the stages were
#pragma unroll
    for (int b = 0; b < AQLM_BATCH_TILES; ++b) {
#pragma unroll
        for (int i = 0; i < AQLM_TILES; ++i) {
            float* at = sums + (slice * BATCH + b * 16 + g) * SUM_STRIDE + (row_warp * AQLM_TILES + i) * 8 + 2 * t;
            *reinterpret_cast<float2*>(at) = make_float2(sum[b][i][0], sum[b][i][1]);
            *reinterpret_cast<float2*>(at + 8 * SUM_STRIDE) = make_float2(sum[b][i][2], sum[b][i][3]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BATCH * BLOCK_ROWS; i += TEAM * AQLM_SLICES) {
        const int input = i / BLOCK_ROWS, row = i % BLOCK_ROWS, out = blockIdx.x * BLOCK_ROWS + row;
        if (first_input + input >= batch || out >= out_features) continue;
        float total = 0.0f;
#pragma unroll
        for (int s = 0; s < AQLM_SLICES; ++s) total += sums[(s * BATCH + input) * SUM_STRIDE + row];
        y[static_cast<size_t>(first_input + input) * out_features + out] = y_of_f32(total * f32_of_f16(scales[out]));
    }
}
