#include "../common.cuh"
// matmul k5: some warps look up codewords and write the weight to shared memory, a warpgroup multiplies; nobody waits for a latency of the others.
//
// Parallel over: a block has AQLM_TILES tiles of 8 output rows and AQLM_BATCH rows of x. Four warps run the warpgroup's products, AQLM_TILES others fill a ring of
// three stages of 64 input features: each has one tile of the weight, all of them share out x. Larger batches take further blocks along y.
// Why faster than k3 for a large codebook: k3's chunks take a look-up's latency and a product one after the other in all warps at once, and with codewords kept as in k4 a look-up is two latencies.
// Here a warp has two chunks of codewords on their way while it writes a third. The weight is the second operand of products and so goes to shared memory as it is: a
// codeword is eight neighbours along k. x, the first operand, comes by asynchronous copies of 16 bytes, with no word out of place.
// AQLM_HOT codewords of the codebook are kept by each block, as in k4.
// Arithmetic: products are exact, sums f32. With bf16 the codebook is bf16.
// Predicted, 4096 -> 11008, 128 rows, 1x16g8, 126 blocks, 9,100 codewords of each block kept: tag look-ups of L2 a block: 6,400 for kept codewords, 24,000 for others, 8,200 for x, 700 for
// codes: 62,000 clocks at 1.755 GHz, 35 us; shared memory: weight written 5,600 passes of 128 bytes, read 11,300, x written 8,200, read 8,200, kept codewords some 12,000: 45,000 clocks at 1.98 GHz,
// 23 us beside it. With launch and last sums 38 us; k3 57.9.
// Limits: M 1; out_group 1; B 14 to 16; G 8 or 16; sm_90a only. AQLM_TILES 4, 8, 11 or 16; AQLM_BATCH 64 or 128.
// codes: as k4. hot: as keep_codewords (common.cuh) takes it. codebook: [2^B] in the order of use.
// Compile-time: AQLM_B, AQLM_G, AQLM_HOT, AQLM_TILES, AQLM_BATCH.

#define VECTORS (AQLM_G / 8)                         // 16-byte vectors in a codeword
#define CHUNKS (2 * VECTORS)                         // of a unit of 16 input groups: 64 input features each
#define STAGES 3
#define ROWS (AQLM_TILES * 8)                        // output rows of a block
#define CONSUMERS 4                                  // warps
#define THREADS ((CONSUMERS + AQLM_TILES) * 32)
#define HALVES (AQLM_BATCH / 64)                     // products' share of the rows of x
#define X_NEXT (AQLM_BATCH * 16 + 16)                // bytes from eight input features of x to the next eight; 16 modulo 128, so that a row's copies share no bank
#define W_NEXT (ROWS * 16 + 32)                      // the same of the weight; two rows of four input groups share no bank
#define X_BYTES (8 * X_NEXT)
#define W_BYTES (8 * W_NEXT)
#define STAGE_BYTES (X_BYTES + W_BYTES)
#define KEPT_VECTORS (AQLM_HOT * VECTORS)
#define COPIES ((AQLM_BATCH * 8 + AQLM_TILES * 32 - 1) / (AQLM_TILES * 32))  // 16-byte vectors of x that a thread copies for a chunk

// A lane's two vectors of a chunk: of the tile's row g, at input group t of two steps or both vectors of the one at input group t.
__device__ __forceinline__ void look_up(uint4 (&word)[2], const uint2& words, int chunk, const unsigned char* kept, const uint4* codebook) {
    u32 at[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int step = (chunk * 2 + i) / VECTORS, v = (chunk * 2 + i) % VECTORS;
        const u32 pair = step < 2 ? words.x : words.y;
        at[i] = (step % 2 == 0 ? pair & 0xffffu : pair >> 16) * VECTORS + v;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) load_near(word[i], kept + at[i] * 16, at[i] < KEPT_VECTORS);
#pragma unroll
    for (int i = 0; i < 2; ++i) load_far(word[i], codebook + at[i], at[i] >= KEPT_VECTORS);
}

// Starts this producer's copies of a chunk of x.
__device__ __forceinline__ void copy_inputs(unsigned char* stage, const u16* x, int column, int first, int batch, int in_features, int producer) {
#pragma unroll
    for (int copy = 0; copy < COPIES; ++copy) {
        const int i = producer + copy * (AQLM_TILES * 32), row = i >> 3, k = column + (i & 7) * 8;
        if ((copy + 1) * (AQLM_TILES * 32) <= AQLM_BATCH * 8 || i < AQLM_BATCH * 8) {
            // Rows past the last read the last and count for nothing.
            const int of = first + row < batch ? first + row : batch - 1;
            const bool valid = first + row < batch && k < in_features;
            start_copy16_or_zero(stage + (i & 7) * X_NEXT + row * 16, x + static_cast<size_t>(of) * in_features + (k < in_features ? k : 0), valid);
        }
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
    const int first_input = blockIdx.y * AQLM_BATCH, chunks = units * CHUNKS;
    unsigned char* stages = shared + KEPT_VECTORS * 16;
    Phases* full = reinterpret_cast<Phases*>(stages + STAGES * STAGE_BYTES);  // [stage]
    Phases* empty = full + STAGES;
    allow_next_kernel();
    if (threadIdx.x == 0) {
#pragma unroll
        for (int stage = 0; stage < STAGES; ++stage) {
            start_phases(full + stage, AQLM_TILES);
            start_phases(empty + stage, CONSUMERS);
        }
    }
    // A unit's codes of this producer's tile. Tiles past the last repeat it; what comes of them is not written.
    const int tiles = (out_features + 7) / 8, tile = blockIdx.x * AQLM_TILES + warp - CONSUMERS;
    const uint2* from = codes + static_cast<size_t>(tile < tiles ? tile : tiles - 1) * units * 32 + lane;
    uint2 words = {0, 0}, next = {0, 0};
    if (warp >= CONSUMERS) {
        words = load_once(from);
        if (units > 1) next = load_once(from + 32);
    }
    keep_codewords<KEPT_VECTORS, THREADS, VECTORS>(shared, codebook, hot);
    __syncthreads();
    wait_for_previous_kernel();

    if (warp >= CONSUMERS) {
        const int producer = threadIdx.x - CONSUMERS * 32;
        unsigned char* mine = stages + X_BYTES + ((warp - CONSUMERS) * 8 + g) * 16;
        uint4 word[3][2];  // [chunk modulo 3]
#pragma unroll
        for (int ahead = 0; ahead < 2; ++ahead) {
            copy_inputs(stages + ahead * STAGE_BYTES, x, ahead * 64, first_input, batch, in_features, producer);
            close_copies();
            look_up(word[ahead], words, ahead, shared, codebook);
        }
        for (int base = 0; base < chunks; base += 3 * CHUNKS) {
#pragma unroll
            for (int j = 0; j < 3 * CHUNKS; ++j) {
                const int chunk = base + j, ahead = chunk + 2;
                if (chunk >= chunks) break;
                if (ahead < chunks) {
                    if ((j + 2) % CHUNKS == 0) {
                        const int unit = ahead / CHUNKS;
                        words = next;
                        if (unit + 1 < units) next = load_once(from + (unit + 1) * 32);
                    }
                    look_up(word[(j + 2) % 3], words, (j + 2) % CHUNKS, shared, codebook);
                }
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int eight = AQLM_G == 8 ? i * 4 + t : t * 2 + i;
                    *reinterpret_cast<uint4*>(mine + j % 3 * STAGE_BYTES + eight * W_NEXT) = word[j % 3][i];
                }
                copies_in_flight<1>();
                publish_to_products();
                __syncwarp();
                if (lane == 0) arrive(full + j % 3);
                if (ahead < chunks) {
                    // Only now: products free a stage when they have begun the chunk after it.
                    if (ahead >= STAGES) meet_phase(empty + (j + 2) % 3, (ahead / STAGES - 1) & 1);
                    copy_inputs(stages + (j + 2) % 3 * STAGE_BYTES, x, ahead * 64, first_input, batch, in_features, producer);
                }
                close_copies();
            }
        }
        complete_copies();
        return;
    }

    float sum[HALVES][ROWS / 2];
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
#pragma unroll
        for (int i = 0; i < ROWS / 2; ++i) sum[half][i] = 0.0f;
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const int at = chunk % STAGES;
        const unsigned char* stage = stages + at * STAGE_BYTES;
        meet_phase(full + at, chunk / STAGES & 1);
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
            for (int half = 0; half < HALVES; ++half) {
                multiply_64xNx16(sum[half], tile_at(stage + 2 * k * X_NEXT + half * 1024, X_NEXT, 128),
                                 tile_at(stage + X_BYTES + 2 * k * W_NEXT, W_NEXT, 128));
            }
        }
        close_products();
        // The chunk before is over then, and its stage free.
        products_in_flight<1>();
        if (lane == 0 && chunk > 0) arrive(empty + (chunk - 1) % STAGES);
    }
    products_in_flight<0>();

#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
#pragma unroll
        for (int i = 0; i < ROWS / 2; ++i) {
            const int input = first_input + half * 64 + warp * 16 + i / 2 % 2 * 8 + g, out = blockIdx.x * ROWS + i / 4 * 8 + t * 2 + i % 2;
            if (input < batch && out < out_features) y[static_cast<size_t>(input) * out_features + out] = y_of_f32(sum[half][i] * f32_of_f16(scales[out]));
        }
    }
}
