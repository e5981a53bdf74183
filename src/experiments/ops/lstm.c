/* All steps of an LSTM in one operation, forwards and back through time.
 *
 *     i, f, g, o = x_t W + h_{t-1} R + b,   c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)
 *
 * (Hochreiter & Schmidhuber 1997; the forget gate: Gers et al. 2000). The sequences of a batch are
 * independent, so a thread takes some of them through all steps and waits for no other. Kernels are
 * packed once for all steps, and gates are computed while the products are in the cache.
 */
#include "units.h"

/* About how many nanoseconds of a thread a product of two numbers, and the gates of a unit, take. */
static const double MULTIPLYING = 0.008, GATES = 4;

enum { ALL_PACKED, OWN_ROWS, OWN_STATES }; /* working memory */
enum { I, F, G, O, GATE_COUNT };
enum { MOST_ROWS = 64 }; /* most sequences that a thread takes at a time */

typedef struct {
  long trials, steps, batch, inputs, hidden;
  int reverse;
  long rows, groups;      /* sequences that a thread takes at a time, how often per trial */
  long deep_x, deep_h;    /* inputs and hidden, rounded up to whole depths */
  long blocks;            /* of 16 hidden units */
  long wide, packed_size; /* numbers of a row of factors, and of a trial's packed kernels */
  const float *x, *kernel, *recurrent, *bias, *h0, *c0;
  long x_stride, kernel_stride, recurrent_stride, bias_stride, h0_stride, c0_stride;
  const uint8_t* mask; /* where 0, the state stays as it is */
  long mask_stride;
  float *outputs, *gates, *cells; /* of the forward pass; no gates if there is no backward pass */
  const float *saved, *c, *d_outputs, *after_h, *after_c; /* of the backward pass */
  long saved_stride, c_stride, d_outputs_stride, after_h_stride, after_c_stride;
  float *dz, *dh0, *dc0, *db;
  bf16* packed;
} Sequences;

static long round_up(long count, long to) { return parts(count, to) * to; }

/* Length of a row of so many numbers, such that rows do not all begin in the same cache set. */
static long spread(long count) { return (count / DEPTH | 1) * DEPTH; }

/* ---- Rows of a thread ------------------------------------------------------------------------- */

typedef struct {
  long trial, from, count; /* of the sequences of a trial */
} Part;

static Part part(const Sequences* p, long unit) {
  long from = unit % p->groups * p->rows;
  return (Part){unit / p->groups, from, least(p->rows, p->batch - from)};
}

static long time_of(const Sequences* p, long step) { return p->reverse ? p->steps - 1 - step : step; }

/* Index of a part's first row at a time step in an array [steps, batch, width] that begins at
 * `start`. */
static long at(const Sequences* p, long start, Part part, long time, long width) {
  return start + (time * p->batch + part.from) * width;
}

static int moves_on(const Sequences* p, Part part, long time, long row) {
  return p->mask[at(p, part.trial * p->mask_stride, part, time, 1) + row];
}

static void store_split(__m512 x, bf16* high, bf16* low) {
  __m256i h, l;
  split(x, &h, &l);
  _mm256_storeu_si256((void*)high, h), _mm256_storeu_si256((void*)low, l);
}

/* ---- Forwards --------------------------------------------------------------------------------- */

/* Packs the gates of 16 hidden units side by side: [blocks][i f, g o][depths][2 tiles][high, low]. */
static void pack_gates(const void* context, long unit) {
  const Sequences* p = context;
  long trial = unit / p->blocks, block = unit % p->blocks, width = GATE_COUNT * p->hidden;
  const float* kernel = p->kernel + trial * p->kernel_stride + block * TILE;
  const float* recurrent = p->recurrent + trial * p->recurrent_stride + block * TILE;
  __mmask16 live = first(p->hidden - block * TILE);
  bf16* to = p->packed + trial * p->packed_size + block * (p->packed_size / p->blocks);
  for (int pair = 0; pair < GATE_COUNT; pair += 2)
    for (long k = 0; k < p->deep_x + p->deep_h; k += DEPTH)
      for (int gate = pair; gate < pair + 2; gate++, to += 2 * BLOCK) {
        long row = k < p->deep_x ? k : k - p->deep_x, rows = k < p->deep_x ? p->inputs : p->hidden;
        const float* from = (k < p->deep_x ? kernel : recurrent) + row * width + gate * p->hidden;
        pack_tile(from, width, rows - row, live, to);
      }
}

/* Computes gates and states of 16 units of a row from its pre-activations [i f g o]. */
static void step_forwards(const Sequences* p, const float* z, const float* bias, long unit,
                          const float* h, const float* c, int mask, float* gates, float* output,
                          float* cell, bf16* high, bf16* low) {
  __mmask16 live = first(p->hidden - unit);
  __m512 gate[GATE_COUNT];
  for (int k = 0; k < GATE_COUNT; k++) {
    gate[k] = _mm512_add_ps(_mm512_loadu_ps(z + k * TILE),
                            _mm512_maskz_loadu_ps(live, bias + k * p->hidden + unit));
    gate[k] = k == G ? hyperbolic_tangent(gate[k]) : sigmoid(gate[k]);
    if (gates) _mm512_mask_storeu_ps(gates + k * p->hidden + unit, live, gate[k]);
  }
  __m512 before = _mm512_maskz_loadu_ps(live, c + unit);
  __m512 state = _mm512_fmadd_ps(gate[F], before, _mm512_mul_ps(gate[I], gate[G]));
  __m512 seen = _mm512_mul_ps(gate[O], hyperbolic_tangent(state));
  if (!mask) state = before, seen = _mm512_maskz_loadu_ps(live, h + unit);
  _mm512_mask_storeu_ps(cell + unit, live, state);
  _mm512_mask_storeu_ps(output + unit, live, seen);
  store_split(seen, high, low);
}

static void forwards(const void* context, long unit) {
  const Sequences* p = context;
  Part own = part(p, unit);
  long h = p->hidden, deep = p->deep_x + p->deep_h, plane = p->rows * p->wide;
  float out[2 * TILE * GATE_COUNT * TILE] __attribute__((aligned(64)));
  bf16* rows = workspace(OWN_ROWS, 4 * plane * sizeof(bf16)); /* of this step and the next */
  memset(rows, 0, 4 * plane * sizeof(bf16));
  const bf16* packed = p->packed + own.trial * p->packed_size;
  const float* bias = p->bias + own.trial * p->bias_stride;
  const float* before_h = p->h0 + at(p, own.trial * p->h0_stride, own, 0, h);
  const float* before_c = p->c0 + at(p, own.trial * p->c0_stride, own, 0, h);
  for (long r = 0; r < own.count; r++)
    split_row(before_h + r * h, rows + r * p->wide + p->deep_x, rows + plane + r * p->wide + p->deep_x, h);
  tiles_on();
  for (long step = 0; step < p->steps; step++) {
    long time = time_of(p, step), states = p->steps * p->batch * h;
    bf16 *high = rows + step % 2 * 2 * plane, *next = rows + (step + 1) % 2 * 2 * plane;
    const float* x = p->x + at(p, own.trial * p->x_stride, own, time, p->inputs);
    float* output = p->outputs + at(p, own.trial * states, own, time, h);
    float* cell = p->cells + at(p, own.trial * states, own, time, h);
    float* gates = p->gates ? p->gates + at(p, own.trial * GATE_COUNT * states, own, time, GATE_COUNT * h)
                            : NULL;
    for (long r = 0; r < own.count; r++)
      split_row(x + r * p->inputs, high + r * p->wide, high + plane + r * p->wide, p->inputs);
    for (long block = 0; block < p->blocks; block++)
      for (long top = 0; top < own.count; top += 2 * TILE) {
        Rows a = {p->wide, 1, 0, deep};
        const bf16 *b = packed + block * 8 * BLOCK * (deep / DEPTH), *from = high + top * p->wide;
        two_by_two(a, from, from + plane, b, out, GATE_COUNT * TILE);
        two_by_two(a, from, from + plane, b + 4 * BLOCK * (deep / DEPTH), out + 2 * TILE,
                   GATE_COUNT * TILE);
        for (long r = top; r < least(top + 2 * TILE, own.count); r++) {
          bf16* to = next + r * p->wide + p->deep_x + block * TILE;
          step_forwards(p, out + (r - top) * GATE_COUNT * TILE, bias, block * TILE, before_h + r * h,
                        before_c + r * h, moves_on(p, own, time, r),
                        gates ? gates + r * GATE_COUNT * h : NULL, output + r * h, cell + r * h, to,
                        to + plane);
        }
      }
    before_h = output, before_c = cell;
  }
  _tile_release();
}

/* ---- Back through time ------------------------------------------------------------------------ */

/* Packs the transposed recurrent kernel: [32 hidden units][depths of each gate][2 tiles][high, low]. */
static void pack_transposed(const void* context, long unit) {
  const Sequences* p = context;
  long panels = parts(p->hidden, 2 * TILE), trial = unit / panels, panel = unit % panels;
  const float* kernel = p->recurrent + trial * p->recurrent_stride;
  bf16* to = p->packed + trial * p->packed_size + panel * (p->packed_size / panels);
  for (long gate = 0; gate < GATE_COUNT; gate++)
    for (long k = 0; k < p->deep_h; k += DEPTH)
      for (long n = panel * 2 * TILE; n < (panel + 1) * 2 * TILE; n += TILE, to += 2 * BLOCK) {
        float columns[TILE][DEPTH] = {{0}};
        for (long j = 0; j < least(TILE, p->hidden - n); j++)
          memcpy(columns[j], kernel + ((n + j) * GATE_COUNT + gate) * p->hidden + k,
                 least(DEPTH, p->hidden - k) * sizeof(float));
        pack_columns(columns, to);
      }
}

/* Computes the gradients of 16 units of a row: those of the pre-activations, which are also added to
 * `sums`, and that of the cell before. `dh` becomes the gradient of the output, which passes to the
 * output before where the state stays as it is. */
static void step_back(const Sequences* p, long unit, const float* gates, const float* cell,
                      const float* before, const float* d_output, int mask, float* dh, float* dc,
                      float* dz, __m512 sums[GATE_COUNT], bf16* high, bf16* low) {
  __mmask16 live = first(p->hidden - unit);
  __m512 gate[GATE_COUNT], d[GATE_COUNT], one = _mm512_set1_ps(1);
  for (int k = 0; k < GATE_COUNT; k++)
    gate[k] = _mm512_maskz_loadu_ps(live, gates + k * p->hidden + unit);
  __m512 h = _mm512_add_ps(_mm512_load_ps(dh + unit), _mm512_maskz_loadu_ps(live, d_output + unit));
  __m512 seen = hyperbolic_tangent(_mm512_maskz_loadu_ps(live, cell + unit));
  __m512 c = _mm512_fmadd_ps(_mm512_mul_ps(h, gate[O]), _mm512_fnmadd_ps(seen, seen, one),
                             _mm512_load_ps(dc + unit));
  d[I] = _mm512_mul_ps(_mm512_mul_ps(c, gate[G]), gate[I]);
  d[F] = _mm512_mul_ps(_mm512_mul_ps(c, _mm512_maskz_loadu_ps(live, before + unit)), gate[F]);
  d[G] = _mm512_mul_ps(_mm512_mul_ps(c, gate[I]), _mm512_fnmadd_ps(gate[G], gate[G], one));
  d[O] = _mm512_mul_ps(_mm512_mul_ps(h, seen), gate[O]);
  for (int k = 0; k < GATE_COUNT; k++) {
    if (k != G) d[k] = _mm512_fnmadd_ps(d[k], gate[k], d[k]);
    if (!mask) d[k] = _mm512_setzero_ps();
    sums[k] = _mm512_add_ps(sums[k], d[k]);
    _mm512_mask_storeu_ps(dz + k * p->hidden + unit, live, d[k]);
    store_split(d[k], high + k * p->deep_h + unit, low + k * p->deep_h + unit);
  }
  _mm512_store_ps(dh + unit, h);
  if (mask) _mm512_store_ps(dc + unit, _mm512_mul_ps(c, gate[F]));
}

static void backwards(const void* context, long unit) {
  const Sequences* p = context;
  Part own = part(p, unit);
  long h = p->hidden, plane = p->rows * p->wide, line = p->deep_h, size = p->rows * line;
  bf16 *high = workspace(OWN_ROWS, 2 * plane * sizeof(bf16)), *low = high + plane;
  float *dh = workspace(OWN_STATES, 3 * size * sizeof(float)), *product = dh + size, *dc = product + size;
  memset(high, 0, 2 * plane * sizeof(bf16)), memset(dh, 0, 3 * size * sizeof(float));
  const bf16* packed = p->packed + own.trial * p->packed_size;
  for (long r = 0; r < own.count; r++) {
    memcpy(dh + r * line, p->after_h + at(p, own.trial * p->after_h_stride, own, 0, h) + r * h, h * sizeof *dh);
    memcpy(dc + r * line, p->after_c + at(p, own.trial * p->after_c_stride, own, 0, h) + r * h, h * sizeof *dc);
  }
  tiles_on();
  for (long step = p->steps - 1; step >= 0; step--) {
    long time = time_of(p, step), all = p->steps * p->batch * GATE_COUNT * h;
    const float* gates = p->saved + at(p, own.trial * p->saved_stride, own, time, GATE_COUNT * h);
    const float* cell = p->c + at(p, own.trial * p->c_stride, own, time, h);
    const float* d_output = p->d_outputs + at(p, own.trial * p->d_outputs_stride, own, time, h);
    const float* before = step ? p->c + at(p, own.trial * p->c_stride, own, time_of(p, step - 1), h)
                               : p->c0 + at(p, own.trial * p->c0_stride, own, 0, h);
    float* dz = p->dz + at(p, own.trial * all, own, time, GATE_COUNT * h);
    for (long top = 0; top < own.count; top += 2 * TILE) {
      long group = own.trial * parts(p->batch, 2 * TILE) + (own.from + top) / (2 * TILE);
      float* db = p->db + group * GATE_COUNT * h;
      for (long i = 0; i < h; i += TILE) {
        __m512 sums[GATE_COUNT];
        for (int k = 0; k < GATE_COUNT; k++)
          sums[k] = step == p->steps - 1 ? _mm512_setzero_ps()
                                         : _mm512_maskz_loadu_ps(first(h - i), db + k * h + i);
        for (long r = top; r < least(top + 2 * TILE, own.count); r++)
          step_back(p, i, gates + r * GATE_COUNT * h, cell + r * h, before + r * h, d_output + r * h,
                    moves_on(p, own, time, r), dh + r * line, dc + r * line, dz + r * GATE_COUNT * h, sums,
                    high + r * p->wide, low + r * p->wide);
        for (int k = 0; k < GATE_COUNT; k++)
          _mm512_mask_storeu_ps(db + k * h + i, first(h - i), sums[k]);
      }
    }
    for (long n = 0; n < line; n += 2 * TILE)
      for (long top = 0; top < own.count; top += 2 * TILE)
        two_by_two((Rows){p->wide, 1, 0, GATE_COUNT * line}, high + top * p->wide, low + top * p->wide,
                   packed + n * GATE_COUNT * line * 2, product + top * line + n, line);
    for (long r = 0; r < own.count; r++)
      if (!moves_on(p, own, time, r)) memcpy(product + r * line, dh + r * line, line * sizeof *dh);
    float* swapped = dh;
    dh = product, product = swapped;
  }
  _tile_release();
  for (long r = 0; r < own.count; r++) {
    long to = ((own.trial * p->batch) + own.from + r) * h;
    memcpy(p->dh0 + to, dh + r * line, h * sizeof *dh);
    memcpy(p->dc0 + to, dc + r * line, h * sizeof *dc);
  }
}

/* ---- The operations, as XLA calls them ------------------------------------------------------ */

static const void* take_array(const XLA_FFI_CallFrame* frame, long index, long* trial) {
  const XLA_FFI_Buffer* array = frame->args.args[index];
  *trial = trial_stride(array);
  return array->data;
}

/* Sizes of the work; `cells` is the shape [trials, steps, batch, hidden]. */
static Sequences sequences(const XLA_FFI_CallFrame* frame, const int64_t* cells, long inputs,
                           long trials) {
  const XLA_FFI_Array* options = frame->attrs.attrs[0];
  Sequences p = {.trials = trials, .steps = cells[1], .batch = cells[2], .hidden = cells[3], .inputs = inputs,
                 .reverse = ((const int64_t*)options->data)[0]};
  long each = parts(p.batch * trials, threads_of(frame));
  p.rows = least(MOST_ROWS, round_up(least(each, p.batch), 2 * TILE));
  p.groups = parts(p.batch, p.rows), p.blocks = parts(p.hidden, TILE);
  p.deep_x = round_up(inputs, DEPTH), p.deep_h = round_up(p.hidden, DEPTH);
  return p;
}

static double work(const Sequences* p) {
  double cells = (double)p->trials * p->steps * p->batch * p->hidden;
  return cells * (GATES + MULTIPLYING * GATE_COUNT * (p->deep_x + p->deep_h));
}

/* Maps (x [trials, steps, batch, inputs], kernel [trials, inputs, 4 hidden], recurrent [trials, hidden,
 * 4 hidden], bias [trials, 4 hidden], h0 and c0 [trials, batch, hidden], mask [trials, steps, batch])
 * to outputs and cells [trials, steps, batch, hidden], gates [trials, steps, batch, 4 hidden or 0] */
XLA_FFI_Error* lstm_forward(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  const XLA_FFI_Buffer *x = frame->args.args[0], *outputs = frame->rets.rets[0];
  const XLA_FFI_Buffer *cells = frame->rets.rets[1], *gates = frame->rets.rets[2];
  Sequences p = sequences(frame, cells->dims, x->dims[3], cells->dims[0]);
  p.x = take_array(frame, 0, &p.x_stride), p.kernel = take_array(frame, 1, &p.kernel_stride);
  p.recurrent = take_array(frame, 2, &p.recurrent_stride), p.bias = take_array(frame, 3, &p.bias_stride);
  p.h0 = take_array(frame, 4, &p.h0_stride), p.c0 = take_array(frame, 5, &p.c0_stride);
  p.mask = take_array(frame, 6, &p.mask_stride);
  p.outputs = outputs->data, p.cells = cells->data, p.gates = gates->dims[3] ? gates->data : NULL;
  p.wide = spread(p.deep_x + p.deep_h), p.packed_size = p.blocks * 8 * BLOCK * ((p.deep_x + p.deep_h) / DEPTH);
  p.packed = workspace(ALL_PACKED, p.trials * p.packed_size * sizeof(bf16));
  share(frame, pack_gates, &p, p.trials * p.blocks, p.trials * p.packed_size * 0.5);
  share(frame, forwards, &p, p.trials * p.groups, work(&p));
  return NULL;
}

/* Maps (gates [trials, steps, batch, 4 hidden], cells [trials, steps, batch, hidden], c0 [trials, batch,
 * hidden], recurrent [trials, hidden, 4 hidden], mask [trials, steps, batch] and the gradients of
 * outputs [trials, steps, batch, hidden], of the last of them and of the last cells [trials, batch,
 * hidden]) to the gradients of pre-activations [trials, steps, batch, 4 hidden], h0 and c0 [trials,
 * batch, hidden], and of the bias [trials, batch / 32, 4 hidden], which are yet to be summed */
XLA_FFI_Error* lstm_backward(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  const XLA_FFI_Buffer *cells = frame->args.args[1], *dz = frame->rets.rets[0];
  const XLA_FFI_Buffer *dh0 = frame->rets.rets[1], *dc0 = frame->rets.rets[2], *db = frame->rets.rets[3];
  Sequences p = sequences(frame, cells->dims, 0, dz->dims[0]);
  p.saved = take_array(frame, 0, &p.saved_stride), p.c = take_array(frame, 1, &p.c_stride);
  p.c0 = take_array(frame, 2, &p.c0_stride), p.recurrent = take_array(frame, 3, &p.recurrent_stride);
  p.mask = take_array(frame, 4, &p.mask_stride), p.d_outputs = take_array(frame, 5, &p.d_outputs_stride);
  p.after_h = take_array(frame, 6, &p.after_h_stride), p.after_c = take_array(frame, 7, &p.after_c_stride);
  p.dz = dz->data, p.dh0 = dh0->data, p.dc0 = dc0->data, p.db = db->data;
  long panels = p.deep_h / (2 * TILE);
  p.wide = spread(GATE_COUNT * p.deep_h), p.packed_size = 2 * GATE_COUNT * p.deep_h * p.deep_h;
  p.packed = workspace(ALL_PACKED, p.trials * p.packed_size * sizeof(bf16));
  share(frame, pack_transposed, &p, p.trials * panels, p.trials * p.packed_size * 0.5);
  share(frame, backwards, &p, p.trials * p.groups, work(&p));
  return NULL;
}
