#include "../common.cuh"
#include "../quantizer.cuh"
#include "../choose.cuh"
// layer_sweep k1: visits a panel of input groups in the order of a sweep of beam search, for output groups
//   that are
// independent.
//
// Parallel over: a block several output groups (owners) with all their hypotheses. G = (W - Q) H of the
//   panel's own changes comes from shared memory; one product after the panel brings the columns behind it up
//   to date.
// With U = G_j + s c_old H_jj, a code's score is s^2 (<c H_jj, c> - 2 <U, c> / s) and a constant of its
//   hypothesis.
// gradient [out groups, beam, GO, width] and hessian [width, width], columns (and rows) in the order of the
//   sweep; codebooks [count, states, LEN]; scales [out groups] f64; codes, planes [out groups x inputs],
//   those before the sweep; forms [visits, count, states], <c H_jj, c>; inputs_of [visits], the input group
//   of each; position_of [visits + 1], each visit's first position, counted from the panel's first; planes_of
//   [positions], the codebook of each. losses [out groups, beam] f64, relative to the first codes', and alive
//   [out groups], how many there are; parents, chosen [positions, out groups, beam]: the history; changes
//   [out groups, beam, GO, columns of the panel], the growth of Q; roots [out groups, beam].
// Arithmetic: scores in f32, losses in f64. Among equals a code that does not change wins, then the earlier
//   hypothesis and the lower code.
// Compile-time: AQLM_GO, AQLM_GI.

// Keys below are hypotheses whose code does not change.
#define MOST_ROWS 128

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    layer_sweep(const float* gradient, const float* hessian, const float* codebooks, const double* scales, const u16* codes, const float* forms,
                const u32* inputs_of, const u32* position_of, const u32* planes_of, double* losses, int* alive, u16* parents, u16* chosen, float* changes,
                u16* roots, int out_groups, int width, int first_column, int visits, int count, int states, int beam, int owners) {
    SHARED_MEMORY(shared);
    const int rows = (owners * beam + ROWS - 1) / ROWS * ROWS, columns = visits * AQLM_GI, inputs = width / AQLM_GI;
    float* metric = reinterpret_cast<float*>(shared);  // H_jj
    float* least = metric + (AQLM_GI * AQLM_GI + 3) / 4 * 4;
    // Behind the buckets, the values of the codes that do not change.
    float* vectors = least + rows * BUCKETS + owners * beam + (4 - owners * beam % 4) % 4;
    float* local = vectors + rows * LEN;  // U
    float* next_local = local + rows * LEN;
    float* growth = next_local + rows * LEN;  // of Q in this input group
    float* next_growth = growth + rows * LEN;
    float* old_image = next_growth + rows * LEN;  // the old codeword times H_jj, [owners, LEN]
    float* offsets = old_image + rows * LEN;
    float* value = offsets + rows;
    float* change = value + rows;  // growth of Q in the panel
    float* next_change = change + (rows * AQLM_GO * columns + 3) / 4 * 4;
    float* behind = beam > 1 ? next_change + (rows * AQLM_GO * columns + 3) / 4 * 4 : next_change;
    double* loss = reinterpret_cast<double*>(behind);
    double* next_loss = loss + rows;
    int* valid = reinterpret_cast<int*>(next_loss + rows);
    int* found = valid + owners;
    int* picked = found + owners;
    int* keys = picked + rows;
    u16* ancestor = reinterpret_cast<u16*>(keys + rows);
    u16* next_ancestor = ancestor + rows;
    u16* root = next_ancestor + rows;
    u16* next_root = root + rows;

    const int first_owner = blockIdx.x * owners;
    const int here = out_groups - first_owner < owners ? out_groups - first_owner : owners;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = threadIdx.x;
    const size_t groups = static_cast<size_t>(out_groups) * inputs;

    for (int i = t; i < rows * LEN; i += THREADS) vectors[i] = 0.0f;
    for (int i = t; i < rows * AQLM_GO * columns; i += THREADS) change[i] = 0.0f;
    for (int r = t; r < rows; r += THREADS) {
        const int o = r / beam;
        loss[r] = o < here ? losses[static_cast<size_t>(first_owner) * beam + r] : 0.0;
        root[r] = static_cast<u16>(r % beam);
    }
    for (int o = t; o < owners; o += THREADS) valid[o] = o < here ? alive[first_owner + o] : 0;

    for (int visit = 0; visit < visits; ++visit) {
        const int own = visit * AQLM_GI, column = first_column + own;
        const size_t input = inputs_of[visit];
        __syncthreads();
        for (int i = t; i < AQLM_GI * AQLM_GI; i += THREADS) {
            metric[i] = hessian[static_cast<size_t>(column + i / AQLM_GI) * width + column + i % AQLM_GI];
        }
        for (int at = t; at < here * beam * LEN; at += THREADS) {
            const int r = at / LEN, a = at % LEN / AQLM_GI, i = at % AQLM_GI, o = r / beam;
            if (r % beam >= valid[o]) continue;
            const float* grown = change + (r * AQLM_GO + a) * columns;
            const float* h = hessian + static_cast<size_t>(first_column) * width + column + i;
            float inside = 0.0f;
#pragma unroll 8
            for (int c = 0; c < own; ++c) inside = fmaf(grown[c], h[static_cast<size_t>(c) * width], inside);
            local[at] = gradient[((static_cast<size_t>(first_owner + o) * beam + root[r]) * AQLM_GO + a) * width + column + i] - inside;
            growth[at] = 0.0f;
        }
        for (int r = t; r < here * beam; r += THREADS) ancestor[r] = static_cast<u16>(r % beam);
        const int from_position = position_of[visit], to_position = position_of[visit + 1];
        for (int position = from_position; position < to_position; ++position) {
            const int plane = planes_of[position];
            const float* codebook = codebooks + static_cast<size_t>(plane) * states * LEN;
            const float* form = forms + (static_cast<size_t>(visit) * count + plane) * states;
            const u16* before = codes + plane * groups + static_cast<size_t>(first_owner) * inputs + input;
            __syncthreads();
            for (int at = t; at < here * LEN; at += THREADS) {
                const int o = at / LEN, a = at % LEN / AQLM_GI, i = at % AQLM_GI;
                const float* codeword = codebook + static_cast<size_t>(before[static_cast<size_t>(o) * inputs]) * LEN + a * AQLM_GI;
                float image = 0.0f;
                for (int b = 0; b < AQLM_GI; ++b) image = fmaf(codeword[b], metric[b * AQLM_GI + i], image);
                old_image[at] = image;
            }
            __syncthreads();
            for (int r = t; r < here * beam; r += THREADS) {
                const int o = r / beam;
                if (r % beam >= valid[o]) continue;
                const float scale = static_cast<float>(scales[first_owner + o]);
                const float inverse = fabs(scale) > 1e-30f ? -2.0f / scale : 0.0f;
                const int old = before[static_cast<size_t>(o) * inputs];
                float score = form[old];
                for (int i = 0; i < LEN; ++i) {
                    const float u = fmaf(scale, old_image[o * LEN + i], local[r * LEN + i]);
                    local[r * LEN + i] = u;
                    vectors[r * LEN + i] = u * inverse;
                    score = fmaf(vectors[r * LEN + i], codebook[static_cast<size_t>(old) * LEN + i], score);
                }
                offsets[r] = static_cast<float>(loss[r] - loss[o * beam]) - scale * scale * score;
            }
            __syncthreads();
            least_of_codewords(vectors, (here * beam + ROWS - 1) / ROWS * ROWS, codebook, form, states, least);
            __syncthreads();
            for (int o = warp; o < here; o += WARPS) {
                const float scale = static_cast<float>(scales[first_owner + o]), weight_of = scale * scale;
                const int old = before[static_cast<size_t>(o) * inputs];
                float* values = least + o * beam * BUCKETS;
                const int buckets = pick_buckets(values, offsets + o * beam, weight_of, valid[o], beam, picked + o * beam);
                const int items = (states + BUCKETS - 1) / BUCKETS;
                for (int e = lane; e < buckets * items; e += 32) {
                    const int pick = picked[o * beam + e / items], r = o * beam + pick / BUCKETS, k = pick % BUCKETS + e % items * BUCKETS;
                    float score = INFINITE;
                    if (k < states && k != old) score = inner(form[k], vectors + r * LEN, codebook + static_cast<size_t>(k) * LEN);
                    const float here_value = fmaf(weight_of, score, offsets[r]);
                    values[e] = here_value < INFINITE && score < INFINITE ? here_value : INFINITE;
                }
                __syncwarp();
                // The unchanged codes join the others: the first of both lists, merged.
                const int some = buckets * items, all = some + valid[o];
                float* unchanged = least + rows * BUCKETS + o * beam;
                for (int h = lane; h < valid[o]; h += 32) unchanged[h] = static_cast<float>(loss[o * beam + h] - loss[o * beam]);
                __syncwarp();
                const auto at = [&](int e) {
                    if (e >= some) return Candidate{unchanged[e - some], static_cast<float>(e - some)};
                    const int pick = picked[o * beam + e / items];
                    return Candidate{values[e], static_cast<float>(MOST_ROWS + (pick / BUCKETS << 16) + pick % BUCKETS + e % items * BUCKETS)};
                };
                const auto take = [&](int rank, const Candidate& taken) {
                    keys[o * beam + rank] = static_cast<int>(taken.key);
                    value[o * beam + rank] = taken.value;
                };
                int best_count = pick(all, beam, at, take);
                if (best_count == 0) {
                    if (lane == 0) keys[o * beam] = 0;
                    best_count = 1;
                }
                if (lane == 0) found[o] = best_count;
                __syncwarp();
            }
            __syncthreads();
            for (int r = t; r < here * beam; r += THREADS) {
                const int o = r / beam, q = r % beam;
                const size_t slot = (static_cast<size_t>(position) * out_groups + first_owner + o) * beam + q;
                if (q >= found[o]) {
                    parents[slot] = 0;
                    chosen[slot] = before[static_cast<size_t>(o) * inputs];
                    continue;
                }
                const float scale = static_cast<float>(scales[first_owner + o]);
                const int old = before[static_cast<size_t>(o) * inputs];
                const bool changed = keys[r] >= MOST_ROWS;
                const int n = changed ? keys[r] - MOST_ROWS >> 16 : keys[r], code = changed ? keys[r] - MOST_ROWS & 0xffff : old;
                const int from = o * beam + n;
                next_loss[r] = changed ? loss[o * beam] + static_cast<double>(value[r]) : loss[from];
                next_ancestor[r] = ancestor[from];
                parents[slot] = static_cast<u16>(n);
                chosen[slot] = static_cast<u16>(code);
                const float* now = codebook + static_cast<size_t>(code) * LEN;
                const float* then = codebook + static_cast<size_t>(old) * LEN;
                for (int i = 0; i < LEN; ++i) {
                    float image = old_image[o * LEN + i];
                    if (changed) {
                        image = 0.0f;
                        const int a = i / AQLM_GI, column_of = i % AQLM_GI;
                        for (int b = 0; b < AQLM_GI; ++b) image = fmaf(now[a * AQLM_GI + b], metric[b * AQLM_GI + column_of], image);
                    }
                    next_local[r * LEN + i] = fmaf(-scale, image, local[from * LEN + i]);
                    next_growth[r * LEN + i] = changed ? fmaf(scale, now[i] - then[i], growth[from * LEN + i]) : growth[from * LEN + i];
                }
            }
            __syncthreads();
            for (int o = t; o < here; o += THREADS) valid[o] = found[o];
            float* numbers = local;
            local = next_local;
            next_local = numbers;
            numbers = growth;
            growth = next_growth;
            next_growth = numbers;
            double* wide = loss;
            loss = next_loss;
            next_loss = wide;
            u16* narrow = ancestor;
            ancestor = next_ancestor;
            next_ancestor = narrow;
        }
        __syncthreads();
        if (beam > 1) {
            for (int r = t; r < here * beam; r += THREADS) {
                const int o = r / beam;
                next_root[r] = r % beam < valid[o] ? root[o * beam + ancestor[r]] : 0;
            }
            for (int at = t; at < here * beam * AQLM_GO * own; at += THREADS) {
                const int line = at / own, c = at % own, r = line / AQLM_GO, o = r / beam;
                if (r % beam >= valid[o]) continue;
                next_change[line * columns + c] = change[((o * beam + ancestor[r]) * AQLM_GO + line % AQLM_GO) * columns + c];
            }
            __syncthreads();
            float* numbers = change;
            change = next_change;
            next_change = numbers;
            u16* narrow = root;
            root = next_root;
            next_root = narrow;
        }
        for (int at = t; at < here * beam * LEN; at += THREADS) {
            const int r = at / LEN, a = at % LEN / AQLM_GI, i = at % AQLM_GI;
            if (r % beam >= valid[r / beam]) continue;
            change[(r * AQLM_GO + a) * columns + own + i] = growth[at];
        }
    }
    __syncthreads();
    for (int r = t; r < here * beam; r += THREADS) {
        const int o = r / beam, h = r % beam;
        const size_t slot = static_cast<size_t>(first_owner) * beam + r;
        losses[slot] = h < valid[o] ? loss[r] : 0.0;
        roots[slot] = h < valid[o] ? root[r] : 0;
        if (h == 0) alive[first_owner + o] = valid[o];
    }
    for (int at = t; at < here * beam * AQLM_GO * columns; at += THREADS) {
        const int line = at / columns, r = line / AQLM_GO;
        const bool there = r % beam < valid[r / beam];
        changes[static_cast<size_t>(first_owner) * beam * AQLM_GO * columns + at] = there ? change[at] : 0.0f;
    }
}
