/* The causal convolution in front of the scan, laid out as in scan.h; K taps. */

#define MAX_TAPS 8

/* y = silu(bias + depthwise convolution with the K - 1 preceding steps), preceding in the direction
   of the run; zeros (or `before`, (B, K - 1, D) in order of the run) precede the first step. */
typedef struct {
    const float *x, *weight, *bias, *before; /* (B, L, D), (K, D), (D), (B, K - 1, D) or NULL */
    int64_t x_row;
    int64_t batch, length, width, taps;
    int64_t reverse, threads;
} Conv;

INLINE vf conv_input(const Conv *c, ptrdiff_t item, ptrdiff_t step, ptrdiff_t d) {
    const ptrdiff_t lanes = c->width - d;
    if (step < 0) {
        if (!c->before || step < 1 - c->taps) return splat(0);
        const ptrdiff_t row = item * (c->taps - 1) + c->taps - 1 + step;
        return load_part(c->before + row * c->width + d, lanes);
    }
    const ptrdiff_t row = item * c->length + (c->reverse ? c->length - 1 - step : step);
    return load_part(c->x + row * c->x_row + d, lanes);
}

/* The K inputs that step `step` sees, oldest first. */
INLINE void conv_window(const Conv *c, ptrdiff_t item, ptrdiff_t step, ptrdiff_t d, vf *window,
                        ptrdiff_t K) {
    for (ptrdiff_t k = 0; k < K; k++) window[k] = conv_input(c, item, step - K + 1 + k, d);
}

INLINE void conv_slide(const Conv *c, ptrdiff_t item, ptrdiff_t step, ptrdiff_t d, vf *window,
                       ptrdiff_t K) {
    for (ptrdiff_t k = 0; k + 1 < K; k++) window[k] = window[k + 1];
    window[K - 1] = conv_input(c, item, step, d);
}

INLINE void conv_forward_tile(const Conv *c, ptrdiff_t item, ptrdiff_t d, ptrdiff_t from,
                              ptrdiff_t to, float *y, ptrdiff_t K) {
    const ptrdiff_t lanes = c->width - d;
    const vf bias = load_part(c->bias + d, lanes);
    vf weight[MAX_TAPS], window[MAX_TAPS];
    for (ptrdiff_t k = 0; k < K; k++) weight[k] = load_part(c->weight + k * c->width + d, lanes);
    conv_window(c, item, from - 1, d, window, K);
    for (ptrdiff_t step = from; step < to; step++) {
        conv_slide(c, item, step, d, window, K);
        vf x = bias;
        for (ptrdiff_t k = 0; k < K; k++) x += weight[k] * window[k];
        const ptrdiff_t row = item * c->length + (c->reverse ? c->length - 1 - step : step);
        store_part(y + row * c->width + d, x * sigmoid_v(x), lanes);
    }
}

void sepx_conv_forward(const Conv *c, float *y) {
#pragma omp parallel for num_threads((int)c->threads) if (c->threads > 1)
    for (int64_t item = 0; item < c->batch; item++)
        for (ptrdiff_t from = 0; from < c->length; from += TILE) {
            const ptrdiff_t to = from + TILE < c->length ? from + TILE : c->length;
            for (ptrdiff_t d = 0; d < c->width; d += V)
                if (c->taps == 4)
                    conv_forward_tile(c, item, d, from, to, y, 4);
                else
                    conv_forward_tile(c, item, d, from, to, y, c->taps);
        }
}

/* One vector of channels, last step first. later[j] is the gradient before the activation of step
   + j, whose tap K - 1 - j met this step's input. */
INLINE void conv_backward_vector(const Conv *c, const float *grad, int64_t grad_row,
                                 ptrdiff_t item, ptrdiff_t d, float *dx, float *dweight,
                                 float *dbias, ptrdiff_t K) {
    const ptrdiff_t lanes = c->width - d;
    const vf bias = load_part(c->bias + d, lanes);
    vf weight[MAX_TAPS], dw[MAX_TAPS], later[MAX_TAPS], window[MAX_TAPS], db = splat(0);
    for (ptrdiff_t k = 0; k < K; k++) {
        weight[k] = load_part(c->weight + k * c->width + d, lanes);
        window[k] = conv_input(c, item, c->length - K + k, d);
        dw[k] = later[k] = splat(0);
    }
    for (ptrdiff_t step = c->length - 1; step >= 0; step--) {
        vf x = bias;
        for (ptrdiff_t k = 0; k < K; k++) x += weight[k] * window[k];
        const vf gate = sigmoid_v(x);
        const ptrdiff_t row = item * c->length + (c->reverse ? c->length - 1 - step : step);
        for (ptrdiff_t j = K - 1; j > 0; j--) later[j] = later[j - 1];
        later[0] = load_part(grad + row * grad_row + d, lanes) * gate * (1.0f + x * (1.0f - gate));
        vf out = splat(0);
        for (ptrdiff_t j = 0; j < K; j++) out += weight[K - 1 - j] * later[j];
        store_part(dx + row * c->width + d, out, lanes);
        db += later[0];
        for (ptrdiff_t k = 0; k < K; k++) dw[k] += later[0] * window[k];
        for (ptrdiff_t k = K - 1; k > 0; k--) window[k] = window[k - 1];
        window[0] = conv_input(c, item, step - K, d);
    }
    store_part(dbias + d, load_part(dbias + d, lanes) + db, lanes);
    for (ptrdiff_t k = 0; k < K; k++) {
        float *at = dweight + k * c->width + d;
        store_part(at, load_part(at, lanes) + dw[k], lanes);
    }
}

/* dx (B, L, D), contiguous; per thread, zeroed by the caller: dweight (K, D), dbias (D). */
void sepx_conv_backward(const Conv *c, const float *grad, int64_t grad_row, float *dx,
                        float *dweight, float *dbias) {
#pragma omp parallel for num_threads((int)c->threads) if (c->threads > 1)
    for (int64_t worker = 0; worker < c->threads; worker++) {
        float *dw = dweight + worker * c->taps * c->width, *db = dbias + worker * c->width;
        for (int64_t item = worker; item < c->batch; item += c->threads)
            for (ptrdiff_t d = 0; d < c->width; d += V)
                if (c->taps == 4)
                    conv_backward_vector(c, grad, grad_row, item, d, dx, dw, db, 4);
                else
                    conv_backward_vector(c, grad, grad_row, item, d, dx, dw, db, c->taps);
    }
}
