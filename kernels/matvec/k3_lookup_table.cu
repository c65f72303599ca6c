#include "../common.cuh"
#include "../experts.cuh"
// matvec k3: first computes the products of x with every codeword, then does one 4-byte look-up a code. For B
// = 8.
//
// Parallel over: a cluster of blocks shares a slab of rows, and each block takes some of its input groups.
//   Inside a block, warps take four rows at a time; lane = input group modulo 32. Each block sends its
//   partial row sums to the block that owns the row (distributed shared memory), which adds them in rank
//   order.
// Why faster than k2: a slot is 32 input groups of one codebook. Its table [256 codes][32 lanes] holds
//   <x_group, codeword> in f32, and lane l reads only bank l. So 32 codes cost one conflict-free pass of
//   shared memory (k2: at least 4) and three instructions: a byte permute that builds the address from code
//   byte and lane, the load, the addition. Codes then stream at the speed of memory.
// Building a table is a small matrix product. Tensor cores do it in tf32, in which every f16 is exact.
// Arithmetic: exact products of f16 or bf16, sums in f32.
// Limits: B 8, out_group 1, G 8 or 16, sm_90 (clusters), 1024 threads.
// codes: [row slab][rank][round][four rows][lane] of 16 bytes. The word is the row among the four, the byte
//   is the slot among the round's four.
// Slots are numbered over (input groups / 32, codebook). The slot of (round, rank, byte) is (round * ranks +
//   rank) * 4 + byte.
// rows_per_block is a multiple of 4 ranks, so that four rows have one owner.
// With AQLM_PARTS, slabs of up to three matrices share the launch. codebooks holds the matrices' codebooks
//   one after the other. `second` and `third` are the first slabs of the second and the third matrix.
// Compile-time: AQLM_M, AQLM_G, AQLM_PARTS, AQLM_EXPERTS (experts.cuh).

#define THREADS 1024
#define SLOTS 4   // of a round, whose tables a block holds at once
#define TABLE_ALIGNMENT 65536  // look_up() builds addresses byte by byte
// 16-byte loads of codes in flight a lane. More would delay x and the codewords, which are needed first.
#define DEPTH 2
#define TILES 2   // (slot, 16 codes) tiles of table that a warp builds: 4 slots * 16 tiles / 32 warps
#define STEPS (AQLM_G / 8)

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
matvec(const uint4* codes, const u32* codebooks, const u16* scales, const u32* x, u16* y, EXPERT_POINTER int out_features, int in_features,
       int rows_per_block, int rounds
#ifdef AQLM_PARTS
       , int second, int third
#endif
       EXPERT_SIZES
#ifdef AQLM_EXPERTS
       , int codes_stride, int codebooks_stride, int scales_stride
#endif
) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const u32 warps = 32;
    const u32 rank = blockIdx.x, ranks = gridDim.x;
    float* partial = reinterpret_cast<float*>(shared);                     // [rows_per_block], this block's sums
    float* received = partial + rows_per_block;                            // [ranks][rows_owned], sums sent to this block
    // [pair of slots][256 codes][slot of the pair][32 lanes] f32, where shared-memory addresses are multiples
    // of 65536 (see look_up)
    const u32 table_address = (shared_address(shared) + rows_per_block * 8 + (TABLE_ALIGNMENT - 1)) & ~(TABLE_ALIGNMENT - 1u);
    unsigned char* table = shared + (table_address - shared_address(shared));
#ifdef AQLM_EXPERTS
    wait_for_previous_kernel();  // for the choice
    const u32 expert = chosen[SLOT];
    codes = of_expert(codes, expert, codes_stride);
    codebooks = of_expert(codebooks, expert, codebooks_stride);
    const u16* first_scales = of_expert(scales, expert, scales_stride);
    x += static_cast<size_t>(SLOT) * (x_stride / 2);
#else
    const u16* first_scales = scales;
#endif
    const u32 fours = rows_per_block / 4, rows_owned = rows_per_block / ranks;
    const uint4* stream = codes + (static_cast<size_t>(SLAB) * ranks + rank) * rounds * fours * 32 + lane;

#ifdef AQLM_PARTS
    codebooks += part_of(SLAB, second, third) * (AQLM_M * 256 * AQLM_G / 2);
#endif

    // Prefetches into L2 the scale of the first row that this thread finishes. The scale is needed only at
    // the end, and until then it takes no register.
    const u32 first_owned = SLAB * rows_per_block + rank * rows_owned;
    if (threadIdx.x < rows_owned && first_owned + threadIdx.x < static_cast<u32>(out_features)) prefetch_line(first_scales + first_owned + threadIdx.x);

    allow_next_kernel();
    cluster_arrive();  // waited for before the first write to another block, which must have started by then
    for (int round = 0; round < rounds; ++round) {
        // Codewords first: queued behind codes, they would arrive last.
        const u32 first_slot = (round * ranks + rank) * SLOTS;
        u32 word[TILES][STEPS][2];
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            const u32 tile = warp + i * warps, slot = first_slot + (tile >> 4);
            const u32* from = codebooks + (((slot % AQLM_M) * 256 + (tile & 15) * 16 + g) * AQLM_G) / 2 + t;
#pragma unroll
            for (u32 s = 0; s < STEPS; ++s) {
                word[i][s][0] = from[s * 4];
                word[i][s][1] = from[s * 4 + 4 * AQLM_G];
            }
        }
        uint4 ahead[DEPTH];
#pragma unroll
        for (u32 d = 0; d < DEPTH; ++d) {
            if (warp + d * warps < fours) ahead[d] = load_once(stream + (warp + d * warps) * 32);
        }
        if (round == 0) {
            wait_for_previous_kernel();
        } else {
            __syncthreads();  // the last round's look-ups are done
        }
#pragma unroll
        for (u32 i = 0; i < TILES; ++i) {
            const u32 tile = warp + i * warps, slot = tile >> 4;
            const u32 group = (first_slot + slot) / AQLM_M * 32;
            // Column c of product n is input group 8 (c / 2) + 2 n + c % 2, so the results of a lane are
            // adjacent.
            u32 input[4][STEPS];
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                const u32 column = (group + 8 * (g >> 1) + 2 * n + (g & 1)) * AQLM_G + 2 * t;
#pragma unroll
                for (u32 s = 0; s < STEPS; ++s) input[n][s] = column < static_cast<u32>(in_features) ? x[column / 2 + s * 4] : 0;
            }
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
                    const float right[2] = {low_x(input[n][s]), high_x(input[n][s])};
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
        }
        __syncthreads();

        const u32 place = table_address + lane * 4;
        for (u32 first = warp; first < fours; first += warps * DEPTH) {
#pragma unroll
            for (u32 d = 0; d < DEPTH; ++d) {
                const u32 four = first + d * warps;
                if (four >= fours) break;
                const float s0 = look_up(ahead[d].x, place), s1 = look_up(ahead[d].y, place);
                const float s2 = look_up(ahead[d].z, place), s3 = look_up(ahead[d].w, place);
                if (four + warps * DEPTH < fours) ahead[d] = load_once(stream + (four + warps * DEPTH) * 32);
                const float total = sum_four_rows(s0, s1, s2, s3);
                if ((lane & 7) == 0) {
                    float* into = partial + four * 4 + (lane >> 3);
                    *into = round == 0 ? total : *into + total;
                }
            }
        }
        stream += fours * 32;
    }

    __syncthreads();
    cluster_wait();
    for (u32 row = threadIdx.x; row < static_cast<u32>(rows_per_block); row += blockDim.x) {
        const u32 owner = row / rows_owned;
        cluster_write(received + rank * rows_owned + (row - owner * rows_owned), owner, partial[row]);
    }
    cluster_arrive();
    cluster_wait();
#ifdef AQLM_EXPERTS
    // Not before, for want of registers.
    scales = of_expert(scales, chosen[SLOT], scales_stride);
    y += static_cast<size_t>(SLOT) * y_stride;
#endif
    for (u32 i = threadIdx.x; i < rows_owned; i += blockDim.x) {
        const u32 row = first_owned + i;
        if (row < static_cast<u32>(out_features)) {
            float sum = 0.0f;
            for (u32 peer = 0; peer < ranks; ++peer) sum += received[peer * rows_owned + i];
            y[row] = y_of_f32(sum * f32_of_f16(scales[row]));
        }
    }
}
