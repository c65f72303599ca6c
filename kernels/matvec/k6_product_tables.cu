#include "../common.cuh"
// matvec k6: tables of the products of x with every codeword of a large codebook, built by tensor cores, then
// one 4-byte look-up a code. M = 1, B = 13 to 16. Slower than k4. It is kept to record the reason: 128 blocks
// have sums for every row, and L2 adds only 128 of them a clock.
//
// Parallel over: a block has 1024 codewords and some sets of 32 input groups, for all rows of a slab. Its
//   four teams of eight warps have 256 codewords each. For one set after the other a team builds a table of
//   <x_group, codeword>, [256 codewords][32 groups], and looks up the codes that fall into it. The packer has
//   sorted those codes out (items). The loop has no barrier between teams, so one team builds while another
//   looks up.
// Why it should be faster than k4: for each code, k4 reads 2 G bytes of codeword and 2 G bytes of x from
//   shared memory. With 11008 rows and groups of 16, 2^B codewords times all groups are only about six times
//   the products that are needed, and tensor cores compute them at no cost. Writing a product costs 4 bytes
//   of shared memory, looking it up 4, and adding it to its row 4 to 8.
// The items of a block come in no order of rows, so sums are integers. A product is rounded to a multiple of
//   a power of two, q, derived from |x|_1 and the largest codeword such that no sum reaches 2^31. Integers
//   may be added in any order with the same result: by atomics in shared memory, then in L2. The last block
//   of a slab scales the sums and resets them to zero for the next launch.
// Bytes: 32 bits an item instead of 16, some padding.
// Predicted, 4096 -> 11008, 1x16g16, 128 blocks at 1.98 GHz: launch 1,800 clocks; x, its norm, codewords
//   1,400; tables 5,100 passes of shared memory (4,100 written, 1,000 of x read), look-ups 700 and sums 1,400
//   to 2,000, together 8,000; 5.6 MB of sums into L2, 80 slices, 2,200 to 4,400; ticket and last sums 2,500.
//   Total: 16,000 to 18,000 clocks, 8 to 9 us.
// Measured: 21.9 us (k4: 19.3). The sums took 11,000 clocks, the ticket's last block 8,100, and the items,
//   14.8 MB, 13,600.
// Arithmetic: exact products of f16, group sums in f32, rounded to q <= largest codeword |x|_1 2^-29, then
//   exact.
// Limits: M 1, out_group 1, G 8 or 16; rows of a slab in shared memory; one launch of a matrix at a time,
//   because the matrix's sums are stored beside it; sm_80.
// items: [chunk][warp of team][lane] of two. An item is the offset in the table / 4 in 13 bits, and above
//   them the row of the slab. All bits set: no item.
// spans: [slab][block][set][team] {first chunk, chunks}.
// sums: [slab][row] zeros, finished: [slab] zeros.
// Compile-time: AQLM_B, AQLM_G.

#define TEAMS 4
#define TEAM_WARPS 8
#define CODES 256                         // of a team
#define SET 32                            // input groups
#define TABLE_BYTES (CODES * SET * 4)     // of a team
#define PAIRS (AQLM_G / 2)                // words of a codeword
#define DEPTH 3                           // chunks of items in flight
#define NONE 0xffffffffu                  // no item
#define OFFSET_BITS 13                    // of an item: the offset of its product in the table

// Adds the products of two items, in multiples of q, to their rows.
__device__ __forceinline__ void add_items(uint2 item, const unsigned char* table, int* totals, float per_q) {
    const float first = *reinterpret_cast<const float*>(table + ((item.x & ((1u << OFFSET_BITS) - 1)) << 2));
    const float second = *reinterpret_cast<const float*>(table + ((item.y & ((1u << OFFSET_BITS) - 1)) << 2));
    if (item.x != NONE) atomicAdd(totals + (item.x >> OFFSET_BITS), __float2int_rn(first * per_q));
    if (item.y != NONE) atomicAdd(totals + (item.y >> OFFSET_BITS), __float2int_rn(second * per_q));
}

extern "C" __global__ void __launch_bounds__(1024, 1)
matvec(const uint2* items, const uint2* spans, const u32* codebook, int* sums, u32* finished, const u16* scales, const u32* x, u16* y,
       int out_features, int in_features, int rows_per_slab, int sets, int set_blocks, int largest) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const u32 team = warp / TEAM_WARPS, team_warp = warp % TEAM_WARPS;
    const u32 slab = blockIdx.y, rows = static_cast<u32>(rows_per_slab);
    const u32 first_set = blockIdx.x % set_blocks * sets;
    unsigned char* table = shared + team * TABLE_BYTES;
    uint2* inputs = reinterpret_cast<uint2*>(shared + TEAMS * TABLE_BYTES);  // [set][n][lane], the second operands of products
    int* totals = reinterpret_cast<int*>(inputs + sets * 128);              // [rows_per_slab]
    float* norms = reinterpret_cast<float*>(totals + rows);                 // [32]
    u32* ticket = reinterpret_cast<u32*>(norms + 32);
    allow_next_kernel();

    // This warp's 32 codewords, as first operands of two products.
    const u32 first_code = blockIdx.x / set_blocks * (TEAMS * CODES) + warp * 32;
    u32 word[2][4];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32* from = codebook + (first_code + i * 16 + g) * PAIRS + t;
        word[i][0] = from[0];
        word[i][1] = from[8 * PAIRS];
        word[i][2] = AQLM_G == 16 ? from[4] : 0;
        word[i][3] = AQLM_G == 16 ? from[8 * PAIRS + 4] : 0;
    }
    for (u32 i = threadIdx.x; i < rows; i += blockDim.x) totals[i] = 0;
    wait_for_previous_kernel();

    // |x|_1, summed in the same order in every block, so the bits are the same.
    float norm = 0.0f;
    for (u32 i = threadIdx.x; i < static_cast<u32>(in_features) / 2; i += blockDim.x) {
        const u32 pair = x[i];
        norm += fabsf(low_f32(pair)) + fabsf(high_f32(pair));
    }
    // Input group 8 (g / 2) + 2 n + g % 2 of a set is column g of product n, so the results of a lane are
    // adjacent.
    for (u32 i = threadIdx.x; i < static_cast<u32>(sets) * 128; i += blockDim.x) {
        const u32 column = i & 31, n = i >> 5 & 3, of = column >> 2, k = column & 3;
        const u32 at = ((first_set + (i >> 7)) * SET + 8 * (of >> 1) + 2 * n + (of & 1)) * PAIRS + k;
        uint2 operand = {0, 0};
        if (at < static_cast<u32>(in_features) / 2) {
            operand.x = x[at];
            if (AQLM_G == 16) operand.y = x[at + 4];
        }
        inputs[i] = operand;
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) norm += __shfl_xor_sync(WARP_MASK, norm, mask);
    if (lane == 0) norms[warp] = norm;
    __syncthreads();
    norm = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 32; ++i) norm += norms[i];
    // No sum exceeds |x|_1 times the largest codeword, which is below 2^(exponent + 1), even with the 2^-10
    // that rounding of the norm may add.
    const float bound = norm * 1.0009765625f * f32_of_f16(static_cast<u16>(largest));
    const int exponent = static_cast<int>(__float_as_uint(bound) >> 23) - 127;
    const int shift = exponent < -90 ? 119 : 29 - exponent;
    const float per_q = __uint_as_float(static_cast<u32>(127 + shift) << 23);

    const uint2* span_of = spans + (static_cast<size_t>(slab * gridDim.x + blockIdx.x) * sets) * TEAMS + team;
    const u32 place = team_warp * 32 + lane;
    for (int set = 0; set < sets; ++set) {
        const uint2 span = span_of[set * TEAMS];
        const uint2* from = items + static_cast<size_t>(span.x) * (TEAM_WARPS * 32) + place;
        uint2 ahead[DEPTH];
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            // Reread for each half: both halves together do not fit into 64 registers.
            keep_order();
            uint2 input[4];
#pragma unroll
            for (u32 n = 0; n < 4; ++n) input[n] = inputs[(set * 4 + n) * 32 + lane];
            if (i == 0) {
#pragma unroll
                for (u32 d = 0; d < DEPTH; ++d) {
                    ahead[d] = {NONE, NONE};
                    if (d < span.y) ahead[d] = load_once(from + d * (TEAM_WARPS * 32));
                }
            }
            float product[4][4];  // [n][fragment]
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
#pragma unroll
                for (u32 k = 0; k < 4; ++k) product[n][k] = 0.0f;
                multiply_16x8x16(product[n], word[i][0], word[i][1], word[i][2], word[i][3], input[n].x, input[n].y);
            }
            // A lane has codewords g and g + 8 at input groups 8 t to 8 t + 7. Eight lanes, with two values
            // of g, store at once. To avoid bank conflicts, even g store their first half first and odd g
            // their second.
            const bool odd = g & 1;
            unsigned char* row = table + (team_warp * 32 + i * 16 + g) * 128 + t * 32;
#pragma unroll
            for (u32 k = 0; k < 4; k += 2) {
                const float4 low = {product[0][k], product[0][k + 1], product[1][k], product[1][k + 1]};
                const float4 high = {product[2][k], product[2][k + 1], product[3][k], product[3][k + 1]};
                *reinterpret_cast<float4*>(row + k * 512 + (odd ? 16 : 0)) = odd ? high : low;
                *reinterpret_cast<float4*>(row + k * 512 + (odd ? 0 : 16)) = odd ? low : high;
            }
        }
        team_barrier(1 + team, TEAM_WARPS * 32);
        for (u32 first = 0; first < span.y; first += DEPTH) {
#pragma unroll
            for (u32 d = 0; d < DEPTH; ++d) {
                const uint2 now = ahead[d];
                ahead[d] = {NONE, NONE};
                if (first + DEPTH + d < span.y) ahead[d] = load_once(from + (first + DEPTH + d) * (TEAM_WARPS * 32));
                add_items(now, table, totals, per_q);
            }
        }
        team_barrier(1 + team, TEAM_WARPS * 32);  // the table is read
    }

    __syncthreads();
    // Blocks begin at different rows. Otherwise all would queue for the same part of L2.
    int* slab_sums = sums + static_cast<size_t>(slab) * rows;
    const u32 turn = blockIdx.x * 1024 % rows;
    for (u32 i = threadIdx.x; i < rows; i += blockDim.x) {
        const u32 row = i + turn < rows ? i + turn : i + turn - rows;
        if (totals[row] != 0) atomicAdd(slab_sums + row, totals[row]);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *ticket = atomicAdd(finished + slab, 1u);
    __syncthreads();
    if (*ticket + 1 < gridDim.x) return;
    __threadfence();
    if (threadIdx.x == 0) finished[slab] = 0;
    // If x holds an infinity or NaN, all results are NaN.
    const float q = per_q < 1e-18f ? __uint_as_float(0x7fc00000) : 1.0f / per_q;
    for (u32 i = threadIdx.x; i < rows; i += blockDim.x) {
        const u32 row = slab * rows + i;
        if (row < static_cast<u32>(out_features)) {
            y[row] = f16_of_f32(static_cast<float>(load_fresh(slab_sums + i)) * q * f32_of_f16(scales[row]));
        }
        slab_sums[i] = 0;
    }
}
