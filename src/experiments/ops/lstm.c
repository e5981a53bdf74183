/* All steps of an LSTM in one operation, forwards and back through time.
 *
 *     i, f, g, o = x_t W + h_{t-1} R + b,   c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)
 *
 * (Hochreiter & Schmidhuber 1997; the forget gate: Gers et al. 2000). Sequences of a batch have
 * nothing to do with each other, so a thread takes some of them through all steps: between two steps
 * nobody waits. Kernels are packed once for all steps, and gates computed where products leave them.
 */
#include "units.h"

/* Nanoseconds that a product of two numbers, and the gates of a unit, take a thread, about. */
static const double MULTIPLYING = 0.008, GATES = 4;

enum { ALL_PACKED, OWN_ROWS, OWN_STATES }; /* working memory */
enum { I, F, G, O, GATE_COUNT };
enum { MOST_ROWS = 64 }; /* sequences that a thread takes at a time, each of which reads the kernels */

typedef struct {
  long lanes, steps, batch, inputs, hidden;
  int reverse;
  long rows, groups;      /* sequences that a thread takes at a time, how often it is done a lane */
  long deep_x, deep_h;    /* inputs and hidden in whole depths */
  long blocks;            /* of 16 hidden units */
  long wide, packed_size; /* halves of a row of factors, and of a lane's packed kernels */
  const float *x, *kernel, *recurrent, *bias, *h0, *c0;
  long x_lane, kernel_lane, recurrent_lane, bias_lane, h0_lane, c0_lane;
  const uint8_t* keep; /* where 0 the state stays as it is */
  long keep_lane;
  float *outputs, *gates, *cells; /* of the way forwards; no gates where there is no way back */
  const float *saved, *c, *d_outputs, *after_h, *after_c; /* of the way back */
  long saved_lane, c_lane, d_outputs_lane, after_h_lane, after_c_lane;
  float *dz, *dh0, *dc0, *db;
  half* packed;
} Sequences;

static long round_up(long count, long to) { return parts(count, to) * to; }

/* Halves of a row of so many, such that rows do not begin in one set of the cache all. */
static long spread(long count) { return (count / DEPTH | 1) * DEPTH; }

/* ---- Functions of 16 numbers ----------------------------------------------------------------- */

static inline __m512 inverse(__m512 x) {
  __m512 y = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(2)));
}

/* e^x = 2^n (1 + q); the polynomial is that of expf in Moshier's Cephes library (1992). */
static inline __m512 exponential(__m512 x, __m512* n) {
  *n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(*n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(*n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  return _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r);
}

static inline __m512 sigmoid(__m512 x) {
  __m512 one = _mm512_set1_ps(1), n;
  x = _mm512_sub_ps(_mm512_setzero_ps(), x); /* of two limits and a NaN comes what stands second */
  x = _mm512_max_ps(_mm512_set1_ps(-80), _mm512_min_ps(_mm512_set1_ps(80), x));
  __m512 q = exponential(x, &n);
  return inverse(_mm512_add_ps(one, _mm512_scalef_ps(_mm512_add_ps(one, q), n)));
}

/* (e^2x - 1) / (e^2x + 1), exact near zero as well */
static inline __m512 hyperbolic_tangent(__m512 x) {
  __m512 one = _mm512_set1_ps(1), sign = _mm512_set1_ps(-0.0f), n;
  __m512 twice = _mm512_andnot_ps(sign, _mm512_add_ps(x, x));
  __m512 q = exponential(_mm512_min_ps(_mm512_set1_ps(20), twice), &n);
  __m512 e = _mm512_add_ps(_mm512_scalef_ps(q, n), _mm512_sub_ps(_mm512_scalef_ps(one, n), one));
  __m512 y = _mm512_mul_ps(e, inverse(_mm512_add_ps(e, _mm512_set1_ps(2))));
  return _mm512_or_ps(y, _mm512_and_ps(sign, x));
}

/* ---- Rows of a thread ------------------------------------------------------------------------- */

typedef struct {
  long lane, from, count; /* sequences of a lane */
} Part;

static Part part(const Sequences* p, long unit) {
  long from = unit % p->groups * p->rows;
  return (Part){unit / p->groups, from, least(p->rows, p->batch - from)};
}

static long time_of(const Sequences* p, long step) { return p->reverse ? p->steps - 1 - step : step; }

/* The first of a part's rows at a time, in an array [lanes, steps, batch, width]. */
static long at(const Sequences* p, long lane, Part part, long time, long width) {
  return lane + (time * p->batch + part.from) * width;
}

static int moves_on(const Sequences* p, Part part, long time, long row) {
  return p->keep[at(p, part.lane * p->keep_lane, part, time, 1) + row];
}

static void store_halves(__m512 x, half* high, half* low) {
  __m256i h, l;
  split(x, &h, &l);
  _mm256_storeu_si256((void*)high, h), _mm256_storeu_si256((void*)low, l);
}

/* ---- Forwards --------------------------------------------------------------------------------- */

/* For 16 hidden units their gates side by side: [blocks][i f, g o][depths][2 tiles][high, low]. */
static void pack_gates(const void* what, long unit) {
  const Sequences* p = what;
  long lane = unit / p->blocks, block = unit % p->blocks, width = GATE_COUNT * p->hidden;
  const float* kernel = p->kernel + lane * p->kernel_lane + block * TILE;
  const float* recurrent = p->recurrent + lane * p->recurrent_lane + block * TILE;
  __mmask16 live = first(p->hidden - block * TILE);
  half* to = p->packed + lane * p->packed_size + block * (p->packed_size / p->blocks);
  for (int pair = 0; pair < GATE_COUNT; pair += 2)
    for (long k = 0; k < p->deep_x + p->deep_h; k += DEPTH)
      for (int gate = pair; gate < pair + 2; gate++, to += 2 * BLOCK) {
        long row = k < p->deep_x ? k : k - p->deep_x, rows = k < p->deep_x ? p->inputs : p->hidden;
        const float* from = (k < p->deep_x ? kernel : recurrent) + row * width + gate * p->hidden;
        pack_tile(from, width, rows - row, live, to);
      }
}

/* The gates and states of 16 units of a row from its pre-activations [i f g o]. */
static void step_forwards(const Sequences* p, const float* z, const float* bias, long unit,
                          const float* h, const float* c, int keep, float* gates, float* output,
                          float* cell, half* high, half* low) {
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
  if (!keep) state = before, seen = _mm512_maskz_loadu_ps(live, h + unit);
  _mm512_mask_storeu_ps(cell + unit, live, state);
  _mm512_mask_storeu_ps(output + unit, live, seen);
  store_halves(seen, high, low);
}

static void forwards(const void* what, long unit) {
  const Sequences* p = what;
  Part own = part(p, unit);
  long h = p->hidden, deep = p->deep_x + p->deep_h, plane = p->rows * p->wide;
  float out[2 * TILE * GATE_COUNT * TILE] __attribute__((aligned(64)));
  half* rows = room(OWN_ROWS, 4 * plane * sizeof(half)); /* of this step and of the next */
  memset(rows, 0, 4 * plane * sizeof(half));
  const half* packed = p->packed + own.lane * p->packed_size;
  const float* bias = p->bias + own.lane * p->bias_lane;
  const float* before_h = p->h0 + at(p, own.lane * p->h0_lane, own, 0, h);
  const float* before_c = p->c0 + at(p, own.lane * p->c0_lane, own, 0, h);
  for (long r = 0; r < own.count; r++)
    split_row(before_h + r * h, rows + r * p->wide + p->deep_x, rows + plane + r * p->wide + p->deep_x, h);
  tiles_on();
  for (long step = 0; step < p->steps; step++) {
    long time = time_of(p, step), states = p->steps * p->batch * h;
    half *high = rows + step % 2 * 2 * plane, *next = rows + (step + 1) % 2 * 2 * plane;
    const float* x = p->x + at(p, own.lane * p->x_lane, own, time, p->inputs);
    float* output = p->outputs + at(p, own.lane * states, own, time, h);
    float* cell = p->cells + at(p, own.lane * states, own, time, h);
    float* gates = p->gates ? p->gates + at(p, own.lane * GATE_COUNT * states, own, time, GATE_COUNT * h)
                            : NULL;
    for (long r = 0; r < own.count; r++)
      split_row(x + r * p->inputs, high + r * p->wide, high + plane + r * p->wide, p->inputs);
    for (long block = 0; block < p->blocks; block++)
      for (long top = 0; top < own.count; top += 2 * TILE) {
        Rows a = {p->wide, 1, 0, deep};
        const half *b = packed + block * 8 * BLOCK * (deep / DEPTH), *from = high + top * p->wide;
        two_by_two(a, from, from + plane, b, out, GATE_COUNT * TILE);
        two_by_two(a, from, from + plane, b + 4 * BLOCK * (deep / DEPTH), out + 2 * TILE,
                   GATE_COUNT * TILE);
        for (long r = top; r < least(top + 2 * TILE, own.count); r++) {
          half* to = next + r * p->wide + p->deep_x + block * TILE;
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

/* The recurrent kernel turned round: [32 hidden units][depths of each gate][2 tiles][high, low]. */
static void pack_turned(const void* what, long unit) {
  const Sequences* p = what;
  long panels = parts(p->hidden, 2 * TILE), lane = unit / panels, panel = unit % panels;
  const float* kernel = p->recurrent + lane * p->recurrent_lane;
  half* to = p->packed + lane * p->packed_size + panel * (p->packed_size / panels);
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

/* The gradients of 16 units of a row: of their pre-activations, which are added to `sums`, and of
 * the state before. `dh` gets that of the output, which is that of the output before where nothing
 * happens. */
static void step_back(const Sequences* p, long unit, const float* gates, const float* cell,
                      const float* before, const float* d_output, int keep, float* dh, float* dc,
                      float* dz, __m512 sums[GATE_COUNT], half* high, half* low) {
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
    if (!keep) d[k] = _mm512_setzero_ps();
    sums[k] = _mm512_add_ps(sums[k], d[k]);
    _mm512_mask_storeu_ps(dz + k * p->hidden + unit, live, d[k]);
    store_halves(d[k], high + k * p->deep_h + unit, low + k * p->deep_h + unit);
  }
  _mm512_store_ps(dh + unit, h);
  if (keep) _mm512_store_ps(dc + unit, _mm512_mul_ps(c, gate[F]));
}

static void backwards(const void* what, long unit) {
  const Sequences* p = what;
  Part own = part(p, unit);
  long h = p->hidden, plane = p->rows * p->wide, line = p->deep_h, size = p->rows * line;
  half *high = room(OWN_ROWS, 2 * plane * sizeof(half)), *low = high + plane;
  float *dh = room(OWN_STATES, 3 * size * sizeof(float)), *product = dh + size, *dc = product + size;
  memset(high, 0, 2 * plane * sizeof(half)), memset(dh, 0, 3 * size * sizeof(float));
  const half* packed = p->packed + own.lane * p->packed_size;
  for (long r = 0; r < own.count; r++) {
    memcpy(dh + r * line, p->after_h + at(p, own.lane * p->after_h_lane, own, 0, h) + r * h, h * sizeof *dh);
    memcpy(dc + r * line, p->after_c + at(p, own.lane * p->after_c_lane, own, 0, h) + r * h, h * sizeof *dc);
  }
  tiles_on();
  for (long step = p->steps - 1; step >= 0; step--) {
    long time = time_of(p, step), all = p->steps * p->batch * GATE_COUNT * h;
    const float* gates = p->saved + at(p, own.lane * p->saved_lane, own, time, GATE_COUNT * h);
    const float* cell = p->c + at(p, own.lane * p->c_lane, own, time, h);
    const float* d_output = p->d_outputs + at(p, own.lane * p->d_outputs_lane, own, time, h);
    const float* before = step ? p->c + at(p, own.lane * p->c_lane, own, time_of(p, step - 1), h)
                               : p->c0 + at(p, own.lane * p->c0_lane, own, 0, h);
    float* dz = p->dz + at(p, own.lane * all, own, time, GATE_COUNT * h);
    for (long top = 0; top < own.count; top += 2 * TILE) {
      long group = own.lane * parts(p->batch, 2 * TILE) + (own.from + top) / (2 * TILE);
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
    long to = ((own.lane * p->batch) + own.from + r) * h;
    memcpy(p->dh0 + to, dh + r * line, h * sizeof *dh);
    memcpy(p->dc0 + to, dc + r * line, h * sizeof *dc);
  }
}

/* ---- What XLA calls ------------------------------------------------------------------------- */

static const void* take_array(const XLA_FFI_CallFrame* frame, long index, long* lane) {
  const XLA_FFI_Buffer* array = frame->args.args[index];
  *lane = lane_size(array);
  return array->data;
}

/* `cells` are an array [lanes, steps, batch, hidden]. */
static Sequences sequences(const XLA_FFI_CallFrame* frame, const int64_t* cells, long inputs,
                           long lanes) {
  const XLA_FFI_Array* options = frame->attrs.attrs[0];
  Sequences p = {.lanes = lanes, .steps = cells[1], .batch = cells[2], .hidden = cells[3], .inputs = inputs,
                 .reverse = ((const int64_t*)options->data)[0]};
  long each = parts(p.batch * lanes, threads_of(frame));
  p.rows = least(MOST_ROWS, round_up(least(each, p.batch), 2 * TILE));
  p.groups = parts(p.batch, p.rows), p.blocks = parts(p.hidden, TILE);
  p.deep_x = round_up(inputs, DEPTH), p.deep_h = round_up(p.hidden, DEPTH);
  return p;
}

static double work(const Sequences* p) {
  double cells = (double)p->lanes * p->steps * p->batch * p->hidden;
  return cells * (GATES + MULTIPLYING * GATE_COUNT * (p->deep_x + p->deep_h));
}

/* (x [lanes, steps, batch, inputs], kernel [lanes, inputs, 4 hidden], recurrent [lanes, hidden,
 * 4 hidden], bias [lanes, 4 hidden], h0 and c0 [lanes, batch, hidden], keep [lanes, steps, batch])
 * to outputs and cells [lanes, steps, batch, hidden], gates [lanes, steps, batch, 4 hidden or 0] */
XLA_FFI_Error* lstm_forward(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  const XLA_FFI_Buffer *x = frame->args.args[0], *outputs = frame->rets.rets[0];
  const XLA_FFI_Buffer *cells = frame->rets.rets[1], *gates = frame->rets.rets[2];
  Sequences p = sequences(frame, cells->dims, x->dims[3], cells->dims[0]);
  p.x = take_array(frame, 0, &p.x_lane), p.kernel = take_array(frame, 1, &p.kernel_lane);
  p.recurrent = take_array(frame, 2, &p.recurrent_lane), p.bias = take_array(frame, 3, &p.bias_lane);
  p.h0 = take_array(frame, 4, &p.h0_lane), p.c0 = take_array(frame, 5, &p.c0_lane);
  p.keep = take_array(frame, 6, &p.keep_lane);
  p.outputs = outputs->data, p.cells = cells->data, p.gates = gates->dims[3] ? gates->data : NULL;
  p.wide = spread(p.deep_x + p.deep_h), p.packed_size = p.blocks * 8 * BLOCK * ((p.deep_x + p.deep_h) / DEPTH);
  p.packed = room(ALL_PACKED, p.lanes * p.packed_size * sizeof(half));
  share(frame, pack_gates, &p, p.lanes * p.blocks, p.lanes * p.packed_size * 0.5);
  share(frame, forwards, &p, p.lanes * p.groups, work(&p));
  return NULL;
}

/* (gates [lanes, steps, batch, 4 hidden], cells [lanes, steps, batch, hidden], c0 [lanes, batch,
 * hidden], recurrent [lanes, hidden, 4 hidden], keep [lanes, steps, batch] and the gradients of
 * outputs [lanes, steps, batch, hidden], of the last of them and of the last cells [lanes, batch,
 * hidden]) to the gradients of pre-activations [lanes, steps, batch, 4 hidden], h0 and c0 [lanes,
 * batch, hidden], and of the bias [lanes, batch / 32, 4 hidden], yet to be added up */
XLA_FFI_Error* lstm_backward(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  const XLA_FFI_Buffer *cells = frame->args.args[1], *dz = frame->rets.rets[0];
  const XLA_FFI_Buffer *dh0 = frame->rets.rets[1], *dc0 = frame->rets.rets[2], *db = frame->rets.rets[3];
  Sequences p = sequences(frame, cells->dims, 0, dz->dims[0]);
  p.saved = take_array(frame, 0, &p.saved_lane), p.c = take_array(frame, 1, &p.c_lane);
  p.c0 = take_array(frame, 2, &p.c0_lane), p.recurrent = take_array(frame, 3, &p.recurrent_lane);
  p.keep = take_array(frame, 4, &p.keep_lane), p.d_outputs = take_array(frame, 5, &p.d_outputs_lane);
  p.after_h = take_array(frame, 6, &p.after_h_lane), p.after_c = take_array(frame, 7, &p.after_c_lane);
  p.dz = dz->data, p.dh0 = dh0->data, p.dc0 = dc0->data, p.db = db->data;
  long panels = p.deep_h / (2 * TILE);
  p.wide = spread(GATE_COUNT * p.deep_h), p.packed_size = 2 * GATE_COUNT * p.deep_h * p.deep_h;
  p.packed = room(ALL_PACKED, p.lanes * p.packed_size * sizeof(half));
  share(frame, pack_turned, &p, p.lanes * panels, p.lanes * p.packed_size * 0.5);
  share(frame, backwards, &p, p.lanes * p.groups, work(&p));
  return NULL;
}
