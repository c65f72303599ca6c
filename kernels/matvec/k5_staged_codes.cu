#include "../common.cuh"
// matvec k5: k3's tables, with codes copied to shared memory while tables are built, and sums sent directly
// to the owning block. B = 8. Slower than k3. It is kept to record the reason: the copies pass through the
// shared memory that already bounds the look-ups.
//
// Parallel over: as k3. A cluster of blocks shares a slab of rows, a block takes some of its input groups, a
//   warp four rows at a time, a lane the input group modulo 32.
// Why it should be faster than k3: k3 holds two loads of codes a lane in registers, 32 KiB of a block's 90,
//   and has no registers for more. So memory idles while tables are built. Copies to shared memory take no
//   registers: AQLM_DEPTH of them a lane are in flight. Each lane reads back only what it copied itself, so
//   no barrier is needed. The copies start after x and the codewords have arrived, which would otherwise
//   queue behind them. A warp's four sums go straight to the block that owns the rows instead of through
//   shared memory and a barrier.
// Predicted, 4096 -> 11008, 2x8g8, at 1.98 GHz: launch 1,800 clocks, codewords and x 1,200, codes 11.3 MB at
//   3 TB/s 7,400 (overlapping tables, 2,000, and look-ups, 4,600 of shared memory), exchange 1,200: 11,600
//   clocks, 5.9 us; with imperfect overlap 7. 1x8g8: 1,800 + 1,200 + 1,700 + 2,000 + 1,200: 7,900 clocks, 4.0
//   us, and 4.8 with imperfect overlap.
// Measured: 9.6 and 7.0 us (k3: 8.7 and 6.6).
// Arithmetic: exact products of f16 or bf16, sums in f32.
// Limits: B 8, out_group 1, G 8 or 16, sm_90 (clusters), 1024 threads.
// codes: as k3.
// Compile-time: AQLM_M, AQLM_G, AQLM_DEPTH copies a lane, AQLM_BEFORE of them ahead of the table and the
//   others behind it.

#define THREADS 1024
#define SLOTS 4       // of a round, whose tables a block holds at once
#define TABLE_ALIGNMENT 65536  // look_up() builds addresses byte by byte
#define TABLE_BYTES 131072
#define TILES 2       // (slot, 16 codes) tiles of table that a warp builds: 4 slots * 16 tiles / 32 warps
#define STEPS (AQLM_G / 8)
#define WARPS 32u
#define COPY_BYTES (WARPS * 512)   // of a block's lanes

// Looks up the four codes of a word in the four slots. An address is table + code * 256 + slot * 128 + lane *
// 4. With the table at a multiple of 65536, byte 1 of the address is the code and the other bytes are those
// of `place`, so one permute builds it.
__device__ __forceinline__ float look_up(u32 codes, u32 place) {
    const float s0 = load_shared_f32<0>(__byte_perm(codes, place, 0x7604));
    const float s1 = load_shared_f32<128>(__byte_perm(codes, place, 0x7614));
    const float s2 = load_shared_f32<65536>(__byte_perm(codes, place, 0x7624));
    const float s3 = load_shared_f32<65664>(__byte_perm(codes, place, 0x7634));
    return (s0 + s1) + (s2 + s3);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
matvec(const uint4* codes, const u32* codebooks, const u16* scales, const u32* x, u16* y, int out_features, int in_features,
       int rows_per_block, int rounds) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const u32 rank = blockIdx.x, ranks = gridDim.x;
    float* received = reinterpret_cast<float*>(shared);                    // [ranks][rows_owned], sums sent to this block
    float* partial = received + rows_per_block;                            // [rows_per_block], sums of earlier rounds
    unsigned char* copies = shared + rows_per_block * 8;                   // [copy][warp][lane] 16 bytes, AQLM_BEFORE of them
    // [pair of slots][256 codes][slot of the pair][32 lanes] f32, where shared-memory addresses are multiples
    // of 65536 (see look_up)
    const u32 table_address = (shared_address(copies) + AQLM_BEFORE * COPY_BYTES + (TABLE_ALIGNMENT - 1)) & ~(TABLE_ALIGNMENT - 1u);
    unsigned char* table = shared + (table_address - shared_address(shared));
    copies += threadIdx.x * 16;
    unsigned char* later_copies = table + TABLE_BYTES + threadIdx.x * 16;
    const u32 fours = rows_per_block / 4, rows_owned = rows_per_block / ranks;
    // Finds the owner of four rows by multiplication. The result is exact: the quotient is at least 1 / (2
    // fours owned) away from a whole number.
    const float per_owner = 1.0f / static_cast<float>(rows_owned / 4);
    const uint4* stream = codes + (static_cast<size_t>(blockIdx.y) * ranks + rank) * rounds * fours * 32 + lane;

    allow_next_kernel();
    cluster_arrive();  // waited for before the first write to another block, which must have started by then
    const u32 first_owned = blockIdx.y * rows_per_block + rank * rows_owned;
    u16 first_scale = 0;
    for (int round = 0; round < rounds; ++round) {
        const u32 first_slot = (round * ranks + rank) * SLOTS;
        const bool last = round + 1 == rounds;
        u32 word[TILES][STEPS][2];
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            const u32 tile = warp + i * WARPS, slot = first_slot + (tile >> 4);
            const u32* from = codebooks + (((slot % AQLM_M) * 256 + (tile & 15) * 16 + g) * AQLM_G) / 2 + t;
#pragma unroll
            for (u32 s = 0; s < STEPS; ++s) {
                word[i][s][0] = from[s * 4];
                word[i][s][1] = from[s * 4 + 4 * AQLM_G];
            }
        }
        if (last && threadIdx.x < rows_owned && first_owned + threadIdx.x < static_cast<u32>(out_features)) first_scale = scales[first_owned + threadIdx.x];
        if (round == 0) {
            wait_for_previous_kernel();
        } else {
            __syncthreads();  // the last round's look-ups are done
        }
        // Column c of product n is input group 8 (c / 2) + 2 n + c % 2, so the results of a lane are
        // adjacent.
        u32 input[TILES][4][STEPS];
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            const u32 group = (first_slot + ((warp + i * WARPS) >> 4)) / AQLM_M * 32;
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                const u32 column = (group + 8 * (g >> 1) + 2 * n + (g & 1)) * AQLM_G + 2 * t;
#pragma unroll
                for (u32 s = 0; s < STEPS; ++s) input[i][n][s] = column < static_cast<u32>(in_features) ? x[column / 2 + s * 4] : 0;
            }
        }
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            const u32 tile = warp + i * WARPS, slot = tile >> 4;
            // The terms of a group's sum may come in any order. Index k of the product is element 2 k for k <
            // 4 and 2 k - 7 above, so that the two elements of a lane are neighbours in memory.
            float product[4][4];  // [n][fragment]
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
#pragma unroll
                for (u32 k = 0; k < 4; ++k) product[n][k] = 0.0f;
#pragma unroll
                for (u32 s = 0; s < STEPS; ++s) {
                    const float left[4] = {low_f32(word[i][s][0]), low_f32(word[i][s][1]), high_f32(word[i][s][0]), high_f32(word[i][s][1])};
                    const float right[2] = {low_x(input[i][n][s]), high_x(input[i][n][s])};
                    multiply_16x8x8(product[n], left, right);
                }
            }
            // A lane has codes g and g + 8 at input groups 8 t to 8 t + 7, 32 bytes a code. Eight lanes, with
            // two values of g, store at once. To avoid bank conflicts, even g store their first half first
            // and odd g their second.
            const bool odd = g & 1;
            unsigned char* row = table + (slot >> 1) * 65536 + (slot & 1) * 128 + ((tile & 15) * 16 + g) * 256 + t * 32;
#pragma unroll
            for (u32 k = 0; k < 4; k += 2) {
                const float4 low = {product[0][k], product[0][k + 1], product[1][k], product[1][k + 1]};
                const float4 high = {product[2][k], product[2][k + 1], product[3][k], product[3][k + 1]};
                *reinterpret_cast<float4*>(row + k * 1024 + (odd ? 16 : 0)) = odd ? high : low;
                *reinterpret_cast<float4*>(row + k * 1024 + (odd ? 0 : 16)) = odd ? low : high;
            }
            if (i == 0 && round == 0) {
                // By now this warp's codewords and x have arrived.
#pragma unroll
                for (u32 d = 0; d < AQLM_DEPTH; ++d) {
                    unsigned char* to = d < AQLM_BEFORE ? copies + d * COPY_BYTES : later_copies + (d - AQLM_BEFORE) * COPY_BYTES;
                    if (warp + d * WARPS < fours) start_copy16(to, stream + (warp + d * WARPS) * 32);
                    close_copies();
                }
            }
        }
        if (round > 0) complete_copies();  // of the first AQLM_DEPTH, which the last round started in another order
        __syncthreads();
        if (last) cluster_wait();

        const u32 place = table_address + lane * 4;
        for (u32 first = warp; first < fours; first += WARPS * AQLM_DEPTH) {
#pragma unroll
            for (u32 d = 0; d < AQLM_DEPTH; ++d) {
                const u32 four = first + d * WARPS;
                if (four >= fours) break;
                unsigned char* copy = d < AQLM_BEFORE ? copies + d * COPY_BYTES : later_copies + (d - AQLM_BEFORE) * COPY_BYTES;
                copies_in_flight<AQLM_DEPTH - 1>();
                const uint4 now = *reinterpret_cast<const uint4*>(copy);
                const float s0 = look_up(now.x, place), s1 = look_up(now.y, place);
                const float s2 = look_up(now.z, place), s3 = look_up(now.w, place);
                // The slot is free for this round's later codes, or the next round's.
                if (four + WARPS * AQLM_DEPTH < fours) {
                    start_copy16(copy, stream + (four + WARPS * AQLM_DEPTH) * 32);
                } else if (!last && warp + d * WARPS < fours) {
                    start_copy16(copy, stream + (fours + warp + d * WARPS) * 32);
                }
                close_copies();
                float total = sum_four_rows(s0, s1, s2, s3);
                if ((lane & 7) == 0) {
                    const u32 row = four * 4 + (lane >> 3);
                    if (round > 0) total += partial[row];
                    if (last) {
                        const u32 owner = static_cast<u32>((static_cast<float>(four) + 0.5f) * per_owner);
                        cluster_write(received + rank * rows_owned + (row - owner * rows_owned), owner, total);
                    } else {
                        partial[row] = total;
                    }
                }
            }
        }
        stream += fours * 32;
    }

    cluster_arrive();
    cluster_wait();
    for (u32 i = threadIdx.x; i < rows_owned; i += blockDim.x) {
        const u32 row = first_owned + i;
        if (row < static_cast<u32>(out_features)) {
            float sum = 0.0f;
            for (u32 peer = 0; peer < ranks; ++peer) sum += received[peer * rows_owned + i];
            y[row] = y_of_f32(sum * f32_of_f16(i < blockDim.x ? first_scale : scales[row]));
        }
    }
}
