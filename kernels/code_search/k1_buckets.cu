#include "../common.cuh"
#include "../quantizer.cuh"
#include "../choose.cuh"
// code_search k1: the codes nearest to a buffer, for chosen groups.
//
// Parallel over: a block several groups (owners) with all their hypotheses; a warp chooses for an owner.
// The search starts from the old codes and visits the codebooks once. At each it replaces the code of every
//   hypothesis by every codeword and keeps the `beam` best, after the last one the best.
// buffer [out_groups x GO, in_groups x GI] f32; scales [out_groups] f64; codebooks [books, states, LEN] f32;
//   forms [books, states] f32, squared lengths; codes [groups, books] u16; chosen [count] u32; visits [books]
//   u32, the order of the codebooks; found [count, books] u16.
// Arithmetic: f32. Scores are |r|^2 + |c|^2 - 2 <r, c>. Among equals the earlier hypothesis wins, then the
//   lower bucket (code mod 256), then the lower code. A group whose target buffer / scale is not finite keeps
//   its codes.
// Limits: a beam of at most 128; shared memory.
// Compile-time: AQLM_GO, AQLM_GI; AQLM_PLACE (a hypothesis goes on with the residual of the one that stood at
//   its place in the beam, as the official code does).

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    code_search(const float* buffer, const double* scales, const float* codebooks, const float* forms, const u16* codes, const u32* chosen, const u32* visits,
                u16* found, int count, int in_groups, int books, int states, int beam, int owners) {
    SHARED_MEMORY(shared);
    const int rows = (owners * beam + ROWS - 1) / ROWS * ROWS;
    float* least = reinterpret_cast<float*>(shared);  // [rows, BUCKETS]
    float* vectors = least + rows * BUCKETS;          // -2 r
    float* residual = vectors + rows * LEN;
    float* next_residual = residual + rows * LEN;
    float* offsets = next_residual + rows * LEN;  // |r|^2
    int* keys = reinterpret_cast<int*>(offsets + rows);
    int* picked = keys + rows;
    int* unfit = picked + rows;
    u16* own = reinterpret_cast<u16*>(unfit + rows);  // [rows, books]
    u16* next_own = own + rows * books;

    const int first = blockIdx.x * owners, t = threadIdx.x, warp = t / 32, lane = t % 32;
    const int here = count - first < owners ? count - first : owners;
    const size_t length = static_cast<size_t>(in_groups) * AQLM_GI;
    for (int o = t; o < here; o += THREADS) {
        const size_t group = chosen[first + o], out = group / in_groups, in = group % in_groups;
        const float scale = static_cast<float>(scales[out]);
        bool finite = true;
        for (int i = 0; i < LEN; ++i) {
            const float target = buffer[(out * AQLM_GO + i / AQLM_GI) * length + in * AQLM_GI + i % AQLM_GI] / scale;
            residual[o * LEN + i] = target;
            // Neither infinity nor NaN is below infinity in size.
            finite = finite && fabs(target) < INFINITE;
        }
        unfit[o] = finite ? 0 : 1;
        for (int i = 0; i < LEN; ++i) {
            float left = finite ? residual[o * LEN + i] : 0.0f;
            for (int m = 0; m < books; ++m) left -= codebooks[(static_cast<size_t>(m) * states + codes[group * books + m]) * LEN + i];
            residual[o * LEN + i] = left;
        }
        for (int m = 0; m < books; ++m) own[o * books + m] = codes[group * books + m];
    }
    int width = 1;
    for (int visit = 0; visit < books; ++visit) {
        const int m = static_cast<int>(visits[visit]);
        const float* codebook = codebooks + static_cast<size_t>(m) * states * LEN;
        const float* form = forms + static_cast<size_t>(m) * states;
        const int kept = visit + 1 == books ? 1 : beam < width * states ? beam : width * states;
        const int filled = here * width, padded = (filled + ROWS - 1) / ROWS * ROWS;
        __syncthreads();
        for (int r = t; r < padded; r += THREADS) {
            float squares = 0.0f;
            for (int i = 0; i < LEN; ++i) {
                float left = 0.0f;
                if (r < filled) {
                    left = residual[r * LEN + i] + codebook[static_cast<size_t>(own[r * books + m]) * LEN + i];
                    residual[r * LEN + i] = left;
                }
                squares += left * left;
                vectors[r * LEN + i] = -2.0f * left;
            }
            offsets[r] = squares;
        }
        __syncthreads();
        least_of_codewords(vectors, padded, codebook, form, states, least);
        __syncthreads();
        for (int o = warp; o < here; o += WARPS) {
            const int buckets = pick_buckets(least + o * width * BUCKETS, offsets + o * width, 1.0f, width, kept, picked + o * kept);
            const int items = (states + BUCKETS - 1) / BUCKETS;
            const auto at = [&](int e) {
                const int bucket = picked[o * kept + e / items], h = bucket / BUCKETS, k = bucket % BUCKETS + e % items * BUCKETS;
                if (k >= states) return no_candidate();
                const int r = o * width + h;
                const float score = inner(form[k], vectors + r * LEN, codebook + static_cast<size_t>(k) * LEN);
                const float value = fmaf(1.0f, score, offsets[r]);
                return Candidate{value, static_cast<float>((h << 16) + k)};
            };
            const auto take = [&](int rank, const Candidate& taken) { keys[o * kept + rank] = static_cast<int>(taken.key); };
            const int there = pick(buckets * items, kept, at, take);
            // Scores beyond f32: the first hypothesis keeps its code.
            for (int q = there + lane; q < kept; q += 32) keys[o * kept + q] = own[o * width * books + m];
        }
        __syncthreads();
        for (int r = t; r < here * kept; r += THREADS) {
            const int o = r / kept, h = keys[r] >> 16, code = keys[r] & 0xffff;
            const int from = o * width + h;
#if AQLM_PLACE
            const int place = r % kept, before = o * width + (place < width ? place : width - 1);
#else
            const int before = from;
#endif
            for (int i = 0; i < LEN; ++i) next_residual[r * LEN + i] = residual[before * LEN + i] - codebook[static_cast<size_t>(code) * LEN + i];
            for (int b = 0; b < books; ++b) next_own[r * books + b] = b == m ? static_cast<u16>(code) : own[from * books + b];
        }
        float* numbers = residual;
        residual = next_residual;
        next_residual = numbers;
        u16* narrow = own;
        own = next_own;
        next_own = narrow;
        width = kept;
    }
    __syncthreads();
    for (int at = t; at < here * books; at += THREADS) {
        const int o = at / books, m = at % books;
        const size_t group = chosen[first + o];
        found[static_cast<size_t>(first) * books + at] = unfit[o] ? codes[group * books + m] : own[at];
    }
}
