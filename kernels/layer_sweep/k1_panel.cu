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
// A step may choose two codes together. A sum's score is <a H_jj, a> + <v, a> + <b H_jj, b> + <v, b> +
//   2 <a H_jj, b>, v = -2 U / s. A thread keeps one a H_jj in registers, forms 2 <a H_jj, b> once for all of
//   the block's rows and takes the minimum over b. Buckets are the a.
// gradient [out groups, beam, GO, width] and hessian [width, width], columns (and rows) in the order of the
//   sweep; codebooks [count, states, LEN]; scales [out groups] f64; codes, planes [out groups x inputs],
//   those before the sweep; forms [visits, count, states], <c H_jj, c>; inputs_of [visits], the input group
//   of each; position_of [visits + 1], each visit's first position, counted from the panel's first; planes_of
//   [positions], the codebook of each, and partners_of [positions], the second codebook of a pair, else
//   ALONE. losses [out groups, beam] f64, relative to the first codes', and alive [out groups], how many
//   there are; parents [positions, out groups, beam] and chosen [positions, out groups, beam, each]: the
//   history, where each is 2 if any step chooses a pair (`joint`); changes [out groups, beam, GO, columns of
//   the panel], the growth of Q; roots [out groups, beam].
// Arithmetic: scores in f32, losses in f64. Among equals a code that does not change wins, then the earlier
//   hypothesis and the lower code.
// Compile-time: AQLM_GO, AQLM_GI.

// Keys below are hypotheses whose codes do not change.
#define MOST_ROWS 128
#define ALONE 0xffffffffu

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    layer_sweep(const float* gradient, const float* hessian, const float* codebooks, const double* scales, const u16* codes, const float* forms,
                const u32* inputs_of, const u32* position_of, const u32* planes_of, const u32* partners_of, double* losses, int* alive, u16* parents,
                u16* chosen, float* changes, u16* roots, int out_groups, int width, int first_column, int visits, int count, int states, int beam,
                int owners, int joint) {
    SHARED_MEMORY(shared);
    const int rows = (owners * beam + ROWS - 1) / ROWS * ROWS, columns = visits * AQLM_GI, inputs = width / AQLM_GI;
    const int table = joint ? states : 0, each = joint ? 2 : 1;
    float* metric = reinterpret_cast<float*>(shared);  // H_jj
    float* first_image = metric + (AQLM_GI * AQLM_GI + 3) / 4 * 4;   // a H_jj
    float* second_side = first_image + (table * LEN + 3) / 4 * 4;    // b
    float* bias = second_side + (table * LEN + 3) / 4 * 4;           // [states, ROWS]
    float* least = bias + table * ROWS;
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
            const bool pair = partners_of[position] != ALONE;
            const int partner = pair ? static_cast<int>(partners_of[position]) : plane;
            const float* codebook = codebooks + static_cast<size_t>(plane) * states * LEN;
            const float* form = forms + (static_cast<size_t>(visit) * count + plane) * states;
            const u16* before = codes + plane * groups + static_cast<size_t>(first_owner) * inputs + input;
            // Those of a pair's second codebook.
            const float* others = codebooks + static_cast<size_t>(partner) * states * LEN;
            const float* other_form = forms + (static_cast<size_t>(visit) * count + partner) * states;
            const u16* other_before = codes + partner * groups + static_cast<size_t>(first_owner) * inputs + input;
            // Number i of a choice: of a codeword, or of the sum of two.
            const auto number = [&](int first, int second, int i) {
                const float c = codebook[static_cast<size_t>(first) * LEN + i];
                return pair ? c + others[static_cast<size_t>(second) * LEN + i] : c;
            };
            __syncthreads();
            for (int at = t; at < here * LEN; at += THREADS) {
                const int o = at / LEN, start = at % LEN / AQLM_GI * AQLM_GI, i = at % AQLM_GI;
                const int first = before[static_cast<size_t>(o) * inputs], second = other_before[static_cast<size_t>(o) * inputs];
                float image = 0.0f;
                for (int b = 0; b < AQLM_GI; ++b) image = fmaf(number(first, second, start + b), metric[b * AQLM_GI + i], image);
                old_image[at] = image;
            }
            if (pair) {
                for (int at = t; at < states * LEN; at += THREADS) {
                    const int start = at - at % AQLM_GI, i = at % AQLM_GI;
                    float image = 0.0f;
                    for (int b = 0; b < AQLM_GI; ++b) image = fmaf(codebook[start + b], metric[b * AQLM_GI + i], image);
                    first_image[at] = image;
                    second_side[at] = others[at];
                }
            }
            __syncthreads();
            for (int r = t; r < here * beam; r += THREADS) {
                const int o = r / beam;
                if (r % beam >= valid[o]) continue;
                const float scale = static_cast<float>(scales[first_owner + o]);
                const float inverse = fabs(scale) > 1e-30f ? -2.0f / scale : 0.0f;
                const int old = before[static_cast<size_t>(o) * inputs], other_old = other_before[static_cast<size_t>(o) * inputs];
                float score = form[old];
                if (pair) {
                    const float second = other_form[other_old];
                    score += fmaf(2.0f, inner(0.0f, first_image + old * LEN, second_side + other_old * LEN), second);
                }
                for (int i = 0; i < LEN; ++i) {
                    const float u = fmaf(scale, old_image[o * LEN + i], local[r * LEN + i]);
                    local[r * LEN + i] = u;
                    vectors[r * LEN + i] = u * inverse;
                    score = fmaf(vectors[r * LEN + i], number(old, other_old, i), score);
                }
                offsets[r] = static_cast<float>(loss[r] - loss[o * beam]) - scale * scale * score;
            }
            __syncthreads();
            if (pair) {
                float twice[LEN];
                const bool inside = t < states;
                load_group(twice, first_image + (inside ? t : 0) * LEN);
#pragma unroll
                for (int i = 0; i < LEN; ++i) twice[i] *= 2.0f;
                for (int first = 0; first < here * beam; first += ROWS) {
                    __syncthreads();
                    if (inside) {
                        float b[LEN];
                        load_group(b, second_side + t * LEN);
#pragma unroll
                        for (int r = 0; r < ROWS; r += 4) {
                            float4 four;
                            float* of_row = &four.x;
#pragma unroll
                            for (int q = 0; q < 4; ++q) {
                                float vector[LEN];
                                load_group(vector, vectors + (first + r + q) * LEN);
                                of_row[q] = inner(other_form[t], vector, b);
                            }
                            reinterpret_cast<float4*>(bias + t * ROWS)[r / 4] = four;
                        }
                    }
                    __syncthreads();
                    float lowest[ROWS];
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) lowest[r] = INFINITE;
#pragma unroll 2
                    for (int k = 0; k < states; ++k) {
                        float b[LEN];
                        load_group(b, second_side + k * LEN);
                        const float cross = inner(0.0f, twice, b);
#pragma unroll
                        for (int r = 0; r < ROWS / 4; ++r) {
                            const float4 four = reinterpret_cast<const float4*>(bias + k * ROWS)[r];
                            lowest[r * 4] = fminf(lowest[r * 4], cross + four.x);
                            lowest[r * 4 + 1] = fminf(lowest[r * 4 + 1], cross + four.y);
                            lowest[r * 4 + 2] = fminf(lowest[r * 4 + 2], cross + four.z);
                            lowest[r * 4 + 3] = fminf(lowest[r * 4 + 3], cross + four.w);
                        }
                    }
                    float a[LEN];
                    load_group(a, codebook + static_cast<size_t>(inside ? t : 0) * LEN);
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) {
                        float vector[LEN];
                        load_group(vector, vectors + (first + r) * LEN);
                        least[(first + r) * BUCKETS + t] = inside ? lowest[r] + inner(form[t], vector, a) : INFINITE;
                    }
                }
            } else {
                least_of_codewords(vectors, (here * beam + ROWS - 1) / ROWS * ROWS, codebook, form, states, least);
            }
            __syncthreads();
            for (int o = warp; o < here; o += WARPS) {
                const float scale = static_cast<float>(scales[first_owner + o]), weight_of = scale * scale;
                const int old_code = before[static_cast<size_t>(o) * inputs];
                const int old = pair ? old_code * states + other_before[static_cast<size_t>(o) * inputs] : old_code;
                float* values = least + o * beam * BUCKETS;
                const int buckets = pick_buckets(values, offsets + o * beam, weight_of, valid[o], beam, picked + o * beam);
                const int items = pair ? states : (states + BUCKETS - 1) / BUCKETS;
                // A choice by its number: a code, or both codes of a pair.
                const auto choice = [&](int e) {
                    const int bucket = picked[o * beam + e / items] % BUCKETS;
                    return pair ? bucket * states + e % items : bucket + e % items * BUCKETS;
                };
                for (int e = lane; e < buckets * items; e += 32) {
                    const int r = o * beam + picked[o * beam + e / items] / BUCKETS, k = choice(e);
                    float score = INFINITE;
                    if (pair && k != old) {
                        const int a = k / states, b = k % states;
                        const float first = inner(form[a], vectors + r * LEN, codebook + static_cast<size_t>(a) * LEN);
                        const float second = inner(other_form[b], vectors + r * LEN, second_side + b * LEN);
                        score = first + fmaf(2.0f, inner(0.0f, first_image + a * LEN, second_side + b * LEN), second);
                    } else if (!pair && k < states && k != old) {
                        score = inner(form[k], vectors + r * LEN, codebook + static_cast<size_t>(k) * LEN);
                    }
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
                    const int row = picked[o * beam + e / items] / BUCKETS;
                    return Candidate{values[e], static_cast<float>(MOST_ROWS + (row << 16) + choice(e))};
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
                const int old = before[static_cast<size_t>(o) * inputs], other_old = other_before[static_cast<size_t>(o) * inputs];
                if (q >= found[o]) {
                    parents[slot] = 0;
                    chosen[slot * each] = static_cast<u16>(old);
                    if (joint) chosen[slot * each + 1] = static_cast<u16>(other_old);
                    continue;
                }
                const float scale = static_cast<float>(scales[first_owner + o]);
                const bool changed = keys[r] >= MOST_ROWS;
                const int n = changed ? keys[r] - MOST_ROWS >> 16 : keys[r], index = keys[r] - MOST_ROWS & 0xffff;
                const int code = !changed ? old : pair ? index / states : index;
                const int other = !pair ? code : changed ? index % states : other_old;
                const int from = o * beam + n;
                next_loss[r] = changed ? loss[o * beam] + static_cast<double>(value[r]) : loss[from];
                next_ancestor[r] = ancestor[from];
                parents[slot] = static_cast<u16>(n);
                chosen[slot * each] = static_cast<u16>(code);
                if (joint) chosen[slot * each + 1] = static_cast<u16>(other);
                for (int i = 0; i < LEN; ++i) {
                    float image = old_image[o * LEN + i];
                    if (changed) {
                        image = 0.0f;
                        const int start = i - i % AQLM_GI;
                        for (int b = 0; b < AQLM_GI; ++b) image = fmaf(number(code, other, start + b), metric[b * AQLM_GI + i % AQLM_GI], image);
                    }
                    next_local[r * LEN + i] = fmaf(-scale, image, local[from * LEN + i]);
                    next_growth[r * LEN + i] = changed ? fmaf(scale, number(code, other, i) - number(old, other_old, i), growth[from * LEN + i]) : growth[from * LEN + i];
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
