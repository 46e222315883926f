/* Routing of tokens to the best of E experts, and the moving of their rows; see `moe_compiled.py`.

   Vectors over experts have M lanes, E rounded up to a multiple of 16; lanes from E on hold zeros.

   Legend: n tokens, N channels, E experts, V floats per vector. */

#define MAX_EXPERTS 256
#define AHEAD 12 /* rows between a prefetch and its use */
#define SIDE 4   /* sums that are built side by side; divides V */

typedef struct {
    const float *x, *router; /* (n, N), (E, N) */
    int64_t tokens, width, experts, lanes, threads;
} Mixture;

/* Token i is in row i / span * stride + i % stride of `number` ones, or, if not valid, in one more. */
typedef struct {
    const uint8_t *valid; /* (n), or NULL: all are */
    int64_t number, span, stride;
} Rows;

INLINE ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

INLINE void prefetch_row(const float *row, ptrdiff_t width) {
    for (ptrdiff_t d = 0; d < width; d += 16) __builtin_prefetch(row + d);
}

/* tile (V, M) = x packed for V tokens from `first`, the last one again where there are fewer. */
INLINE void router_scores(const Mixture *m, const float *packed, ptrdiff_t first, float *tile,
                          ptrdiff_t M) {
    for (ptrdiff_t e = 0; e < M; e += V)
        for (ptrdiff_t j = 0; j < V; j += V / 2) {
            const float *row[V / 2];
            vf score[V / 2];
            for (ptrdiff_t i = 0; i < V / 2; i++) {
                row[i] = m->x + smaller(first + j + i, m->tokens - 1) * m->width;
                score[i] = splat(0);
            }
            for (ptrdiff_t d = 0; d < m->width; d++) {
                const vf weight = load(packed + d * M + e);
                for (ptrdiff_t i = 0; i < V / 2; i++) score[i] += row[i][d] * weight;
            }
            for (ptrdiff_t i = 0; i < V / 2; i++) store(tile + (j + i) * M + e, score[i]);
        }
}

/* tile (V, M) of scores becomes probabilities; the best of each token and its probability. */
INLINE vf softmax_tile(float *tile, ptrdiff_t experts, ptrdiff_t M, vi *best) {
    vf score[MAX_EXPERTS], most = splat(-INFINITY), total = splat(0);
    for (ptrdiff_t e = 0; e < experts; e++) {
        for (ptrdiff_t j = 0; j < V; j++) score[e][j] = tile[j * M + e];
        most = maximum(most, score[e]);
    }
    *best = (vi){0};
    for (ptrdiff_t e = experts - 1; e >= 0; e--) {
        const vi is_best = score[e] == most;
        *best = (*best & ~is_best) | (is_best & (int32_t)e);
        total += score[e] = exp2_v(score[e] - most);
    }
    const vf scale = 1.0f / total;
    for (ptrdiff_t e = 0; e < experts; e++) {
        score[e] *= scale;
        for (ptrdiff_t j = 0; j < V; j++) tile[j * M + e] = score[e][j];
    }
    return scale;
}

/* Per token: probabilities softmax(router x) (n, M) unless NULL, the best expert (the lowest among
   equals), its probability, the row. Per thread and row, zeroed by the caller: sums of probabilities
   and of choices (number + 1, M). `packed` is room for (N, M). */
void sepx_moe_route(const Mixture *m, const Rows *r, float *packed, float *prob, int16_t *expert,
                    float *best, int32_t *row, float *prob_sum, float *choice_sum) {
    const ptrdiff_t E = m->experts, M = m->lanes, n = m->tokens, sums = (r->number + 1) * M;
    const int64_t part = (n + m->threads * V - 1) / (m->threads * V) * V;
    for (ptrdiff_t d = 0; d < m->width; d++)
        for (ptrdiff_t e = 0; e < M; e++)
            packed[d * M + e] = e < E ? m->router[e * m->width + d] * LOG2_E : 0.0f;
#pragma omp parallel for num_threads((int)m->threads) if (m->threads > 1)
    for (int64_t worker = 0; worker < m->threads; worker++) {
        float tile[V * MAX_EXPERTS];
        float *probs = prob_sum + worker * sums, *choices = choice_sum + worker * sums;
        const ptrdiff_t begin = worker * part, stop = smaller(n, begin + part);
        ptrdiff_t outer = begin / r->span, inner = begin % r->span, lane = begin % r->stride;
        for (ptrdiff_t first = begin; first < stop; first += V) {
            if (M == 16)
                router_scores(m, packed, first, tile, 16);
            else
                router_scores(m, packed, first, tile, M);
            vi chosen;
            const vf scale = softmax_tile(tile, E, M, &chosen);
            const ptrdiff_t count = smaller(stop - first, V);
            store_part(best + first, scale, count);
            for (ptrdiff_t j = 0; j < count; j++) {
                const ptrdiff_t i = first + j, known = !r->valid || r->valid[i];
                const ptrdiff_t at = known ? outer * r->stride + lane : r->number;
                expert[i] = (int16_t)chosen[j];
                row[i] = (int32_t)at;
                choices[at * M + chosen[j]] += 1.0f;
                for (ptrdiff_t e = 0; e < M; e += V) {
                    const vf p = load(tile + j * M + e);
                    float *sum = probs + at * M + e;
                    store(sum, load(sum) + p);
                    if (prob) store(prob + i * M + e, p);
                }
                if (++lane == r->stride) lane = 0;
                if (++inner == r->span) inner = 0, outer++;
            }
        }
    }
}

/* Tokens (n) in order of their experts, and how many each expert has (E). */
void sepx_moe_sort(const int16_t *expert, int64_t tokens, int64_t experts, int32_t *order,
                   int64_t *counts) {
    int64_t at[MAX_EXPERTS], start = 0;
    memset(counts, 0, experts * sizeof *counts);
    for (ptrdiff_t i = 0; i < tokens; i++) counts[expert[i]]++;
    for (ptrdiff_t e = 0; e < experts; e++) {
        at[e] = start;
        start += counts[e];
    }
    for (ptrdiff_t i = 0; i < tokens; i++) order[at[expert[i]]++] = (int32_t)i;
}

/* rows (padded, N): those of x for `count` tokens, then zeros. */
void sepx_moe_gather(const Mixture *m, const int32_t *token, int64_t count, int64_t padded,
                     float *rows) {
    const ptrdiff_t N = m->width;
#pragma omp parallel for num_threads((int)m->threads) if (m->threads > 1)
    for (int64_t i = 0; i < count; i++) {
        prefetch_row(m->x + token[smaller(i + AHEAD, count - 1)] * N, N);
        for (ptrdiff_t d = 0; d < N; d += V)
            store_part(rows + i * N + d, load_part(m->x + token[i] * N + d, N - d), N - d);
    }
    memset(rows + count * N, 0, (padded - count) * N * sizeof *rows);
}

/* y[token] = factor weight[token] rows, or added to it; weights of one if NULL. */
void sepx_moe_scatter(const Mixture *m, const int32_t *token, int64_t count, const float *rows,
                      const float *weight, float factor, int64_t add, float *y) {
    const ptrdiff_t N = m->width;
#pragma omp parallel for num_threads((int)m->threads) if (m->threads > 1)
    for (int64_t i = 0; i < count; i++) {
        prefetch_row(y + token[smaller(i + AHEAD, count - 1)] * N, N);
        const float scale = weight ? factor * weight[token[i]] : factor;
        for (ptrdiff_t d = 0; d < N; d += V) {
            float *to = y + token[i] * N + d;
            vf value = scale * load_part(rows + i * N + d, N - d);
            if (add) value += load_part(to, N - d);
            store_part(to, value, N - d);
        }
    }
}

/* What backward has at hand for each token. */
typedef struct {
    const float *prob, *best; /* (n, M), (n) */
    const int32_t *row;       /* (n) */
    const float *sums;        /* gradient of the sums of probabilities (number + 1, M) */
    const float *grad, *out;  /* (n, N) */
    int64_t weighted; /* whether outputs were multiplied by `best` */
    int64_t learns;   /* whether the gradient of `best` reaches the router */
} Backward;

/* For `count` tokens of one expert: x (padded, N) and the gradient of the expert's output (padded, N),
   with zeros below, and the gradient of the scores (count, M). Since out = weight y, the gradient of
   `best` is grad out / best whether outputs are weighted or not. */
void sepx_moe_gather_backward(const Mixture *m, const Backward *b, const int32_t *token,
                              int64_t count, int64_t padded, int64_t expert, float *x, float *grad,
                              float *score) {
    const ptrdiff_t N = m->width, M = m->lanes;
#pragma omp parallel for num_threads((int)m->threads) if (m->threads > 1)
    for (int64_t i = 0; i < count; i++) {
        const ptrdiff_t next = token[smaller(i + AHEAD, count - 1)], t = token[i];
        prefetch_row(m->x + next * N, N);
        prefetch_row(b->grad + next * N, N);
        prefetch_row(b->out + next * N, N);
        prefetch_row(b->prob + next * M, M);
        const float weight = b->weighted ? b->best[t] : 1.0f;
        vf product = splat(0), mean = splat(0);
        for (ptrdiff_t d = 0; d < N; d += V) {
            const vf g = load_part(b->grad + t * N + d, N - d);
            store_part(x + i * N + d, load_part(m->x + t * N + d, N - d), N - d);
            store_part(grad + i * N + d, weight * g, N - d);
            product += g * load_part(b->out + t * N + d, N - d);
        }
        const float *prob = b->prob + t * M, *sums = b->sums + b->row[t] * M;
        for (ptrdiff_t e = 0; e < M; e += V) mean += load(prob + e) * load(sums + e);
        const float of_best = b->learns ? sum_lanes(product) : 0.0f; /* p times its gradient */
        const float all = sum_lanes(mean) + of_best;
        for (ptrdiff_t e = 0; e < M; e += V)
            store(score + i * M + e, load(prob + e) * (load(sums + e) - all));
        score[i * M + expert] += of_best;
    }
    memset(x + count * N, 0, (padded - count) * N * sizeof *x);
    memset(grad + count * N, 0, (padded - count) * N * sizeof *grad);
}

/* dx[token] = rows + score router for V or fewer rows from `first`. */
INLINE void scatter_rows(const Mixture *m, const int32_t *token, ptrdiff_t first, ptrdiff_t count,
                         const float *rows, const float *score, float *dx) {
    const ptrdiff_t N = m->width, M = m->lanes;
    for (ptrdiff_t j = first; j < first + count; j += SIDE)
        for (ptrdiff_t d = 0; d < N; d += V) {
            vf sum[SIDE];
            const float *of[SIDE];
            for (ptrdiff_t i = 0; i < SIDE; i++) {
                const ptrdiff_t at = smaller(j + i, first + count - 1);
                sum[i] = load_part(rows + at * N + d, N - d);
                of[i] = score + at * M;
            }
            for (ptrdiff_t e = 0; e < m->experts; e++) {
                const vf router = load_part(m->router + e * N + d, N - d);
                for (ptrdiff_t i = 0; i < SIDE; i++) sum[i] += of[i][e] * router;
            }
            for (ptrdiff_t i = 0; i < SIDE; i++)
                store_part(dx + token[smaller(j + i, first + count - 1)] * N + d, sum[i], N - d);
        }
}

/* drouter (E, N) += score^T x for V or fewer rows. */
INLINE void add_to_router(const Mixture *m, ptrdiff_t count, const float *x, const float *score,
                          float *drouter) {
    const ptrdiff_t N = m->width, M = m->lanes;
    for (ptrdiff_t d = 0; d < N; d += V)
        for (ptrdiff_t e = 0; e < m->experts; e += SIDE) {
            vf sum[SIDE];
            for (ptrdiff_t i = 0; i < SIDE; i++) sum[i] = splat(0);
            for (ptrdiff_t j = 0; j < count; j++) {
                const vf row = load_part(x + j * N + d, N - d);
                for (ptrdiff_t i = 0; i < SIDE; i++) sum[i] += score[j * M + e + i] * row;
            }
            for (ptrdiff_t i = 0; i < SIDE && e + i < m->experts; i++) {
                float *to = drouter + (e + i) * N + d;
                store_part(to, load_part(to, N - d) + sum[i], N - d);
            }
        }
}

/* dx[token] = rows + score router for `count` tokens; per thread, drouter (E, N) += score^T x. x and
   score are what sepx_moe_gather_backward left. */
void sepx_moe_scatter_backward(const Mixture *m, const int32_t *token, int64_t count,
                               const float *rows, const float *x, const float *score, float *dx,
                               float *drouter) {
    const ptrdiff_t N = m->width, part = (count + m->threads * V - 1) / (m->threads * V) * V;
#pragma omp parallel for num_threads((int)m->threads) if (m->threads > 1)
    for (int64_t worker = 0; worker < m->threads; worker++) {
        const ptrdiff_t stop = smaller(count, (worker + 1) * part);
        for (ptrdiff_t first = worker * part; first < stop; first += V) {
            const ptrdiff_t some = smaller(stop - first, V);
            scatter_rows(m, token, first, some, rows, score, dx);
            add_to_router(m, some, x + first * N, score + first * m->lanes,
                          drouter + worker * m->experts * N);
        }
    }
}
