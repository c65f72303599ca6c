#include "../common.cuh"
#include "../tiles.cuh"
// matmul k3: codewords go from the codebook into the registers of Hopper's warpgroup products; x lies in
// shared memory as their second operand.
//
// Parallel over: a block has AQLM_WARPGROUPS * 64 output rows, AQLM_BATCH rows of x and every AQLM_SLICES-th
//   unit of the input features. The blocks of a row block's slices are neighbours in a cluster of
//   AQLM_CLUSTER. At the end each adds the sums in order of the slices for its share of the rows of x. Larger
//   batches take further blocks along y.
// Why faster than k2: the weight is the first operand, which may come from registers. So lane (g, t) of a
//   warp needs exactly the codewords of rows g and g + 8 at input group t (the sum over input features may
//   take its terms in any order). Tensor cores read x from shared memory, once for 64 output rows and with no
//   instruction, where k2's warps each load fragments of x. The products overlap the look-ups of the next
//   ones, so their latencies no longer add up. Splitting the input features over blocks makes work for all
//   multiprocessors. AQLM_REPLICAS as in k2. With AQLM_SPREAD > 0 the codebook is spread over the shared
//   memories of the cluster. AQLM_SPREAD eighths of the look-ups go there, the others to L2. The reason: a
//   gather from L2 moves a sector even if only half of it is used, and L2 then bounds k2.
// Arithmetic: codewords of several codebooks are added in f16 (M - 1 roundings). With bf16 the codebooks are
//   bf16 and the additions too. Products are exact, sums f32.
// Predicted, 4096 -> 11008, 3 warpgroups, 2 slices, 116 blocks: 2x8g8, 128 rows: products 24,600 clocks of
//   the tensor cores, shared memory 28,600 (codewords 12,300, x read by products 12,300 and written 4,000),
//   so 16 us, then launch, codebooks and last sums 5 us: 21 us. 16 rows: shared memory 14,500 clocks or 32
//   chunks of 250 clocks of latency, 8 us and 3 us more: 11 us. 1x16g8, 16 rows, from L2 alone as k2 (43 us).
//   With half of the look-ups in the cluster: 22 us of L2, and 22 us of the cluster's network at the 3 TB/s
//   that others measured: 27 us.
// Measured (docs/kernels.md): 1x16g8 is fastest with all look-ups from L2, 57.7 us at 128 rows; the cluster's
//   network gives 0.9 TB/s. 2,048 rows, 2x8g8, 256 rows of x and 2 warpgroups: 201 us of products at 1.7 GHz.
//   The blocks make 5.2 rounds, which take the time of six: 235 us.
// Limits: out_group 1; G 8 or 16; M <= 8; sm_90a only. AQLM_SPREAD: M = 1. AQLM_BATCH 16, 32, 64, 128 or 256.
// codes: as k2.
// Compile-time: AQLM_M, AQLM_B, AQLM_G, AQLM_REPLICAS, AQLM_WARPGROUPS, AQLM_SLICES, AQLM_CLUSTER,
//   AQLM_BATCH, AQLM_SPREAD.

#define CHUNKS (2 * VECTORS)                         // of a unit: two pairs of products each
#define THREADS (AQLM_WARPGROUPS * 128)
#define BLOCK_ROWS (AQLM_WARPGROUPS * 64)
#define VECTOR_BYTES (AQLM_BATCH * 16)               // eight values along k of all rows of x
#define PAIR_PADDING 64
#define PAIR_BYTES (4 * VECTOR_BYTES + PAIR_PADDING) // of two products; 64 modulo 128, so that stores of both pairs of a chunk share no bank
#define STAGE_BYTES (2 * PAIR_BYTES)
#define LOADS ((AQLM_BATCH * 8 + THREADS - 1) / THREADS)  // 16-byte vectors of x that a thread loads for a chunk
#define SHARE (AQLM_BATCH / AQLM_SLICES)
#define ROW_PADDING 4
#define SUM_STRIDE (BLOCK_ROWS + ROW_PADDING)        // 4 modulo 16: the lanes of a store share no bank
#if AQLM_SPREAD > 0
#define PIECE ((1u << AQLM_B) / AQLM_CLUSTER)        // codewords of a block's part
#define CODEBOOK_BYTES (PIECE * AQLM_G * 2)
#else
#define CODEBOOK_BYTES (AQLM_REPLICAS * (AQLM_M << AQLM_B) * AQLM_G * 2)
#endif

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

// Eight weights of one row, before scaling: vector v of the sum of the codewords of a step. `place` numbers
// look-ups at compile time.
__device__ __forceinline__ uint4 codeword(const u32 (&words)[WORDS], int step, int v, int place, const unsigned char* codebook,
                                          const uint4* codebooks, int lane) {
    uint4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int m = 0; m < AQLM_M; ++m) {
        const int bit = (step * AQLM_M + m) * FIELD;
        const u32 code = words[bit / 32] >> bit % 32 & CODE_MASK;
        uint4 word;
#if AQLM_SPREAD > 0
        if ((place + 1) * AQLM_SPREAD / 8 != place * AQLM_SPREAD / 8) {
            word = cluster_read(shared_address(codebook) + ((code & (PIECE - 1)) * VECTORS + v) * 16, code / PIECE);
        } else {
            word = load_often(codebooks + code * VECTORS + v);
        }
#elif AQLM_REPLICAS > 0
        const u32 at = ((code * VECTORS + v) * AQLM_REPLICAS + (lane & (AQLM_REPLICAS - 1))) * 16;
        word = *reinterpret_cast<const uint4*>(codebook + at + static_cast<size_t>(m << AQLM_B) * (VECTORS * AQLM_REPLICAS * 16));
#else
        word = load_often(codebooks + ((static_cast<u32>(m) << AQLM_B) + code) * VECTORS + v);
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

// Looks up the first operands of a chunk's two pairs of products.
__device__ __forceinline__ void look_up(uint4 (&upper)[2], uint4 (&lower)[2], const u32 (&words)[2][WORDS], int chunk,
                                        const unsigned char* codebook, const uint4* codebooks, int lane) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        const int vector = chunk * 2 + pair;
        upper[pair] = codeword(words[0], vector / VECTORS, vector % VECTORS, vector * 2, codebook, codebooks, lane);
        lower[pair] = codeword(words[1], vector / VECTORS, vector % VECTORS, vector * 2 + 1, codebook, codebooks, lane);
    }
}

// Loads this thread's vectors of a chunk of x: vector `load` is input group t of row n of a pair.
__device__ __forceinline__ void load_inputs(uint4 (&inputs)[LOADS], const u16* x, int unit, int chunk, int first, int batch, int in_features) {
#pragma unroll
    for (int load = 0; load < LOADS; ++load) {
        const int i = threadIdx.x + load * THREADS, t = i & 3, vector = chunk * 2 + (i >> 2 & 1), row = first + (i >> 3);
        const int column = ((unit * STEPS + vector / VECTORS) * 4 + t) * AQLM_G + vector % VECTORS * 8;
        inputs[load] = {0, 0, 0, 0};
        if (i < AQLM_BATCH * 8 && row < batch && column < in_features) {
            inputs[load] = *reinterpret_cast<const uint4*>(x + static_cast<size_t>(row) * in_features + column);
        }
    }
}

// Word w of input group t goes to index 2 t, 2 t + 1 of vector w, where lane (g, t) has the same elements of
// its codeword.
__device__ __forceinline__ void store_inputs(unsigned char* stage, const uint4 (&inputs)[LOADS]) {
#pragma unroll
    for (int load = 0; load < LOADS; ++load) {
        const int i = threadIdx.x + load * THREADS, t = i & 3, pair = i >> 2 & 1, n = i >> 3;
        if (i < AQLM_BATCH * 8) {
            u32* to = reinterpret_cast<u32*>(stage + pair * PAIR_BYTES + n * 16 + t * 4);
            to[0] = inputs[load].x;
            to[VECTOR_BYTES / 4] = inputs[load].y;
            to[VECTOR_BYTES / 2] = inputs[load].z;
            to[VECTOR_BYTES / 4 * 3] = inputs[load].w;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
matmul(const u32* codes, const uint4* codebooks, const u16* scales, const u16* x, u16* y, int out_features, int in_features, int batch, int units) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int slice = blockIdx.x % AQLM_SLICES, row_block = blockIdx.x / AQLM_SLICES, rank = blockIdx.x % AQLM_CLUSTER;
    const int tiles = (out_features + 7) / 8, first_input = blockIdx.y * AQLM_BATCH;
    // Blocks past the last row only complete a cluster. Tiles past the last row repeat the last; their sums
    // are not written.
    const int my_units = row_block * BLOCK_ROWS < out_features ? units : 0;
    const u32* from[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int tile = row_block * (BLOCK_ROWS / 8) + warp * 2 + i;
        from[i] = codes + static_cast<size_t>(tile < tiles ? tile : tiles - 1) * units * (WORDS * 32);
    }
    unsigned char* stages = shared + CODEBOOK_BYTES;
    allow_next_kernel();

    u32 words[2][WORDS], next[2][WORDS];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int w = 0; w < WORDS; ++w) words[i][w] = next[i][w] = 0;
        if (slice < my_units) load_codes(words[i], from[i] + slice * (WORDS * 32), lane);
        if (slice + AQLM_SLICES < my_units) load_codes(next[i], from[i] + (slice + AQLM_SLICES) * (WORDS * 32), lane);
    }
#if AQLM_SPREAD > 0
    for (u32 i = threadIdx.x; i < PIECE * VECTORS; i += THREADS) start_copy16(shared + i * 16, codebooks + rank * (PIECE * VECTORS) + i);
#elif AQLM_REPLICAS > 0
    for (int i = threadIdx.x; i < (AQLM_M << AQLM_B) * VECTORS; i += THREADS) {
        const uint4 word = codebooks[i];
#pragma unroll
        for (int r = 0; r < AQLM_REPLICAS; ++r) reinterpret_cast<uint4*>(shared)[i * AQLM_REPLICAS + (r + lane) % AQLM_REPLICAS] = word;
    }
#endif
    wait_for_previous_kernel();
    uint4 inputs[LOADS];
    load_inputs(inputs, x, slice, 0, first_input, batch, in_features);
    store_inputs(stages, inputs);
    load_inputs(inputs, x, slice, 1, first_input, batch, in_features);

    float sum[AQLM_BATCH / 2];
#pragma unroll
    for (int i = 0; i < AQLM_BATCH / 2; ++i) sum[i] = 0.0f;
    publish_to_products();
#if AQLM_SPREAD > 0
    complete_copies();
    cluster_arrive();
    cluster_wait();
#else
    __syncthreads();
#endif

    uint4 upper[2][2], lower[2][2];  // [chunk modulo 2][pair]
    look_up(upper[0], lower[0], words, 0, shared, codebooks, lane);
    for (int unit = slice; unit < my_units; unit += AQLM_SLICES) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const int now = chunk & 1, after = now ^ 1;
            begin_products();
#pragma unroll
            for (int pair = 0; pair < 2; ++pair) {
                const unsigned char* stage = stages + now * STAGE_BYTES + pair * PAIR_BYTES;
                const uint4 u = upper[now][pair], l = lower[now][pair];
                multiply_64xNx16(sum, u.x, l.x, u.y, l.y, tile_at(stage, VECTOR_BYTES, 128));
                multiply_64xNx16(sum, u.z, l.z, u.w, l.w, tile_at(stage + 2 * VECTOR_BYTES, VECTOR_BYTES, 128));
            }
            close_products();
            // During the products: x and codewords of the next chunk. After the last chunk they are stale and
            // unused.
            store_inputs(stages + after * STAGE_BYTES, inputs);
            // Must precede every new load, because it also waits for all loads in flight.
            publish_to_products();
            if (chunk + 2 < CHUNKS) {
                load_inputs(inputs, x, unit, chunk + 2, first_input, batch, in_features);
            } else if (unit + AQLM_SLICES < my_units) {
                load_inputs(inputs, x, unit + AQLM_SLICES, chunk + 2 - CHUNKS, first_input, batch, in_features);
            }
            if (chunk + 1 == CHUNKS) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
#pragma unroll
                    for (int w = 0; w < WORDS; ++w) words[i][w] = next[i][w];
                    if (unit + 2 * AQLM_SLICES < my_units) load_codes(next[i], from[i] + (unit + 2 * AQLM_SLICES) * (WORDS * 32), lane);
                }
            }
            look_up(upper[after], lower[after], words, (chunk + 1) % CHUNKS, shared, codebooks, lane);
            products_in_flight<0>();
            __syncthreads();  // this stage is read, the next is written
        }
    }

    cluster_arrive();
    cluster_wait();  // no block of the cluster still reads codebooks or stages
    float* received = reinterpret_cast<float*>(shared);  // [slice][row of x in this block's share][output row]
#pragma unroll
    for (int i = 0; i < AQLM_BATCH / 2; ++i) {
        const int input = i / 4 * 8 + t * 2 + i % 2, row = warp * 16 + g + i / 2 % 2 * 8;
        cluster_write(received + (slice * SHARE + input % SHARE) * SUM_STRIDE + row, rank - slice + input / SHARE, sum[i]);
    }
    cluster_arrive();
    cluster_wait();
    for (int i = threadIdx.x; i < SHARE * BLOCK_ROWS; i += THREADS) {
        const int row = i % BLOCK_ROWS, out = row_block * BLOCK_ROWS + row, input = first_input + slice * SHARE + i / BLOCK_ROWS;
        if (input >= batch || out >= out_features) continue;
        float total = 0.0f;
#pragma unroll
        for (int s = 0; s < AQLM_SLICES; ++s) total += received[(s * SHARE + i / BLOCK_ROWS) * SUM_STRIDE + row];
        y[static_cast<size_t>(input) * out_features + out] = y_of_f32(total * f32_of_f16(scales[out]));
    }
}
