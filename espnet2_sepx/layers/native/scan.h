/* The selective scan, forward and backward; see `layers/scan`.

   A sequence is (L, D) with rows `*_row` floats apart, so that slices of wider tensors are read in
   place; sequences follow each other L rows apart. The state is (N, D). With `reverse` every
   sequence runs from its last step to its first.

   Channels are worked off a vector at a time, with the states of that vector in registers, and time
   in tiles, so that a tile's rows stay in the second-level cache from one vector to the next.

   Legend: B sequences, L steps, D channels, N states per channel, V channels per vector. */

#define BACK_TILE 16 /* backward keeps a tile's states and factors: 2 x 16 N V floats */
#define MAX_STATE 64

/* function(..., N), compiled for the usual numbers of states. */
#define WITH_CONSTANT(N, function, ...)                                                            \
    switch (N) {                                                                                   \
    case 16: function(__VA_ARGS__, 16); break;                                                     \
    case 8: function(__VA_ARGS__, 8); break;                                                       \
    default: function(__VA_ARGS__, N);                                                             \
    }

/* Everything a scan reads. A pointer that is NULL leaves its part out. */
typedef struct {
    const float *u, *dt, *B, *C, *z; /* (B, L, D), (B, L, D), (B, L, N) twice, (B, L, D) or NULL */
    const float *A;                  /* (N, D), in units of log2(e) */
    const float *D, *bias;           /* (D) or NULL: skip connection, added to dt */
    int64_t u_row, dt_row, B_row, C_row, z_row, y_row;
    int64_t batch, length, width, state;
    int64_t softplus, reverse, threads;
} Scan;

INLINE ptrdiff_t row_of(const Scan *s, ptrdiff_t step) {
    return s->reverse ? s->length - 1 - step : step;
}

INLINE vf time_step(const Scan *s, const float *dt, vf bias, ptrdiff_t lanes) {
    vf x = load_part(dt, lanes) + bias;
    return s->softplus ? softplus_v(x) : x;
}

/* Steps [from, to) of one sequence and one vector of channels; h is (N, V), kept by the caller. */
INLINE void forward_tile(const Scan *s, ptrdiff_t item, ptrdiff_t d, ptrdiff_t from, ptrdiff_t to,
                         vf *h_in, float *y, ptrdiff_t N) {
    const ptrdiff_t lanes = s->width - d, base = item * s->length;
    vf A[MAX_STATE], h[MAX_STATE];
    const vf bias = s->bias ? load_part(s->bias + d, lanes) : splat(0);
    const vf skip = s->D ? load_part(s->D + d, lanes) : splat(0);
    for (ptrdiff_t n = 0; n < N; n++) {
        A[n] = load_part(s->A + n * s->width + d, lanes);
        h[n] = h_in[n];
    }
    for (ptrdiff_t step = from; step < to; step++) {
        const ptrdiff_t row = base + row_of(s, step);
        const float *B = s->B + row * s->B_row, *C = s->C + row * s->C_row;
        const vf u = load_part(s->u + row * s->u_row + d, lanes);
        const vf dt = time_step(s, s->dt + row * s->dt_row + d, bias, lanes);
        const vf dtu = dt * u;
        vf even = skip * u, odd = splat(0);
#pragma GCC unroll 16
        for (ptrdiff_t n = 0; n < N; n++) {
            h[n] = exp2_v(dt * A[n]) * h[n] + dtu * B[n];
            if (n & 1)
                odd += h[n] * C[n];
            else
                even += h[n] * C[n];
        }
        vf out = even + odd;
        if (s->z) {
            const vf z = load_part(s->z + row * s->z_row + d, lanes);
            out *= z * sigmoid_v(z);
        }
        if (y) store_part(y + row * s->y_row + d, out, lanes);
    }
    for (ptrdiff_t n = 0; n < N; n++) h_in[n] = h[n];
}

static void forward_item(const Scan *s, ptrdiff_t item, float *state, float *y, ptrdiff_t N) {
    float *h_item = state + item * N * s->width;
    for (ptrdiff_t from = 0; from < s->length; from += TILE) {
        const ptrdiff_t to = from + TILE < s->length ? from + TILE : s->length;
        for (ptrdiff_t d = 0; d < s->width; d += V) {
            const ptrdiff_t lanes = s->width - d;
            vf h[MAX_STATE];
            for (ptrdiff_t n = 0; n < N; n++) h[n] = load_part(h_item + n * s->width + d, lanes);
            WITH_CONSTANT(N, forward_tile, s, item, d, from, to, h, y);
            for (ptrdiff_t n = 0; n < N; n++) store_part(h_item + n * s->width + d, h[n], lanes);
        }
    }
}

/* y (B, L, D) from s; `state` (B, N, D) holds the initial states and receives the last ones. */
void sepx_scan_forward(const Scan *s, float *state, float *y) {
#pragma omp parallel for num_threads((int)s->threads) if (s->threads > 1)
    for (int64_t item = 0; item < s->batch; item++) forward_item(s, item, state, y, s->state);
}

/* Where gradients go. Per sequence: du, ddt, dz (B, L, D), dB, dC (B, L, N), all contiguous; per
   thread, to be added up by the caller: dA (N, D) in plain units, dD, dbias (D). dstate (B, N, D)
   holds the gradient of the last states and receives that of the first. */
typedef struct {
    const float *grad; /* (B, L, D), rows grad_row apart */
    int64_t grad_row;
    float *du, *ddt, *dz, *dB, *dC, *dstate;
    float *dA, *dD, *dbias; /* (threads, ...), zeroed by the caller */
    float *bounds;          /* (threads, ceil(L / BACK_TILE), N, D): states before each tile */
} Grads;

INLINE void backward_tile(const Scan *s, const Grads *g, ptrdiff_t item, ptrdiff_t d,
                          ptrdiff_t from, ptrdiff_t to, const float *h0, float *G_mem, float *dA,
                          float *dD, float *dbias, vf *sum_B, vf *sum_C,
                          ptrdiff_t N) {
    const ptrdiff_t lanes = s->width - d, base = item * s->length, width = s->width;
    vf A[MAX_STATE], G[MAX_STATE], dA_v[MAX_STATE];
    vf E[BACK_TILE * MAX_STATE], H[(BACK_TILE + 1) * MAX_STATE]; /* (step, n) */
    vf dt_of[BACK_TILE], u_of[BACK_TILE];
    const vf bias = s->bias ? load_part(s->bias + d, lanes) : splat(0);
    const vf skip = s->D ? load_part(s->D + d, lanes) : splat(0);
    vf dD_v = splat(0), dbias_v = splat(0);
    for (ptrdiff_t n = 0; n < N; n++) {
        A[n] = load_part(s->A + n * width + d, lanes);
        H[n] = load_part(h0 + n * width + d, lanes);
        G[n] = load_part(G_mem + n * width + d, lanes);
        dA_v[n] = splat(0);
    }
    for (ptrdiff_t i = 0; i < to - from; i++) {
        const ptrdiff_t row = base + row_of(s, from + i);
        const float *B = s->B + row * s->B_row;
        u_of[i] = load_part(s->u + row * s->u_row + d, lanes);
        dt_of[i] = time_step(s, s->dt + row * s->dt_row + d, bias, lanes);
        const vf dt = dt_of[i], dtu = dt * u_of[i];
#pragma GCC unroll 16
        for (ptrdiff_t n = 0; n < N; n++) {
            E[i * N + n] = exp2_v(dt * A[n]);
            H[(i + 1) * N + n] = E[i * N + n] * H[i * N + n] + dtu * B[n];
        }
    }
    for (ptrdiff_t i = to - from - 1; i >= 0; i--) {
        const ptrdiff_t row = base + row_of(s, from + i);
        const float *B = s->B + row * s->B_row, *C = s->C + row * s->C_row;
        const vf u = u_of[i], dt = dt_of[i], dtu = dt * u;
        vf gy = load_part(g->grad + row * g->grad_row + d, lanes);
        if (s->z) {
            const vf z = load_part(s->z + row * s->z_row + d, lanes), gate = sigmoid_v(z);
            vf out = skip * u;
            for (ptrdiff_t n = 0; n < N; n++) out += H[(i + 1) * N + n] * C[n];
            store_part(g->dz + row * width + d, gy * out * (gate + z * gate * (1.0f - gate)), lanes);
            gy *= z * gate;
        }
        dD_v += gy * u;
        vf d_dtu = splat(0), d_arg = splat(0);
#pragma GCC unroll 16
        for (ptrdiff_t n = 0; n < N; n++) {
            G[n] += gy * C[n];
            sum_C[i * N + n] += gy * H[(i + 1) * N + n];
            sum_B[i * N + n] += G[n] * dtu;
            d_dtu += G[n] * B[n];
            G[n] *= E[i * N + n];
            const vf through = G[n] * H[i * N + n];
            d_arg += through * A[n];
            dA_v[n] += through * dt;
        }
        store_part(g->du + row * width + d, d_dtu * dt + gy * skip, lanes);
        vf d_dt = d_arg * LN_2 + d_dtu * u;
        if (s->softplus) d_dt *= 1.0f - exp2_v(dt * -LOG2_E); /* sigmoid(x) = 1 - e^-softplus(x) */
        dbias_v += d_dt;
        store_part(g->ddt + row * width + d, d_dt, lanes);
    }
    for (ptrdiff_t n = 0; n < N; n++) {
        store_part(G_mem + n * width + d, G[n], lanes);
        store_part(dA + n * width + d, load_part(dA + n * width + d, lanes) + dA_v[n], lanes);
    }
    store_part(dD + d, load_part(dD + d, lanes) + dD_v, lanes);
    store_part(dbias + d, load_part(dbias + d, lanes) + dbias_v, lanes);
}

static void backward_item(const Scan *s, const Grads *g, const float *state, ptrdiff_t item,
                          ptrdiff_t worker, ptrdiff_t N) {
    const ptrdiff_t size = N * s->width, tiles = (s->length + BACK_TILE - 1) / BACK_TILE;
    float *bounds = g->bounds + worker * tiles * size, *G = g->dstate + item * size;
    float *dA = g->dA + worker * size, *dD = g->dD + worker * s->width;
    float *dbias = g->dbias + worker * s->width;
    memcpy(bounds, state + item * size, size * sizeof(float));
    Scan plain = *s;
    plain.z = NULL;
    for (ptrdiff_t tile = 0; tile + 1 < tiles; tile++)
        for (ptrdiff_t d = 0; d < s->width; d += V) {
            const ptrdiff_t lanes = s->width - d, from = tile * BACK_TILE;
            vf h[MAX_STATE];
            for (ptrdiff_t n = 0; n < N; n++)
                h[n] = load_part(bounds + tile * size + n * s->width + d, lanes);
            WITH_CONSTANT(N, forward_tile, &plain, item, d, from, from + BACK_TILE, h, NULL);
            for (ptrdiff_t n = 0; n < N; n++)
                store_part(bounds + (tile + 1) * size + n * s->width + d, h[n], lanes);
        }
    for (ptrdiff_t tile = tiles - 1; tile >= 0; tile--) {
        const ptrdiff_t from = tile * BACK_TILE;
        const ptrdiff_t to = from + BACK_TILE < s->length ? from + BACK_TILE : s->length;
        vf sum_B[BACK_TILE * MAX_STATE], sum_C[BACK_TILE * MAX_STATE];
        for (ptrdiff_t i = 0; i < to - from; i++)
            for (ptrdiff_t n = 0; n < N; n++) sum_B[i * N + n] = sum_C[i * N + n] = splat(0);
        for (ptrdiff_t d = 0; d < s->width; d += V) {
            const float *h0 = bounds + tile * size;
            WITH_CONSTANT(N, backward_tile, s, g, item, d, from, to, h0, G, dA, dD, dbias, sum_B,
                          sum_C);
        }
        for (ptrdiff_t i = 0; i < to - from; i++) {
            const ptrdiff_t row = item * s->length + row_of(s, from + i);
            for (ptrdiff_t n = 0; n < N; n++) {
                g->dB[row * N + n] = sum_lanes(sum_B[i * N + n]);
                g->dC[row * N + n] = sum_lanes(sum_C[i * N + n]);
            }
        }
    }
}

/* `state` (B, N, D): the initial states. Each worker takes every threads-th sequence. */
void sepx_scan_backward(const Scan *s, const Grads *g, const float *state) {
#pragma omp parallel for num_threads((int)s->threads) if (s->threads > 1)
    for (int64_t worker = 0; worker < s->threads; worker++)
        for (int64_t item = worker; item < s->batch; item += s->threads)
            backward_item(s, g, state, item, worker, s->state);
}

/* Steps that backward keeps states between: the caller sizes `bounds` by it. */
int64_t sepx_back_tile(void) { return BACK_TILE; }
