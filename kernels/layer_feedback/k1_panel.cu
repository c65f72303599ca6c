#include "../common.cuh"
#include "../quantizer.cuh"
#include "../choose.cuh"
// layer_feedback k1: decides a panel of input groups, the last first, for output groups that are independent.
//
// Parallel over: a block several output groups (owners) with all their hypotheses. Feedback inside the panel
//   comes from the owners' own errors in shared memory; that of the groups behind the panel is ready in
//   `feedback`, and one product after the panel brings it up to date. So no block waits for another.
// Pairs of codebooks are searched jointly: with a' = a L_jj and b' = b L_jj, a sum's score is |a'|^2 + <v,
//   a'> + |b'|^2 + <v, b'> + 2 <a', b'>, v = -2 t / s. A thread keeps one a' in registers, forms 2 <a', b'>
//   once for all of the block's rows and takes the minimum over b: an addition and a minimum a sum and row.
//   Buckets are the a.
// Single codebooks are scored in the space of the weights: |c L_jj|^2 + <v L_jj^T, c>.
// weight [out, width], columns in the order of the factor; lower, L [width, width]; codebooks [count, states,
//   LEN]; scales [out groups] f64; forms [places, count, states], |c L_jj|^2, read for codebooks that are
//   searched alone; feedback [out groups, hypotheses, GO, width]; losses [out groups, hypotheses] f64 and
//   alive [out groups], how many there are; parents [places of the layer, out groups, hypotheses] and chosen
//   [the same, count]: the history; errors [out groups, hypotheses, GO, columns of the panel]; roots [out
//   groups, hypotheses].
// Arithmetic: scores in f32, losses in f64. Among equals the earlier hypothesis and the lower codes win.
// Bound: 8 + 2 x 16 instructions for 16 sums of a pair; 8.6 for a score of a single codeword.
// Compile-time: AQLM_GO, AQLM_GI.

#define PARTIAL 16

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    layer_feedback(const float* weight, const float* lower, const float* codebooks, const double* scales, const float* forms, const float* feedback,
                   double* losses, int* alive, u16* parents, u16* chosen, float* errors, u16* roots, int out_groups, int width, int first_place,
                   int places, int count, int states, int hypotheses, int cap, int owners, int joint) {
    SHARED_MEMORY(shared);
    const int rows = (owners * cap + ROWS - 1) / ROWS * ROWS, columns = places * AQLM_GI;
    const int table = joint ? states : 0;
    float* metric = reinterpret_cast<float*>(shared);  // L_jj
    float* first_side = metric + (AQLM_GI * AQLM_GI + 3) / 4 * 4;
    float* second_side = first_side + (table * LEN + 3) / 4 * 4;
    float* first_square = second_side + (table * LEN + 3) / 4 * 4;
    float* second_square = first_square + (table + 3) / 4 * 4;
    float* bias = second_square + (table + 3) / 4 * 4;  // [states, ROWS]
    float* least = bias + table * ROWS;                 // [rows, BUCKETS]
    float* vectors = least + rows * BUCKETS;            // v, and v L_jj^T
    float* raw = vectors + rows * LEN;
    float* left = raw + rows * LEN;  // what is left of the targets, and of the next choices'
    float* next_left = left + rows * LEN;
    float* error = next_left + rows * LEN;  // E of the panel's decided groups, and its next state
    float* next_error = error + (rows * AQLM_GO * columns + 3) / 4 * 4;
    float* offsets = hypotheses > 1 ? next_error + (rows * AQLM_GO * columns + 3) / 4 * 4 : next_error;
    double* base = reinterpret_cast<double*>(offsets + rows);
    double* next_base = base + rows;
    double* loss = next_base + rows;
    double* next_loss = loss + rows;
    double* found_loss = next_loss + rows;
    int* valid = reinterpret_cast<int*>(found_loss + rows);  // choices of each owner
    int* found = valid + owners;                             // and of the next step
    int* picked = found + owners;                            // [rows]
    int* keys = picked + rows;
    u16* parent = reinterpret_cast<u16*>(keys + rows);
    u16* next_parent = parent + rows;
    u16* root = next_parent + rows;
    u16* next_root = root + rows;
    u16* code = next_root + rows;  // [rows, count]
    u16* next_code = code + rows * count;

    const int first_owner = blockIdx.x * owners;
    const int here = out_groups - first_owner < owners ? out_groups - first_owner : owners;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = threadIdx.x;

    for (int i = t; i < rows * LEN; i += THREADS) vectors[i] = raw[i] = left[i] = 0.0f;
    for (int i = t; i < rows * AQLM_GO * columns; i += THREADS) error[i] = 0.0f;
    for (int r = t; r < rows; r += THREADS) {
        const int o = r / cap, h = r % cap;
        loss[r] = o < here && h < hypotheses ? losses[static_cast<size_t>(first_owner + o) * hypotheses + h] : 0.0;
        root[r] = static_cast<u16>(h);
    }
    for (int o = t; o < owners; o += THREADS) valid[o] = o < here ? alive[first_owner + o] : 0;

    for (int place = places - 1; place >= 0; --place) {
        const int column = (first_place + place) * AQLM_GI, own = place * AQLM_GI;
        __syncthreads();
        for (int i = t; i < AQLM_GI * AQLM_GI; i += THREADS) {
            metric[i] = lower[static_cast<size_t>(column + i / AQLM_GI) * width + column + i % AQLM_GI];
        }
        __syncthreads();
        // The targets: w L_jj, the feedback from behind the panel, the feedback inside it.
        for (int at = t; at < here * cap * LEN; at += THREADS) {
            const int r = at / LEN, a = at % LEN / AQLM_GI, i = at % AQLM_GI, o = r / cap;
            if (r % cap >= valid[o]) continue;
            const size_t group = first_owner + o;
            const float* w = weight + (group * AQLM_GO + a) * width + column;
            float target = feedback[((group * hypotheses + root[r]) * AQLM_GO + a) * width + column + i];
            for (int b = i; b < AQLM_GI; ++b) target = fmaf(w[b], metric[b * AQLM_GI + i], target);
            const float* decided = error + (r * AQLM_GO + a) * columns;
            const float* l = lower + static_cast<size_t>(column - own) * width + column + i;
            float inside = 0.0f;
#pragma unroll 8
            for (int c = own + AQLM_GI; c < columns; ++c) inside = fmaf(decided[c], l[static_cast<size_t>(c) * width], inside);
            left[at] = target + inside;
        }
        for (int r = t; r < here * cap; r += THREADS) {
            base[r] = loss[r];
            parent[r] = static_cast<u16>(r % cap);
        }

        int decided = 0;
        while (decided < count) {
            const bool pair = joint && decided + 1 < count;
            const bool last = decided + (pair ? 2 : 1) == count;
            const int keep = last || hypotheses > PARTIAL ? hypotheses : PARTIAL;
            const float* codebook = codebooks + static_cast<size_t>(decided) * states * LEN;
            const float* form = forms + (static_cast<size_t>(place) * count + decided) * states;
            __syncthreads();
            for (int r = t; r < here * cap; r += THREADS) {
                const int o = r / cap;
                if (r % cap >= valid[o]) continue;
                const float scale = static_cast<float>(scales[first_owner + o]);
                const float inverse = fabs(scale) > 1e-30f ? -2.0f / scale : 0.0f;
                float square = 0.0f;
                for (int i = 0; i < LEN; ++i) {
                    square = fmaf(left[r * LEN + i], left[r * LEN + i], square);
                    vectors[r * LEN + i] = left[r * LEN + i] * inverse;
                }
                offsets[r] = static_cast<float>(base[r] - base[o * cap]) + square;
            }
            if (pair) {
                for (int k = t; k < 2 * states; k += THREADS) {
                    const bool second = k >= states;
                    const float* from = codebook + static_cast<size_t>(k) * LEN;
                    float* to = second ? second_side + (k - states) * LEN : first_side + k * LEN;
                    float square = 0.0f;
                    for (int a = 0; a < AQLM_GO; ++a) {
                        for (int i = 0; i < AQLM_GI; ++i) {
                            float image = 0.0f;
                            for (int b = i; b < AQLM_GI; ++b) image = fmaf(from[a * AQLM_GI + b], metric[b * AQLM_GI + i], image);
                            to[a * AQLM_GI + i] = image;
                            square = fmaf(image, image, square);
                        }
                    }
                    (second ? second_square : first_square)[second ? k - states : k] = square;
                }
            }
            __syncthreads();
            if (pair) {
                float twice[LEN];
                const bool inside = t < states;
                load_group(twice, first_side + (inside ? t : 0) * LEN);
#pragma unroll
                for (int i = 0; i < LEN; ++i) twice[i] *= 2.0f;
                for (int first = 0; first < here * cap; first += ROWS) {
                    __syncthreads();
                    if (inside) {
                        float b[LEN];
                        load_group(b, second_side + t * LEN);
#pragma unroll
                        for (int r = 0; r < ROWS; r += 4) {
                            float4 four;
                            float* each = &four.x;
#pragma unroll
                            for (int q = 0; q < 4; ++q) {
                                float vector[LEN];
                                load_group(vector, vectors + (first + r + q) * LEN);
                                each[q] = inner(second_square[t], vector, b);
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
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) {
                        float vector[LEN];
                        load_group(vector, vectors + (first + r) * LEN);
                        const float half = inner(0.0f, vector, twice);
                        least[(first + r) * BUCKETS + t] = inside ? lowest[r] + (first_square[t] + 0.5f * half) : INFINITE;
                    }
                }
            } else {
                for (int at = t; at < here * cap * LEN; at += THREADS) {
                    const int i = at % AQLM_GI, start = at - i;
                    float sum = 0.0f;
                    for (int b = 0; b <= i; ++b) sum = fmaf(vectors[start + b], metric[i * AQLM_GI + b], sum);
                    raw[at] = sum;
                }
                __syncthreads();
                least_of_codewords(raw, (here * cap + ROWS - 1) / ROWS * ROWS, codebook, form, states, least);
            }
            __syncthreads();
            for (int o = warp; o < here; o += WARPS) {
                const float scale = static_cast<float>(scales[first_owner + o]), weight_of = scale * scale;
                float* values = least + o * cap * BUCKETS;
                const int buckets = pick_buckets(values, offsets + o * cap, weight_of, valid[o], keep, picked + o * cap);
                // The values of the picked buckets' codewords replace the minima.
                const int items = pair ? states : (states + BUCKETS - 1) / BUCKETS;
                for (int e = lane; e < buckets * items; e += 32) {
                    const int pick = picked[o * cap + e / items], n = pick / BUCKETS, bucket = pick % BUCKETS, i = e % items;
                    const int r = o * cap + n;
                    float score = INFINITE;
                    if (pair) {
                        const float first = inner(first_square[bucket], vectors + r * LEN, first_side + bucket * LEN);
                        const float second = inner(second_square[i], vectors + r * LEN, second_side + i * LEN);
                        score = first + fmaf(2.0f, inner(0.0f, first_side + bucket * LEN, second_side + i * LEN), second);
                    } else if (bucket + i * BUCKETS < states) {
                        const int k = bucket + i * BUCKETS;
                        score = inner(form[k], raw + r * LEN, codebook + static_cast<size_t>(k) * LEN);
                    }
                    const float value = fmaf(weight_of, score, offsets[r]);
                    values[e] = value < INFINITE ? value : (score < INFINITE ? 3e38f : INFINITE);
                }
                __syncwarp();
                const auto at = [&](int e) {
                    const int pick = picked[o * cap + e / items], bucket = pick % BUCKETS, i = e % items;
                    const int code_of = pair ? bucket * states + i : bucket + i * BUCKETS;
                    return Candidate{values[e], static_cast<float>((pick / BUCKETS << 16) + code_of)};
                };
                const auto take = [&](int rank, const Candidate& taken) { keys[o * cap + rank] = static_cast<int>(taken.key); };
                int best = pick(buckets * items, keep, at, take);
                if (best == 0) {
                    if (lane == 0) keys[o * cap] = 0;
                    best = 1;
                }
                if (lane == 0) found[o] = best;
            }
            __syncthreads();
            // Losses in f64 order the choices.
            for (int r = t; r < here * cap; r += THREADS) {
                const int o = r / cap;
                if (r % cap >= found[o]) continue;
                const float scale = static_cast<float>(scales[first_owner + o]);
                const int from = o * cap + (keys[r] >> 16), index = keys[r] & 0xffff;
                double sum = 0.0;
                for (int a = 0; a < AQLM_GO; ++a) {
                    for (int i = 0; i < AQLM_GI; ++i) {
                        const int at = a * AQLM_GI + i;
                        float image = 0.0f;
                        if (pair) {
                            image = first_side[index / states * LEN + at] + second_side[index % states * LEN + at];
                        } else {
                            const float* codeword = codebook + static_cast<size_t>(index) * LEN + a * AQLM_GI;
                            for (int b = i; b < AQLM_GI; ++b) image = fmaf(codeword[b], metric[b * AQLM_GI + i], image);
                        }
                        const double rest = left[from * LEN + at] - scale * image;
                        sum += rest * rest;
                    }
                }
                found_loss[r] = base[from] + sum;
            }
            __syncthreads();
            for (int r = t; r < here * cap; r += THREADS) {
                const int o = r / cap, q = r % cap;
                if (q >= found[o]) continue;
                int rank = 0;
                for (int other = 0; other < found[o]; ++other) {
                    const double theirs = found_loss[o * cap + other], mine = found_loss[r];
                    rank += theirs < mine || (!(mine < theirs) && other < q);
                }
                const int to = o * cap + rank, from = o * cap + (keys[r] >> 16), index = keys[r] & 0xffff;
                const float scale = static_cast<float>(scales[first_owner + o]);
                next_base[to] = base[from];
                next_loss[to] = found_loss[r];
                next_parent[to] = parent[from];
                for (int m = 0; m < decided; ++m) next_code[to * count + m] = code[from * count + m];
                next_code[to * count + decided] = static_cast<u16>(pair ? index / states : index);
                if (pair) next_code[to * count + decided + 1] = static_cast<u16>(index % states);
                if (last) continue;
                for (int a = 0; a < AQLM_GO; ++a) {
                    for (int i = 0; i < AQLM_GI; ++i) {
                        const int at = a * AQLM_GI + i;
                        float image = 0.0f;
                        if (pair) {
                            image = first_side[index / states * LEN + at] + second_side[index % states * LEN + at];
                        } else {
                            const float* codeword = codebook + static_cast<size_t>(index) * LEN + a * AQLM_GI;
                            for (int b = i; b < AQLM_GI; ++b) image = fmaf(codeword[b], metric[b * AQLM_GI + i], image);
                        }
                        next_left[to * LEN + at] = left[from * LEN + at] - scale * image;
                    }
                }
            }
            __syncthreads();
            for (int o = t; o < here; o += THREADS) valid[o] = found[o];
            double* wide = base;
            base = next_base;
            next_base = wide;
            wide = loss;
            loss = next_loss;
            next_loss = wide;
            u16* narrow = parent;
            parent = next_parent;
            next_parent = narrow;
            narrow = code;
            code = next_code;
            next_code = narrow;
            float* numbers = left;
            left = next_left;
            next_left = numbers;
            decided += pair ? 2 : 1;
        }
        __syncthreads();
        // The choices become the hypotheses.
        for (int r = t; r < here * cap; r += THREADS) {
            const int o = r / cap, h = r % cap;
            if (h >= hypotheses) continue;
            const size_t slot = (static_cast<size_t>(first_place + place) * out_groups + first_owner + o) * hypotheses + h;
            const bool there = h < valid[o];
            parents[slot] = there ? parent[r] : 0;
            for (int m = 0; m < count; ++m) chosen[slot * count + m] = there ? code[r * count + m] : 0;
            next_root[r] = there ? root[o * cap + parent[r]] : 0;
        }
        if (hypotheses > 1) {
            const int later = columns - own - AQLM_GI;
            for (int at = t; at < here * cap * AQLM_GO * later; at += THREADS) {
                const int line = at / later, c = own + AQLM_GI + at % later, r = line / AQLM_GO, o = r / cap;
                if (r % cap >= valid[o]) continue;
                next_error[line * columns + c] = error[((o * cap + parent[r]) * AQLM_GO + line % AQLM_GO) * columns + c];
            }
            __syncthreads();
            float* numbers = error;
            error = next_error;
            next_error = numbers;
        }
        __syncthreads();
        {
            u16* narrow = root;
            root = next_root;
            next_root = narrow;
        }
        for (int at = t; at < here * cap * LEN; at += THREADS) {
            const int r = at / LEN, a = at % LEN / AQLM_GI, i = at % AQLM_GI, o = r / cap;
            if (r % cap >= valid[o] || r % cap >= hypotheses) continue;
            float sum = 0.0f;
            for (int m = 0; m < count; ++m) sum += codebooks[(static_cast<size_t>(m) * states + code[r * count + m]) * LEN + at % LEN];
            const float w = weight[(static_cast<size_t>(first_owner + o) * AQLM_GO + a) * width + column + i];
            error[(r * AQLM_GO + a) * columns + own + i] = w - static_cast<float>(scales[first_owner + o]) * sum;
        }
    }
    __syncthreads();
    for (int r = t; r < here * cap; r += THREADS) {
        const int o = r / cap, h = r % cap;
        if (h >= hypotheses) continue;
        const size_t slot = static_cast<size_t>(first_owner + o) * hypotheses + h;
        losses[slot] = h < valid[o] ? loss[r] : 0.0;
        roots[slot] = h < valid[o] ? root[r] : 0;
        if (h == 0) alive[first_owner + o] = valid[o];
    }
    for (int at = t; at < here * hypotheses * AQLM_GO * columns; at += THREADS) {
        const int c = at % columns, line = at / columns, a = line % AQLM_GO, h = line / AQLM_GO % hypotheses, o = line / AQLM_GO / hypotheses;
        const bool there = h < valid[o];
        errors[static_cast<size_t>(first_owner) * hypotheses * AQLM_GO * columns + at] = there ? error[((o * cap + h) * AQLM_GO + a) * columns + c] : 0.0f;
    }
}
