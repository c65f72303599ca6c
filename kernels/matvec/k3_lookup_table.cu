#include "../common.cuh"
// matvec k3: products of x with every codeword first, then one 4-byte look-up a code. For B = 8.
//
// Parallel over: a cluster of blocks shares a slab of rows, each block takes some input groups of it; inside a block, warps take four rows
// at a time and lane = input group modulo 32. Each block sends its partial row sums to the block that owns the row (distributed shared
// memory), which adds them in rank order.
// Why faster than k2: a slot is 32 input groups of one codebook; its table [256 codes][32 lanes] holds <x_group, codeword> in f32, and lane l
// only ever reads bank l. So 32 codes cost one conflict-free pass of shared memory (k2: 4 at best), and three instructions: a byte permute
// that builds the address out of code byte and lane, the load, the addition. Codes then stream at the speed of memory.
// Building a table is a small matrix product, done by the tensor cores in tf32, in which every f16 is exact.
// Arithmetic: exact products of f16, sums in f32.
// Limits: B 8, out_group 1, G 8 or 16, sm_90 (clusters), 1024 threads.
// codes: [row slab][rank][round][four rows][lane] of 16 bytes; word = row of the four, byte = slot of the round (four of them).
// Slots are numbered over (input groups / 32, codebook); slot of (round, rank, byte) = (round * ranks + rank) * 4 + byte.
// rows_per_block is a multiple of 4 ranks, so that four rows have one owner.
// Compile-time: AQLM_M, AQLM_G.

#define DEPTH 4   // 16-byte loads of codes in flight a lane
#define TILES 2   // (slot, 16 codes) tiles of table that a warp builds: 4 slots * 16 tiles / 32 warps
#define STEPS (AQLM_G / 8)

extern "C" __global__ void __launch_bounds__(1024, 1)
matvec(const uint4* codes, const u16* codebooks, const u16* scales, const u16* x, u16* y, int out_features, int in_features,
       int rows_per_block, int rounds) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const u32 warps = 32;
    const u32 rank = blockIdx.x, ranks = gridDim.x;
    unsigned char* table = shared;                                         // [pair of slots][256 codes][slot of the pair][32 lanes] f32
    float* partial = reinterpret_cast<float*>(shared + 2 * 65536);         // [rows_per_block], this block's sums of earlier rounds
    float* received = partial + rows_per_block;                            // [ranks][rows_owned], sums sent to this block
    const u32 fours = rows_per_block / 4, rows_owned = rows_per_block / ranks;
    const uint4* stream = codes + (static_cast<size_t>(blockIdx.y) * ranks + rank) * rounds * fours * 32 + lane;

    allow_next_kernel();
    cluster_arrive();  // waited for before the first write to another block, which must have started by then
    uint4 ahead[DEPTH];
    for (int round = 0; round < rounds; ++round) {
        // Codewords first: behind a queue of codes they would be waited for longest.
        const u32 first_slot = (round * ranks + rank) * 4;
        float word[TILES][STEPS][4];
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            const u32 tile = warp + i * warps, slot = first_slot + (tile >> 4);
            const u16* from = codebooks + ((slot % AQLM_M) * 256 + (tile & 15) * 16 + g) * AQLM_G + t;
#pragma unroll
            for (u32 s = 0; s < STEPS; ++s) {
                word[i][s][0] = f32_of_f16(from[s * 8]);
                word[i][s][1] = f32_of_f16(from[s * 8 + 8 * AQLM_G]);
                word[i][s][2] = f32_of_f16(from[s * 8 + 4]);
                word[i][s][3] = f32_of_f16(from[s * 8 + 8 * AQLM_G + 4]);
            }
        }
        if (round == 0) {
#pragma unroll
            for (u32 d = 0; d < DEPTH; ++d) {
                const u32 four = warp + d * warps;
                if (four < fours) ahead[d] = load_once(stream + static_cast<size_t>(four) * 32);
            }
            wait_for_previous_kernel();
        } else {
            __syncthreads();  // the last round's look-ups are done
        }
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            const u32 tile = warp + i * warps, slot = tile >> 4;
            const u32 group = (first_slot + slot) / AQLM_M * 32;
            float product[4][4];  // [eight input groups][fragment]
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                const u32 column = (group + n * 8 + g) * AQLM_G + t;
                const bool there = column < static_cast<u32>(in_features);
#pragma unroll
                for (u32 k = 0; k < 4; ++k) product[n][k] = 0.0f;
#pragma unroll
                for (u32 s = 0; s < STEPS; ++s) {
                    const float input[2] = {there ? f32_of_f16(x[column + s * 8]) : 0.0f, there ? f32_of_f16(x[column + s * 8 + 4]) : 0.0f};
                    multiply_16x8x8(product[n], word[i][s], input);
                }
            }
            // A lane has codes g and g + 8 at input groups 8 n + 2 t, + 1. If all lanes stored the same n, the eight g would meet in the
            // same banks; so lane g starts at n = g mod 4. The rotation selects, because registers cannot be indexed.
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                const float p0 = product[0][k], p1 = product[1][k], p2 = product[2][k], p3 = product[3][k];
                const bool by1 = g & 1, by2 = g & 2;
                const float q0 = by1 ? p1 : p0, q1 = by1 ? p2 : p1, q2 = by1 ? p3 : p2, q3 = by1 ? p0 : p3;
                product[0][k] = by2 ? q2 : q0;
                product[1][k] = by2 ? q3 : q1;
                product[2][k] = by2 ? q0 : q2;
                product[3][k] = by2 ? q1 : q3;
            }
            unsigned char* rows = table + (slot >> 1) * 65536 + (slot & 1) * 128 + ((tile & 15) * 16 + g) * 256 + t * 8;
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                unsigned char* at = rows + ((n + g) & 3) * 32;
                *reinterpret_cast<float2*>(at) = make_float2(product[n][0], product[n][1]);
                *reinterpret_cast<float2*>(at + 8 * 256) = make_float2(product[n][2], product[n][3]);
            }
        }
        __syncthreads();
        const bool last = round + 1 == rounds;
        if (last) cluster_wait();

        // A table's address is code * 256 + slot * 128 + lane * 4: byte 1 is the code, byte 0 the lane, so one permute makes it.
        const u32 lane_bytes = lane * 4;
        for (u32 first = warp; first < fours; first += warps * DEPTH) {
#pragma unroll
            for (u32 d = 0; d < DEPTH; ++d) {
                const u32 four = first + d * warps;
                if (four >= fours) break;
                const u32 row_codes[4] = {ahead[d].x, ahead[d].y, ahead[d].z, ahead[d].w};
                // The next load of this register: further down this round, or the same place of the next round.
                if (four + warps * DEPTH < fours) {
                    ahead[d] = load_once(stream + static_cast<size_t>(four + warps * DEPTH) * 32);
                } else if (!last) {
                    ahead[d] = load_once(stream + static_cast<size_t>(fours + warp + d * warps) * 32);
                }
                float sum[4];
#pragma unroll
                for (u32 row = 0; row < 4; ++row) {
                    const u32 word = row_codes[row];
                    const float s0 = *reinterpret_cast<const float*>(table + __byte_perm(word, lane_bytes, 0x5504));
                    const float s1 = *reinterpret_cast<const float*>(table + 128 + __byte_perm(word, lane_bytes, 0x5514));
                    const float s2 = *reinterpret_cast<const float*>(table + 65536 + __byte_perm(word, lane_bytes, 0x5524));
                    const float s3 = *reinterpret_cast<const float*>(table + 65664 + __byte_perm(word, lane_bytes, 0x5534));
                    sum[row] = (s0 + s1) + (s2 + s3);
                }
                float total = sum_four_rows(sum[0], sum[1], sum[2], sum[3]);
                if ((lane & 7) == 0) {
                    const u32 row = four * 4 + (lane >> 3);
                    if (round > 0) total += partial[row];
                    if (last) {
                        const u32 owner = row / rows_owned;
                        cluster_write(received + rank * rows_owned + (row - owner * rows_owned), owner, total);
                    } else {
                        partial[row] = total;
                    }
                }
            }
        }
        stream += static_cast<size_t>(fours) * 32;
    }

    cluster_arrive();
    cluster_wait();
    for (u32 i = threadIdx.x; i < rows_owned; i += blockDim.x) {
        const u32 row = blockIdx.y * rows_per_block + rank * rows_owned + i;
        if (row < static_cast<u32>(out_features)) {
            float sum = 0.0f;
            for (u32 peer = 0; peer < ranks; ++peer) sum += received[peer * rows_owned + i];
            y[row] = f16_of_f32(sum * f32_of_f16(scales[row]));
        }
    }
}
