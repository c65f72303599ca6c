#include "../common.cuh"
#include "../experts.cuh"
// matvec k4: one large codebook, cut into slices that fit shared memory. For M = 1, B = 13 to 16.
//
// Parallel over: a cluster of blocks shares a slab of rows, and each block holds slices of the codebook; lane
//   = row. A block handles only the codes of its slices. They are sorted out at load; a code with its input
//   group is an item. Each block sends its partial row sums to the block that owns the row (distributed
//   shared memory), which adds them in rank order.
// Why faster than k1: a 1 MiB codebook lives in L2, and each gather of 16 bytes moves a sector of 32. L2
//   bandwidth then bounds k1 at about 0.7 of FP16's speed. Here every codeword is read from shared memory.
// Bytes: 24 bits an item instead of 16, some padding, and one slice of codebook a block.
// Bank conflicts: x is stored once for each lane modulo 8, so reads of x never conflict. The items of a row
//   may come in any order. The packer orders them so that the eight lanes of a pass read codewords from eight
//   different bank groups (nearly always).
// Arithmetic: f16 products and sums inside a group (G / 2 terms), f32 across groups; with bf16 f32
//   throughout.
// Limits: M 1, out_group 1, G 8 or 16, sm_90.
// items: chunks of CHUNK items for 32 lanes, 24 bits each: [chunk][3][lane] of 8 bytes (CHUNK 8) or 4 (CHUNK
//   4). An item is the code within its slice (SLICE_BITS), then the position in the window, 24 bits in all. A
//   pass is one (slice, window of WINDOW input groups). Position WINDOW holds zeros, for padding.
// tasks: [slab][rank][pass][task] {first chunk, chunks}: a task is 32 rows of the slab;
// rows: [slab][rank][pass][task][lane] u16, row of slab.
// With AQLM_PARTS, slabs of up to three matrices share the launch. codebook holds the matrices' codebooks one
//   after the other. `second` and `third` are the first slabs of the second and the third matrix.
// Compile-time: AQLM_B, AQLM_G, AQLM_PARTS, AQLM_EXPERTS (experts.cuh).

#define VECTORS (AQLM_G / 8)
// Items of a lane that are loaded together. Lists are short for groups of 16, so the padding of the last
// chunk costs more than wider loads gain.
#define CHUNK_G8 8
#define CHUNK_G16 4
#define MOST_THREADS_G8 736
#define MOST_THREADS_G16 640
#define SLICE_BITS_G8 13
#define SLICE_BITS_G16 12
#define WINDOW_INPUTS 4096
#if AQLM_G == 8
#define CHUNK CHUNK_G8
#define MOST_THREADS MOST_THREADS_G8
#define SLICE_BITS SLICE_BITS_G8
typedef uint2 Load;
#else
#define CHUNK CHUNK_G16
#define MOST_THREADS MOST_THREADS_G16
#define SLICE_BITS SLICE_BITS_G16
typedef u32 Load;
#endif
#define WINDOW (WINDOW_INPUTS / AQLM_G)
#define SLICE_BYTES 131072
#define ENTRY (128 * VECTORS)  // bytes of one input group: its vectors for each lane modulo 8

__device__ __forceinline__ float item_product(const unsigned char* slice, const unsigned char* inputs, u32 item) {
    GroupSum pair = 0;
#if AQLM_G == 8
    const uint4 word = *reinterpret_cast<const uint4*>(slice + ((item & 0x1fffu) << 4));
    const uint4 input = *reinterpret_cast<const uint4*>(inputs + ((item >> 6) & 0x1ff80u));
    add_products(pair, word, input);
#else
    // `slice` and `inputs` already point at the half that this lane reads first. Lanes 0-3 and 4-7 start at
    // different halves, because two 32-byte codewords at different offsets mod 128 can still share banks in
    // one half.
    const u32 code = (item & 0xfffu) << 5, place = (item >> 4) & 0x1ff00u;
    const u32 flip = (threadIdx.x & 4) << 2;
#pragma unroll
    for (u32 half = 0; half < 32; half += 16) {
        const uint4 word = *reinterpret_cast<const uint4*>(slice + (code | (half ^ flip)));
        const uint4 input = *reinterpret_cast<const uint4*>(inputs + (place + (half ^ flip)));
        add_products(pair, word, input);
    }
#endif
    return group_total(pair);
}

// Four items of 24 bits from three words.
__device__ __forceinline__ float four_products(const unsigned char* slice, const unsigned char* inputs, u32 w0, u32 w1, u32 w2) {
#if AQLM_BF16
    // One at a time: sums in f32 take twice the registers.
    float sum = item_product(slice, inputs, w0);
    keep_order();
    sum += item_product(slice, inputs, __byte_perm(w0, w1, 0x7543));
    keep_order();
    sum += item_product(slice, inputs, __byte_perm(w1, w2, 0x7432));
    keep_order();
    return sum + item_product(slice, inputs, w2 >> 8);
#else
    const float p0 = item_product(slice, inputs, w0), p1 = item_product(slice, inputs, __byte_perm(w0, w1, 0x7543));
    const float p2 = item_product(slice, inputs, __byte_perm(w1, w2, 0x7432)), p3 = item_product(slice, inputs, w2 >> 8);
    return (p0 + p1) + (p2 + p3);
#endif
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
matvec(const Load* items, const uint2* tasks, const u16* rows, const uint4* codebook, const u16* scales, const uint4* x, u16* y, EXPERT_POINTER
       int out_features, int in_features, int rows_per_block, int slices_per_block, int windows
#ifdef AQLM_PARTS
       , int second, int third
#endif
       EXPERT_SIZES
#ifdef AQLM_EXPERTS
       , int items_stride, int tasks_stride, int rows_stride, int codebook_stride, int scales_stride
#endif
) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const u32 rank = blockIdx.x, ranks = gridDim.x;
    unsigned char* slice = shared;
    unsigned char* inputs = shared + SLICE_BYTES;                                            // [WINDOW + 1][lane mod 8][vector]
    float* partial = reinterpret_cast<float*>(inputs + (WINDOW + 1) * ENTRY);                // [rows_per_block], sums of earlier passes
    float* received = partial + rows_per_block;                                              // [ranks][rows_owned], sums sent to this block
    const u32 block_tasks = rows_per_block / 32, rows_owned = rows_per_block / ranks;
    const u32 passes = slices_per_block * windows;
#ifdef AQLM_EXPERTS
    wait_for_previous_kernel();  // for the choice
    const u32 expert = chosen[SLOT];
    codebook = of_expert(codebook, expert, codebook_stride);
    x += static_cast<size_t>(SLOT) * (x_stride / 8);
#endif
#ifdef AQLM_PARTS
    codebook += static_cast<size_t>(part_of(SLAB, second, third)) * (ranks * slices_per_block * (SLICE_BYTES / 16));
#endif
    const unsigned char* my_inputs = inputs + (lane & 7) * 16 * VECTORS;

    allow_next_kernel();
    cluster_arrive();  // waited for before the first write to another block, which must have started by then
    for (u32 pass = 0; pass < passes; ++pass) {
        const u32 window = pass % windows;
        if (pass > 0) __syncthreads();  // the last pass is done with both tables
        if (window == 0) {
            const uint4* from = codebook + static_cast<size_t>(rank * slices_per_block + pass / windows) * (SLICE_BYTES / 16);
            for (u32 i = threadIdx.x; i < SLICE_BYTES / 16; i += blockDim.x) start_copy16(slice + i * 16, from + i);
        }
        if (pass == 0) wait_for_previous_kernel();
        // A vector is read once and stored eight times. Threads start at different copies to avoid bank
        // conflicts among the stores.
        for (u32 i = threadIdx.x; i < (WINDOW + 1) * VECTORS; i += blockDim.x) {
            const u32 position = i / VECTORS, group = window * WINDOW + position, vector = i % VECTORS;
            uint4 value = {0, 0, 0, 0};
            if (position < WINDOW && group * AQLM_G < static_cast<u32>(in_features)) value = x[group * VECTORS + vector];
#pragma unroll
            for (u32 k = 0; k < 8; ++k) {
                const u32 copy = (position + k) & 7;
                *reinterpret_cast<uint4*>(inputs + position * ENTRY + (copy * VECTORS + vector) * 16) = value;
            }
        }
        const bool last = pass + 1 == passes;
        if (last) cluster_wait();
        const u32 first_task = ((SLAB * ranks + rank) * passes + pass) * block_tasks;
        for (u32 task = warp; task < block_tasks; task += warps) {
            const uint2 span = OF_EXPERT(tasks)[first_task + task];
            const u32 row = OF_EXPERT(rows)[(first_task + task) * 32 + lane];
            const Load* from = OF_EXPERT(items) + static_cast<size_t>(span.x) * 96 + lane;
            // Two chunks in flight: `next` is used first, then `later`.
            Load next[3], later[3];
#pragma unroll
            for (u32 i = 0; i < 3; ++i) {
                if (span.y > 0) next[i] = load_once(from + i * 32);
                if (span.y > 1) later[i] = load_once(from + (3 + i) * 32);
            }
            if (task == warp) {
                complete_copies();
                __syncthreads();
            }
            float sum = 0.0f;
            for (u32 chunk = 0; chunk < span.y; ++chunk) {
                const Load l0 = next[0], l1 = next[1], l2 = next[2];
#pragma unroll
                for (u32 i = 0; i < 3; ++i) {
                    next[i] = later[i];
                    if (chunk + 2 < span.y) later[i] = load_once(from + ((chunk + 2) * 3 + i) * 32);
                }
#if CHUNK == 8
                sum += four_products(slice, my_inputs, l0.x, l0.y, l1.x);
                keep_order();
                sum += four_products(slice, my_inputs, l1.y, l2.x, l2.y);
#else
                sum += four_products(slice, my_inputs, l0, l1, l2);
#endif
            }
            if (pass > 0) sum += partial[row];
            if (last) {
                const u32 owner = row / rows_owned;
                cluster_write(received + rank * rows_owned + (row - owner * rows_owned), owner, sum);
            } else {
                partial[row] = sum;
            }
        }
        // Warps without a task must still arrive at the barrier that the others passed before their first
        // item.
        if (warp >= block_tasks) {
            complete_copies();
            __syncthreads();
        }
    }

    cluster_arrive();
    cluster_wait();
#ifdef AQLM_EXPERTS
    // Not before, for want of registers.
    scales = of_expert(scales, chosen[SLOT], scales_stride);
    y += static_cast<size_t>(SLOT) * y_stride;
#endif
    for (u32 i = threadIdx.x; i < rows_owned; i += blockDim.x) {
        const u32 row = SLAB * rows_per_block + rank * rows_owned + i;
        if (row < static_cast<u32>(out_features)) {
            float sum = 0.0f;
            for (u32 peer = 0; peer < ranks; ++peer) sum += received[peer * rows_owned + i];
            y[row] = y_of_f32(sum * f32_of_f16(scales[row]));
        }
    }
}
