#include "../common.cuh"
#include "../tiles.cuh"
// matmul k4: k2 for a large codebook. Each block keeps in shared memory the codewords that its own rows use
// most.
//
// Parallel over: as k2, for up to AQLM_BATCH_TILES * 16 rows of x.
// Why it should be fast: k2 is bound by L2, which looks up one tag a clock in each of 80 slices, one for each
//   codeword. A block's 45,056 codes (88 rows, 512 input groups) of 2^16 codewords name only about 32,600
//   different ones. The 9,900 that occur at least twice account for half of the codes. The packer numbers
//   codewords by how often the matrix uses them. For each block it lists AQLM_HOT codewords worth keeping:
//   all those below AQLM_HOT that the block uses, then the most frequent others. Then it replaces the code of
//   a listed codeword by its slot in the list. A code below AQLM_HOT is such a slot, any other code is the
//   codeword's number, so codes keep 16 bits. The list is in the codebook's order, so that the block fetches
//   it in few cache lines. Real codes are less uniform than random ones and gain more. Each warp reads x as
//   its fragments, straight from L2, because codewords make better use of shared memory.
// Arithmetic: products are exact, sums f32. With bf16 the codebook is bf16.
// Predicted, 4096 -> 11008, 16 rows, 1x16g8, 126 blocks, 14,500 codewords of each block kept: L2 look-ups a
//   block are 6,900 lines of kept codewords and 18,000 of others (k2: 45,056), that is 39,000 clocks of L2
//   (k2: 71,000), and x and codes 12,000 as in k2: 51,000 clocks at 1.74 GHz, 29 us; k2 47.4.
// Measured (docs/kernels.md): 36.4 us, 32.0 overlapped; lines hold fewer kept codewords than predicted.
// Limits: M 1; out_group 1; B 14 to 16; G 8 or 16; sm_80.
// codes: [tile of 8 rows][unit][lane] of two words, as k2, numbered as above.
// hot: [block][round][thread][4] of 16 bits, the last round padded. Entry j is the codeword that kept vector
//   (4 round + j) threads + thread belongs to. codebook: [2^B] in the order of use.
// Compile-time: AQLM_B, AQLM_G, AQLM_HOT, AQLM_ROW_WARPS, AQLM_TILES, AQLM_SLICES, AQLM_BATCH_TILES.

#define TURNS (STEPS * VECTORS)           // of a unit, each of one vector: even
#define KEPT_VECTORS (AQLM_HOT * VECTORS)
#define BATCH (AQLM_BATCH_TILES * 16)
#define THREADS (AQLM_ROW_WARPS * AQLM_SLICES * 32)
#define ROUNDS ((KEPT_VECTORS + NUMBERS * THREADS - 1) / (NUMBERS * THREADS))  // of kept vectors
#define NUMBERS 4                         // of kept codewords that a thread loads at once
#define AT_ONCE 6                         // rounds on their way to shared memory
#define BLOCK_ROWS (AQLM_ROW_WARPS * AQLM_TILES * 8)
#define SUM_STRIDE (BLOCK_ROWS + (BLOCK_ROWS / 8 % 2 == 0 ? SUM_PADDING : 0))

// Fetches the codewords that this block keeps, through registers: loads of neighbouring lanes from one cache
// line are then one L2 request, unlike asynchronous copies. All numbers are loaded first, so that many
// vectors are in flight.
__device__ __forceinline__ void keep_codewords(unsigned char* shared, const uint4* codebook, const uint2* numbers) {
    const int thread = static_cast<int>(threadIdx.x);
    const u32 v = threadIdx.x % VECTORS;
    uint2 of[ROUNDS];
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) of[round] = load_once(numbers + round * THREADS + thread);
#pragma unroll
    for (int first = 0; first < ROUNDS; first += AT_ONCE) {
        uint4 kept[AT_ONCE][NUMBERS];
#pragma unroll
        for (int r = 0; r < AT_ONCE; ++r) {
            if (first + r < ROUNDS) {
                const uint2 four = of[first + r];
                kept[r][0] = load_once(codebook + (four.x & 0xffffu) * VECTORS + v);
                kept[r][1] = load_once(codebook + (four.x >> 16) * VECTORS + v);
                kept[r][2] = load_once(codebook + (four.y & 0xffffu) * VECTORS + v);
                kept[r][3] = load_once(codebook + (four.y >> 16) * VECTORS + v);
            }
        }
#pragma unroll
        for (int r = 0; r < AT_ONCE; ++r) {
#pragma unroll
            for (int j = 0; j < NUMBERS; ++j) {
                const int place = ((first + r) * NUMBERS + j) * THREADS + thread;
                if (first + r < ROUNDS && place < KEPT_VECTORS) *reinterpret_cast<uint4*>(shared + place * 16) = kept[r][j];
            }
        }
    }
}

// Loads a lane's codes of a unit, for all tiles of a warp. Tiles past the last row repeat the last; their
// sums are not written.
__device__ __forceinline__ void load_tiles(uint2 (&words)[AQLM_TILES], const uint2* codes, int first, int tiles, int unit, int units, int lane) {
#pragma unroll
    for (int i = 0; i < AQLM_TILES; ++i) {
        const int tile = first + i < tiles ? first + i : tiles - 1;
        words[i] = load_once(codes + (static_cast<size_t>(tile) * units + unit) * 32 + lane);
    }
}

// Vector v of the codewords of a step, one a tile.
__device__ __forceinline__ void look_up(uint4 (&word)[AQLM_TILES], const uint2 (&words)[AQLM_TILES], int turn, const unsigned char* kept,
                                        const uint4* codebook) {
    const int step = turn / VECTORS, v = turn % VECTORS;
    u32 vector[AQLM_TILES];
#pragma unroll
    for (int i = 0; i < AQLM_TILES; ++i) {
        const u32 pair = step < 2 ? words[i].x : words[i].y;
        vector[i] = (step % 2 == 0 ? pair & 0xffffu : pair >> 16) * VECTORS + v;
    }
    // All near loads first: a far load must not overtake a near load into the same register, and would wait
    // for it.
#pragma unroll
    for (int i = 0; i < AQLM_TILES; ++i) load_near(word[i], kept + vector[i] * 16, vector[i] < KEPT_VECTORS);
#pragma unroll
    for (int i = 0; i < AQLM_TILES; ++i) load_far(word[i], codebook + vector[i], vector[i] >= KEPT_VECTORS);
}

// Loads this lane's elements of x for a turn: rows g and g + 8 of each tile of 16, eight neighbours along k.
__device__ __forceinline__ void load_inputs(uint4 (&upper)[AQLM_BATCH_TILES], uint4 (&lower)[AQLM_BATCH_TILES], const u16* x, int unit, int turn,
                                            int row, int t, int batch, int in_features) {
    const int column = ((unit * STEPS + turn / VECTORS) * 4 + t) * AQLM_G + turn % VECTORS * 8;
#pragma unroll
    for (int b = 0; b < AQLM_BATCH_TILES; ++b) {
        const u16* from = x + static_cast<size_t>(row + b * 16) * in_features + column;
        upper[b] = {0, 0, 0, 0};
        lower[b] = {0, 0, 0, 0};
        if (row + b * 16 < batch && column < in_features) upper[b] = *reinterpret_cast<const uint4*>(from);
        if (row + b * 16 + 8 < batch && column < in_features) lower[b] = *reinterpret_cast<const uint4*>(from + 8 * in_features);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
matmul(const uint2* codes, const uint4* codebook, const u16* scales, const uint2* hot, const u16* x, u16* y, int out_features, int in_features,
       int batch, int units) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int row_warp = warp % AQLM_ROW_WARPS, slice = warp / AQLM_ROW_WARPS;
    const int tiles = (out_features + 7) / 8, first_tile = (blockIdx.x * AQLM_ROW_WARPS + row_warp) * AQLM_TILES;
    const int first_row = blockIdx.y * BATCH + g;
    allow_next_kernel();

    uint2 words[AQLM_TILES], next[AQLM_TILES];
    if (slice < units) load_tiles(words, codes, first_tile, tiles, slice, units, lane);
    keep_codewords(shared, codebook, hot + static_cast<size_t>(blockIdx.x) * (ROUNDS * THREADS));
    if (slice + AQLM_SLICES < units) load_tiles(next, codes, first_tile, tiles, slice + AQLM_SLICES, units, lane);

    float sum[AQLM_BATCH_TILES][AQLM_TILES][4];
#pragma unroll
    for (int b = 0; b < AQLM_BATCH_TILES; ++b) {
#pragma unroll
        for (int i = 0; i < AQLM_TILES; ++i) {
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[b][i][k] = 0.0f;
        }
    }
    wait_for_previous_kernel();
    uint4 upper[2][AQLM_BATCH_TILES], lower[2][AQLM_BATCH_TILES], word[2][AQLM_TILES];  // [turn modulo 2]
    if (slice < units) load_inputs(upper[0], lower[0], x, slice, 0, first_row, t, batch, in_features);
    __syncthreads();
    if (slice < units) look_up(word[0], words, 0, shared, codebook);

    for (int unit = slice; unit < units; unit += AQLM_SLICES) {
        const int after = unit + AQLM_SLICES;
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            const int now = turn & 1, then = now ^ 1;
            if (turn + 1 < TURNS) {
                load_inputs(upper[then], lower[then], x, unit, turn + 1, first_row, t, batch, in_features);
                look_up(word[then], words, turn + 1, shared, codebook);
            } else if (after < units) {
                load_inputs(upper[then], lower[then], x, after, 0, first_row, t, batch, in_features);
                look_up(word[then], next, 0, shared, codebook);
            }
            if (turn + 1 == TURNS) {
#pragma unroll
                for (int i = 0; i < AQLM_TILES; ++i) words[i] = next[i];
                if (after + AQLM_SLICES < units) load_tiles(next, codes, first_tile, tiles, after + AQLM_SLICES, units, lane);
            }
#pragma unroll
            for (int i = 0; i < AQLM_TILES; ++i) {
                const uint4 w = word[now][i];
#pragma unroll
                for (int b = 0; b < AQLM_BATCH_TILES; ++b) {
                    const uint4 u = upper[now][b], l = lower[now][b];
                    multiply_16x8x16(sum[b][i], u.x, l.x, u.y, l.y, w.x, w.y);
                    multiply_16x8x16(sum[b][i], u.z, l.z, u.w, l.w, w.z, w.w);
                }
            }
        }
    }

    __syncthreads();
    float* sums = reinterpret_cast<float*>(shared);  // [slice][input row][output row], where the codewords were
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
    for (int i = threadIdx.x; i < BATCH * BLOCK_ROWS; i += THREADS) {
        const int input = i / BLOCK_ROWS, row = i % BLOCK_ROWS, out = blockIdx.x * BLOCK_ROWS + row, of = blockIdx.y * BATCH + input;
        if (of >= batch || out >= out_features) continue;
        float total = 0.0f;
#pragma unroll
        for (int s = 0; s < AQLM_SLICES; ++s) total += sums[(s * BATCH + input) * SUM_STRIDE + row];
        y[static_cast<size_t>(of) * out_features + out] = y_of_f32(total * f32_of_f16(scales[out]));
    }
}
