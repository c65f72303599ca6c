#include "../common.cuh"
// matvec k7: one large codebook, sliced finely. A lane keeps its input group of x in registers and processes
// the codes of that group. M = 1, B = 13 to 16.
//
// Parallel over: a block has a slice of the codebook in shared memory and a slab of rows, and handles those
//   codes of the rows that fall into its slice. lane = input group, in any order of rows. The packer has
//   sorted codes by slice and group, each with its row (an item).
// Why it should be faster than k4: in k4 lane = row, so each item reads a codeword and x from shared memory,
//   4 G bytes. Here x is read once a lane, and an item costs 2 G bytes and 4 for the sum. With k4's slices of
//   128 KiB, 17 MB come from L2 before the first item; slices here are half as large. Blocks synchronize
//   through global memory instead of within a cluster, so 128 multiprocessors work instead of 112 or 120.
//   Tables of products (k6) would write six products for each that is needed.
// The items of a lane come in no order of rows, so sums are integers. A group's product is rounded to a
//   multiple of a power of two, q, derived from the largest |x_group|_1 and the largest codeword such that no
//   sum reaches 2^31. Adding 1.5 2^23 to product / q rounds it and leaves it in the low bits. The upper bits
//   of 1.5 2^23 enter each row's sum in_groups times and are subtracted at the end. Integers are added by
//   atomics in shared memory, in any order with the same result. Each block then writes its sums of the slab,
//   a barrier of the slab's blocks follows, and each block adds up its share of the rows. All matrices share
//   the memory of those sums. Were it separate for each matrix, 150 MB of matrices would write 3 MB back a
//   launch.
// Bytes: 24 bits an item instead of 16 (8.5 MB), some padding, sums of slices x rows x 4 bytes (1.4 MB)
//   written and read in L2.
// Order of loads: what is requested first arrives first, so all but a warp's first items are requested after
//   x has arrived.
// Bank conflicts: the packer orders a lane's items so that the lanes served together read codewords from
//   different bank groups and add to rows in different banks.
// Predicted, 4096 -> 11008, 1x16g16, 128 blocks of 22,000 items at 1.98 GHz: launch 1,800 clocks; codewords
//   and x 1,800; items 700 steps of a warp, each 8 passes of shared memory for codewords, 2 to 4 for sums:
//   7,000 to 8,400 (overlapping 8.5 MB of items, 6,000 at the rate of a copy); writing sums 800, barrier
//   1,400, reading and adding 1,600. Total: 14,400 to 15,800 clocks, 7.3 to 8 us.
// Measured: 12.9 us, 11.8 overlapped (k4: 19.2, 19.1). Clocks: codewords and x 5,200 to 5,600; items 10,500,
//   14 a step; writing sums 600, barrier 3,800, reading and adding 2,100.
// Arithmetic: f16 products and sums inside a group (G / 2 terms; with bf16 f32), rounded to q <= 2^-19 of the
//   largest possible product (in_groups up to 2,047), then exact.
// Limits: M 1, out_group 1, G 8 or 16. Every block waits for all others of its slab, so all must be resident
//   at once: no more blocks than multiprocessors, and one launch at a time with the same scratch.
//   allow_next_kernel() is safe: the next kernel's blocks start only when all blocks of this one run.
// items: chunks of four items for 32 lanes, 24 bits each: [chunk][3][lane] u32. An item is the code within
//   its slice, then the row of the slab. Padding adds to rows after the slab's.
// The first HEAD chunks of each warp come first, [slab][slice][warp][HEAD], so that they can be requested
//   before anything else is known.
// spans: [slab][slice][warp] {offset of the rest and length including the head, both in units of 32 words;
//   items of a lane in each round}.
// groups: [slab][slice][warp][round][lane] u16.
// codebook: [2^B] codewords.
// scratch: [COUNTERS] counters of slabs, zeros; [slab][owner][slice][rows owned] sums.
// Compile-time: AQLM_G, AQLM_SLICE_BITS.

#define WARPS 24
#define HEAD 6   // chunks of a warp at a known offset
#define RING 8   // chunks of a warp in shared memory
#define CHUNK_BYTES 384
#define COUNTERS 256
#define PADDING_ROWS 32  // after a slab's own: padding adds to them
#define WORDS (AQLM_G / 2)
#define CODEWORD_BYTES (AQLM_G * 2)
#define SLICE_BYTES (CODEWORD_BYTES << AQLM_SLICE_BITS)
#define MAGIC 12582912.0f  // 1.5 2^23
#define MAGIC_BITS 0x4b400000u

// The product of an item's codeword and this lane's input group in multiples of q, in the low bits of a
// float.
__device__ __forceinline__ u32 item_product(u32 item, const unsigned char* slice, const uint4 (&input)[AQLM_G / 8], float per_q) {
    GroupSum sum = 0;
    const u32 code = (item & ((1u << AQLM_SLICE_BITS) - 1)) * CODEWORD_BYTES;
#if AQLM_G == 8
    add_products(sum, *reinterpret_cast<const uint4*>(slice + code), input[0]);
#else
    // Lanes 0-3 and 4-7 read different halves first: two 32-byte codewords at different offsets mod 128 can
    // still share banks in one half.
    const u32 flip = (threadIdx.x & 4) << 2;
    add_products(sum, *reinterpret_cast<const uint4*>(slice + (code | flip)), input[0]);
    add_products(sum, *reinterpret_cast<const uint4*>(slice + (code | (16 ^ flip))), input[1]);
#endif
    return __float_as_uint(group_total(sum) * per_q + MAGIC);
}

__device__ __forceinline__ void add_to_row(u32* totals, u32 item, u32 product) {
    atomicAdd(totals + (item >> AQLM_SLICE_BITS & ((1u << (24 - AQLM_SLICE_BITS)) - 1)), product);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
matvec(const unsigned char* items, const u32* spans, const u16* groups, const uint4* codebook, u32* scratch, const u16* scales, const uint4* x, u16* y,
       int out_features, int in_features, int rows_per_slab, int rounds, int largest, int product_bits) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 slice = blockIdx.x, slices = gridDim.x, slab = blockIdx.y, block = slab * slices + slice;
    const u32 rows = static_cast<u32>(rows_per_slab), owned = rows / slices, in_groups = static_cast<u32>(in_features) / AQLM_G;
    unsigned char* codewords = shared;
    unsigned char* ring = shared + SLICE_BYTES + warp * (RING * CHUNK_BYTES);         // this warp's [RING][3][lane] u32
    uint4* inputs = reinterpret_cast<uint4*>(shared + SLICE_BYTES + WARPS * RING * CHUNK_BYTES);  // x
    u32* totals = reinterpret_cast<u32*>(inputs + in_features / 8);                   // [rows + PADDING_ROWS]
    float* norms = reinterpret_cast<float*>(totals + rows + PADDING_ROWS);                      // [WARPS]
    allow_next_kernel();

    for (u32 i = threadIdx.x; i < SLICE_BYTES / 16; i += WARPS * 32) start_copy16(codewords + i * 16, codebook + slice * (SLICE_BYTES / 16) + i);
    close_copies();
    const u32* span = spans + static_cast<size_t>(block * WARPS + warp) * (2 + rounds);
    const u16* my_groups = groups + static_cast<size_t>(block * WARPS + warp) * rounds * 32 + lane;
    const u32 first = span[0], words = span[1];
    u32 left = span[2], group = my_groups[0], round = 0;
    const u32 my_row = slab * rows + slice * owned + threadIdx.x;
    const bool own_row = threadIdx.x < owned && my_row < static_cast<u32>(out_features);
    const u16 scale = own_row ? scales[my_row] : 0;
    wait_for_previous_kernel();

    const u32 before = threadIdx.x == 0 ? load_fresh(scratch + slab) : 0;
    // x, and the largest |x_group|_1 with the same bits in every block. What was requested first arrives
    // first: codewords and x before items.
    uint4 vector[AQLM_G / 8];
#pragma unroll
    for (u32 v = 0; v < AQLM_G / 8; ++v) vector[v] = threadIdx.x < in_groups ? x[threadIdx.x * (AQLM_G / 8) + v] : uint4{0, 0, 0, 0};
    const unsigned char* head = items + static_cast<size_t>(block * WARPS + warp) * (HEAD * CHUNK_BYTES) + lane * 16;
    if (lane < CHUNK_BYTES / 16) start_copy16(ring + lane * 16, head);
    close_copies();
    for (u32 i = threadIdx.x; i < rows + PADDING_ROWS; i += WARPS * 32) totals[i] = 0;
    float norm = 0.0f;
    for (u32 i = threadIdx.x; i < in_groups; i += WARPS * 32) {
        float own = 0.0f;
#pragma unroll
        for (u32 v = 0; v < AQLM_G / 8; ++v) {
            inputs[i * (AQLM_G / 8) + v] = vector[v];
            const u32 words[4] = {vector[v].x, vector[v].y, vector[v].z, vector[v].w};
#pragma unroll
            for (u32 k = 0; k < 4; ++k) own += fabsf(low_x(words[k])) + fabsf(high_x(words[k]));
            if (i + WARPS * 32 < in_groups) vector[v] = x[(i + WARPS * 32) * (AQLM_G / 8) + v];
        }
        // Not fmaxf, which would drop a NaN.
        norm = own > norm || own != own ? own : norm;
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) {
        const float other = __shfl_xor_sync(WARP_MASK, norm, mask);
        norm = other > norm || other != other ? other : norm;
    }
    if (lane == 0) norms[warp] = norm;
    // The rest of the items, as many as the ring holds.
    const unsigned char* tail = items + static_cast<size_t>(first) * 128 + lane * 16;  // what follows the head, less the head
    const u32 ends = words * 8 > lane ? (words * 8 - lane + 23) / 24 : 0, chunks = (words + 2) / 3;  // this lane's vectors, the warp's chunks
#pragma unroll
    for (u32 d = 1; d < HEAD; ++d) {
        if (lane < CHUNK_BYTES / 16) start_copy16(ring + d * CHUNK_BYTES + lane * 16, head + d * CHUNK_BYTES);
        close_copies();
    }
#pragma unroll
    for (u32 d = HEAD; d < RING; ++d) {
        if (lane < CHUNK_BYTES / 16 && d < ends) start_copy16(ring + d * CHUNK_BYTES + lane * 16, tail + (d - HEAD) * CHUNK_BYTES);
        close_copies();
    }
    copies_in_flight<RING>();  // codewords are there
    __syncthreads();
    norm = norms[lane < WARPS ? lane : 0];
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) {
        const float other = __shfl_xor_sync(WARP_MASK, norm, mask);
        norm = other > norm || other != other ? other : norm;
    }
    // A product stays below 2^(exponent + 1). The factor 1.01 allows for rounding inside a group, -14 for
    // rounding of f16 subnormals.
    const float bound = norm * 1.01f * f32_of_f16(static_cast<u16>(largest));
    const int least = AQLM_BF16 ? -90 : -14;
    int exponent = static_cast<int>(__float_as_uint(bound) >> 23) - 127;
    if (exponent < least) exponent = least;
    // Where a group's sum might overflow f16, x is first multiplied by a power of two.
    const int lowered = AQLM_BF16 || exponent <= 14 ? 0 : exponent - 14;
    const int shift = product_bits - 1 - (exponent - lowered);
    const float per_q = __uint_as_float(static_cast<u32>(127 + shift) << 23);
    uint4 input[AQLM_G / 8];
    const auto take_input = [&](u32 of) {
#if AQLM_G == 8
        input[0] = inputs[of];
#else
        const u32 first = threadIdx.x >> 2 & 1;
        input[0] = inputs[of * 2 + first];
        input[1] = inputs[of * 2 + 1 - first];
#endif
#if !AQLM_BF16
        if (lowered > 0) {
            const u32 factor = lowered <= 14 ? static_cast<u32>(15 - lowered) << 10 : 1u << (24 - lowered);
#pragma unroll
            for (u32 v = 0; v < AQLM_G / 8; ++v) {
                input[v].x = mul_f16x2(input[v].x, factor | factor << 16);
                input[v].y = mul_f16x2(input[v].y, factor | factor << 16);
                input[v].z = mul_f16x2(input[v].z, factor | factor << 16);
                input[v].w = mul_f16x2(input[v].w, factor | factor << 16);
            }
        }
#endif
    };
    take_input(group);

#pragma unroll 1
    for (u32 chunk = 0; chunk < chunks; ++chunk) {
        if (left == 0) {
            ++round;
            left = span[2 + round];
            take_input(my_groups[round * 32]);
        }
        copies_in_flight<RING - 1>();
        __syncwarp();
        unsigned char* slot = ring + chunk % RING * CHUNK_BYTES;
        const u32* mine = reinterpret_cast<const u32*>(slot) + lane;
        const u32 w0 = mine[0], w1 = mine[32], w2 = mine[64];
        // Products before sums: no load may pass an atomic.
        const u32 i0 = w0, i1 = __byte_perm(w0, w1, 0x7543), i2 = __byte_perm(w1, w2, 0x7432), i3 = w2 >> 8;
        __syncwarp();  // the slot is read
        if (lane < CHUNK_BYTES / 16 && chunk + RING < ends) start_copy16(slot + lane * 16, tail + (chunk + (RING - HEAD)) * CHUNK_BYTES);
        close_copies();
        const u32 p0 = item_product(i0, codewords, input, per_q), p1 = item_product(i1, codewords, input, per_q);
        if (left > 2) {
            const u32 p2 = item_product(i2, codewords, input, per_q), p3 = item_product(i3, codewords, input, per_q);
            add_to_row(totals, i2, p2);
            add_to_row(totals, i3, p3);
        }
        add_to_row(totals, i0, p0);
        add_to_row(totals, i1, p1);
        left = left > 4 ? left - 4 : 0;
    }

    __syncthreads();
    // [owner][slice][rows owned] of this slab, four rows at a time.
    const u32 quads = owned / 4;
    uint4* slab_sums = reinterpret_cast<uint4*>(scratch + COUNTERS) + static_cast<size_t>(slab) * slices * (rows / 4);
    for (u32 i = threadIdx.x; i < rows / 4; i += WARPS * 32) {
        const u32 owner = i / quads;
        slab_sums[(owner * slices + slice) * quads + (i - owner * quads)] = reinterpret_cast<const uint4*>(totals)[i];
    }
    meet_blocks(scratch + slab, slices, slice == 0, before);
    // Thread (part, quad) adds up every parts-th slice's sums of four rows.
    const u32 parts = WARPS * 32 / quads < slices ? WARPS * 32 / quads : slices;
    const u32 part = threadIdx.x / quads, quad = threadIdx.x - part * quads;
    uint4* partial = reinterpret_cast<uint4*>(codewords);
    if (part < parts) {
        const uint4* from = slab_sums + slice * slices * quads + quad;
        uint4 total = {0, 0, 0, 0};
        // Two at once. Past the last slice, the load is repeated and not added.
        for (u32 of = part; of < slices; of += 2 * parts) {
            const bool two = of + parts < slices;
            const uint4 a = load_fresh(from + of * quads), b = load_fresh(from + (two ? of + parts : of) * quads);
            total = {total.x + a.x, total.y + a.y, total.z + a.z, total.w + a.w};
            if (two) total = {total.x + b.x, total.y + b.y, total.z + b.z, total.w + b.w};
        }
        partial[threadIdx.x] = total;
    }
    __syncthreads();
    // If x holds an infinity or NaN, all results are NaN.
    const float q = bound < 3e38f ? __uint_as_float(static_cast<u32>(127 - shift) << 23) : __uint_as_float(0x7fc00000);
    const float raised = __uint_as_float(static_cast<u32>(127 + lowered) << 23);
    if (own_row) {
        u32 total = 0u - in_groups * MAGIC_BITS;
#pragma unroll 4
        for (u32 of = 0; of < parts; ++of) total += reinterpret_cast<const u32*>(partial)[of * owned + threadIdx.x];
        y[my_row] = y_of_f32(static_cast<float>(static_cast<int>(total)) * q * raised * f32_of_f16(scale));
    }
}
