#include "../common.cuh"
// head_norm k1: norms queries and keys before their rotation, in place, each head or each row as a whole, and
// adds the biases of queries, keys and values.
//
// Parallel over: a block a piece; the first axis of the grid runs over q_pieces, k_pieces and, with
//   AQLM_BIAS, one piece of all values, the second over rows.
// q [rows, q_pieces, q_width], k [rows, k_pieces, k_width], v [rows, v_width] f16; biases f32 of one row each
//   (with AQLM_BIAS); q_weight [q_width], k_weight [k_width] f16. Row r of each starts r rows of its width
//   after the first.
// Arithmetic: f32, the sum of squares in a fixed order; each result rounded to f16 once.
// Cost: bound by the launch and two dependent trips to L2.
// Limits: none.
// Compile-time: AQLM_THREADS (a multiple of 32), AQLM_BIAS, AQLM_NORMS (1 queries, 2 keys, 3 both; the others
//   get their bias alone).

extern "C" __global__ void __launch_bounds__(AQLM_THREADS)
head_norm(const u16* q_weight, const u16* k_weight, const float* q_bias, const float* k_bias, const float* v_bias, u16* q, u16* k, u16* v,
          int q_pieces, int k_pieces, int q_width, int k_width, int v_width, int q_eps_bits, int k_eps_bits) {
#ifdef AQLM_ON_CPU
    unsigned char* shared = dynamic_shared();
#else
    extern __shared__ __align__(128) unsigned char shared[];
#endif
    float* sums = reinterpret_cast<float*>(shared);  // [warp]
    allow_next_kernel();
    wait_for_previous_kernel();
    const int piece = blockIdx.x;
    const bool query = piece < q_pieces, key = !query && piece < q_pieces + k_pieces;
    const int index = query ? piece : key ? piece - q_pieces : 0, width = query ? q_width : key ? k_width : v_width;
    const int pieces = query ? q_pieces : key ? k_pieces : 1;
    u16* at = (query ? q : key ? k : v) + (static_cast<size_t>(blockIdx.y) * pieces + index) * width;
    const bool norms = (query && (AQLM_NORMS & 1)) || (key && (AQLM_NORMS & 2));
    float squares = 0.0f;
#if AQLM_BIAS
    const float* bias = (query ? q_bias : key ? k_bias : v_bias) + index * width;
#endif
    const auto value = [&](int i) {
#if AQLM_BIAS
        return f32_of_f16(at[i]) + bias[i];
#else
        return f32_of_f16(at[i]);
#endif
    };
    for (int i = threadIdx.x; i < width; i += AQLM_THREADS) squares += value(i) * value(i);
    for (int step = 16; step > 0; step >>= 1) squares += __shfl_xor_sync(WARP_MASK, squares, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < AQLM_THREADS / 32; ++warp) total += sums[warp];
    const float factor = 1.0f / sqrtf(total / width + __int_as_float(query ? q_eps_bits : k_eps_bits));
    const u16* weight = query ? q_weight : k_weight;
    for (int i = threadIdx.x; i < width; i += AQLM_THREADS) {
        at[i] = f16_of_f32(norms ? value(i) * factor * f32_of_f16(weight[i]) : value(i));
    }
}
