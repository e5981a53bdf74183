/* All steps of an LSTM in one operation, forwards and back through time, in float32.
 *
 *     i, f, g, o = x_t W + h_{t-1} R + b,   c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)
 *
 * (Hochreiter & Schmidhuber 1997; the forget gate: Gers et al. 2000). The sequences of a batch are independent, so a
 * thread takes some of them through all steps and waits for no other. Kernels are packed once for all steps, and gates
 * are computed while the products are in the cache.
 */
#include "kernels.h"

/* About how many nanoseconds of a thread a product of two numbers, and the gates of a unit, take. */
static const double MULTIPLYING = 0.015, GATES = 8;

enum { ALL_PACKED, OWN_STATES }; /* working memory */
enum { I, F, G, O, GATE_COUNT };
enum { MOST_SEQUENCES = 64 }; /* that a thread takes at a time */

typedef struct {
  float* data;
  long stride; /* from trial to trial, 0 where it belongs to all */
} Array;

typedef struct {
  long trials, steps, batch, inputs, hidden, reverse;
  long rows, groups;        /* sequences that a thread takes at a time, how often per trial */
  long blocks, packed_size; /* of LANES hidden units; numbers of a trial's packed kernels */
  float* packed;
  Array x, kernel, recurrent, bias, h0, c0, mask; /* where the mask is 0, the state stays as it is */
  Array outputs, cells, gates;                    /* of the forward pass */
  Array d_outputs, after_h, after_c, dz, dh0, dc0;
} Sequences;

typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

INLINE Vector choose(Integers condition, Vector yes, Vector no) {
  return (Vector)((condition & (Integers)yes) | (~condition & (Integers)no));
}

/* 2^n of whole numbers between -126 and 127 */
INLINE Vector power_of_two(Vector n) {
  return (Vector)((__builtin_convertvector(n, Integers) + 127) << 23);
}

/* e^x = 2^n (1 + q), n a whole number; the polynomial is that of expf in Moshier's Cephes library (1992). */
INLINE Vector exponential(Vector x, Vector* n) {
  const float rounding = 12582912; /* 1.5 2^23: adding it leaves no room for a fraction */
  *n = (x * 1.44269504f + rounding) - rounding;
  Vector r = x - *n * 0.693359375f + *n * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return r * r * p + r;
}

/* A NaN passes through both functions, as it is neither less nor greater than a bound. */
INLINE Vector sigmoid(Vector x) {
  Vector n;
  x = choose(x > 80, fill(80), choose(x < -80, fill(-80), x));
  Vector q = exponential(-x, &n);
  return 1 / (1 + (1 + q) * power_of_two(n));
}

/* (e^2x - 1) / (e^2x + 1), without cancellation near zero */
INLINE Vector hyperbolic_tangent(Vector x) {
  Vector n, size = (Vector)((Integers)x & 0x7fffffff);
  Vector q = exponential(choose(size > 10, fill(20), size + size), &n), power = power_of_two(n);
  Vector e = q * power + (power - 1);
  return (Vector)((Integers)(e / (e + 2)) | ((Integers)x & (Integers)fill(-0.0f)));
}

typedef struct {
  long trial, from, count; /* of the sequences of a trial */
} Part;

static Part part(const Sequences* p, long unit) {
  long from = unit % p->groups * p->rows;
  return (Part){unit / p->groups, from, least(p->rows, p->batch - from)};
}

static long time_of(const Sequences* p, long step) { return p->reverse ? p->steps - 1 - step : step; }

/* Returns a part's first row at a time step in an array [trials, steps, batch, width]. */
static float* rows(const Sequences* p, Array array, Part part, long time, long width) {
  return array.data + part.trial * array.stride + (time * p->batch + part.from) * width;
}

static int moves_on(const Sequences* p, Part part, long time, long row) {
  return ((const uint8_t*)p->mask.data)[part.trial * p->mask.stride + time * p->batch + part.from + row];
}

/* out [ROWS][line] (+)= ROWS rows of a [rows][deep] from `top` on times the packed b [deep][WIDTH] */
static void product(const float* a, long top, long count, long deep, const float* b, float* out, long line, int add) {
  const float* row[ROWS];
  for (long r = 0; r < ROWS; r++) row[r] = a + least(top + r, count - 1) * deep;
  block_of(ROWS, 2, 0, row, &(Piece){0, 0}, 1, deep, 1, b, out, line, ROWS, WIDTH, add);
}

/* ---- Forwards --------------------------------------------------------------------------------- */

/* Packs the gates of LANES hidden units side by side: [blocks][i f, g o][inputs, hidden][WIDTH]. */
static void pack_gates(const void* context, long unit) {
  const Sequences* p = context;
  long trial = unit / p->blocks, first = unit % p->blocks * LANES, width = GATE_COUNT * p->hidden;
  const float* kernel = p->kernel.data + trial * p->kernel.stride + first;
  const float* recurrent = p->recurrent.data + trial * p->recurrent.stride + first;
  float* to = p->packed + trial * p->packed_size + unit % p->blocks * (p->packed_size / p->blocks);
  for (int pair = 0; pair < GATE_COUNT; pair += 2)
    for (long k = 0; k < p->inputs + p->hidden; k++)
      for (int gate = pair; gate < pair + 2; gate++, to += LANES) {
        const float* from = k < p->inputs ? kernel + k * width : recurrent + (k - p->inputs) * width;
        store(to, load_some(from + gate * p->hidden, p->hidden - first));
      }
}

/* Computes gates and states of LANES units of a row from its pre-activations [i f g o]. */
static void step_forwards(const Sequences* p, const float* z, const float* bias, long unit, const float* h,
                          const float* c, int mask, float* gates, float* output, float* cell) {
  long live = p->hidden - unit;
  Vector gate[GATE_COUNT];
#pragma GCC unroll 4
  for (int k = 0; k < GATE_COUNT; k++) {
    gate[k] = load(z + k * LANES) + load_some(bias + k * p->hidden + unit, live);
    gate[k] = k == G ? hyperbolic_tangent(gate[k]) : sigmoid(gate[k]);
    if (gates) store_some(gates + k * p->hidden + unit, gate[k], live);
  }
  Vector before = load_some(c + unit, live), state = gate[F] * before + gate[I] * gate[G];
  Vector seen = gate[O] * hyperbolic_tangent(state);
  if (!mask) state = before, seen = load_some(h + unit, live);
  store_some(cell + unit, state, live);
  store_some(output + unit, seen, live);
}

static void forwards(const void* context, long unit) {
  const Sequences* p = context;
  Part own = part(p, unit);
  long h = p->hidden, deep = p->inputs + h;
  float z[ROWS * GATE_COUNT * LANES] __attribute__((aligned(64)));
  const float *before_h = rows(p, p->h0, own, 0, h), *before_c = rows(p, p->c0, own, 0, h);
  const float* bias = p->bias.data + own.trial * p->bias.stride;
  for (long step = 0; step < p->steps; step++) {
    long time = time_of(p, step);
    const float *x = rows(p, p->x, own, time, p->inputs), *b = p->packed + own.trial * p->packed_size;
    float *output = rows(p, p->outputs, own, time, h), *cell = rows(p, p->cells, own, time, h);
    float* gates = p->gates.data ? rows(p, p->gates, own, time, GATE_COUNT * h) : NULL;
    for (long block = 0; block < p->blocks; block++, b += 2 * deep * WIDTH)
      for (long top = 0; top < own.count; top += ROWS) {
        for (int pair = 0; pair < 2; pair++) {
          const float* panel = b + pair * deep * WIDTH;
          product(x, top, own.count, p->inputs, panel, z + pair * WIDTH, GATE_COUNT * LANES, 0);
          product(before_h, top, own.count, h, panel + p->inputs * WIDTH, z + pair * WIDTH, GATE_COUNT * LANES, 1);
        }
        for (long r = top; r < least(top + ROWS, own.count); r++)
          step_forwards(p, z + (r - top) * GATE_COUNT * LANES, bias, block * LANES, before_h + r * h, before_c + r * h,
                        moves_on(p, own, time, r), gates ? gates + r * GATE_COUNT * h : NULL, output + r * h,
                        cell + r * h);
      }
    before_h = output, before_c = cell;
  }
}

/* ---- Back through time ------------------------------------------------------------------------ */

/* Packs the transposed recurrent kernel: [panels][gates of hidden units][WIDTH]. */
static void pack_transposed(const void* context, long unit) {
  const Sequences* p = context;
  long panels = parts(p->hidden, WIDTH), deep = GATE_COUNT * p->hidden, first = unit % panels * WIDTH;
  const float* kernel = p->recurrent.data + unit / panels * p->recurrent.stride + first * deep;
  float* to = p->packed + unit / panels * p->packed_size + first * deep;
  for (long k = 0; k < deep; k++)
    for (long n = 0; n < WIDTH; n++) *to++ = first + n < p->hidden ? kernel[n * deep + k] : 0;
}

/* Computes the gradients of LANES units of a row: those of the pre-activations, and that of the cell
 * before. `dh` becomes the gradient of the output, which passes to the output before where the state
 * stays as it is. */
static void step_back(const Sequences* p, long unit, const float* gates, const float* cell, const float* before,
                      const float* d_output, int mask, float* dh, float* dc, float* dz) {
  long live = p->hidden - unit;
  Vector gate[GATE_COUNT], d[GATE_COUNT];
  for (int k = 0; k < GATE_COUNT; k++) gate[k] = load_some(gates + k * p->hidden + unit, live);
  Vector h = load(dh + unit) + load_some(d_output + unit, live);
  Vector seen = hyperbolic_tangent(load_some(cell + unit, live));
  Vector c = h * gate[O] * (1 - seen * seen) + load(dc + unit);
  d[I] = c * gate[G] * gate[I] * (1 - gate[I]);
  d[F] = c * load_some(before + unit, live) * gate[F] * (1 - gate[F]);
  d[G] = c * gate[I] * (1 - gate[G] * gate[G]);
  d[O] = h * seen * gate[O] * (1 - gate[O]);
  for (int k = 0; k < GATE_COUNT; k++) store_some(dz + k * p->hidden + unit, mask ? d[k] : fill(0), live);
  store(dh + unit, h);
  if (mask) store(dc + unit, c * gate[F]);
}

static void backwards(const void* context, long unit) {
  const Sequences* p = context;
  Part own = part(p, unit);
  long h = p->hidden, line = round_up(h, WIDTH), size = round_up(own.count, ROWS) * line;
  float *dh = workspace(OWN_STATES, 3 * size * sizeof(float)), *before_h = dh + size, *dc = before_h + size;
  memset(dh, 0, 3 * size * sizeof(float));
  for (long r = 0; r < own.count; r++) {
    memcpy(dh + r * line, rows(p, p->after_h, own, 0, h) + r * h, h * sizeof *dh);
    memcpy(dc + r * line, rows(p, p->after_c, own, 0, h) + r * h, h * sizeof *dc);
  }
  for (long step = p->steps - 1; step >= 0; step--) {
    long time = time_of(p, step);
    const float *gates = rows(p, p->gates, own, time, GATE_COUNT * h), *cell = rows(p, p->cells, own, time, h);
    const float* before = step ? rows(p, p->cells, own, time_of(p, step - 1), h) : rows(p, p->c0, own, 0, h);
    float *d_output = rows(p, p->d_outputs, own, time, h), *dz = rows(p, p->dz, own, time, GATE_COUNT * h);
    for (long r = 0; r < own.count; r++)
      for (long i = 0; i < h; i += LANES)
        step_back(p, i, gates + r * GATE_COUNT * h, cell + r * h, before + r * h, d_output + r * h,
                  moves_on(p, own, time, r), dh + r * line, dc + r * line, dz + r * GATE_COUNT * h);
    const float* b = p->packed + own.trial * p->packed_size;
    for (long n = 0; n < h; n += WIDTH, b += GATE_COUNT * h * WIDTH)
      for (long top = 0; top < own.count; top += ROWS)
        product(dz, top, own.count, GATE_COUNT * h, b, before_h + top * line + n, line, 0);
    for (long r = 0; r < own.count; r++)
      if (!moves_on(p, own, time, r)) memcpy(before_h + r * line, dh + r * line, line * sizeof *dh);
    float* swapped = dh;
    dh = before_h, before_h = swapped;
  }
  for (long r = 0; r < own.count; r++) {
    memcpy(rows(p, p->dh0, own, 0, h) + r * h, dh + r * line, h * sizeof *dh);
    memcpy(rows(p, p->dc0, own, 0, h) + r * h, dc + r * line, h * sizeof *dc);
  }
}

/* ---- The operations, as XLA calls them ------------------------------------------------------ */

static Array array(const XLA_FFI_Buffer* buffer) { return (Array){buffer->data, trial_stride(buffer)}; }

/* Sizes of the work; `cells` is the shape [trials, steps, batch, hidden]. */
static Sequences sequences(const XLA_FFI_CallFrame* frame, const int64_t* cells, long inputs, long trials) {
  const XLA_FFI_Array* options = frame->attrs.attrs[0];
  Sequences p = {.trials = trials, .steps = cells[1], .batch = cells[2], .hidden = cells[3], .inputs = inputs,
                 .reverse = ((const int64_t*)options->data)[0]};
  long each = parts(p.batch * trials, threads_of(frame));
  p.rows = least(MOST_SEQUENCES / ROWS * ROWS, round_up(least(each, p.batch), ROWS));
  p.groups = parts(p.batch, p.rows), p.blocks = parts(p.hidden, LANES);
  return p;
}

static double work(const Sequences* p) {
  double cells = (double)p->trials * p->steps * p->batch * p->hidden;
  return cells * (GATES + MULTIPLYING * GATE_COUNT * (p->inputs + p->hidden));
}

/* Maps (x [trials, steps, batch, inputs], kernel [trials, inputs, 4 hidden], recurrent [trials, hidden, 4 hidden], bias
 * [trials, 4 hidden], h0 and c0 [trials, batch, hidden], mask [trials, steps, batch]) to outputs and cells [trials,
 * steps, batch, hidden], gates [trials, steps, batch, 4 hidden, or 0 if there is no backward pass] */
XLA_FFI_Error* lstm_forward(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  XLA_FFI_Buffer **in = (XLA_FFI_Buffer**)frame->args.args, **out = (XLA_FFI_Buffer**)frame->rets.rets;
  Sequences p = sequences(frame, out[1]->dims, in[0]->dims[3], out[1]->dims[0]);
  p.x = array(in[0]), p.kernel = array(in[1]), p.recurrent = array(in[2]), p.bias = array(in[3]);
  p.h0 = array(in[4]), p.c0 = array(in[5]), p.mask = array(in[6]);
  p.outputs = array(out[0]), p.cells = array(out[1]);
  if (out[2]->dims[3]) p.gates = array(out[2]);
  p.packed_size = p.blocks * 2 * (p.inputs + p.hidden) * WIDTH;
  p.packed = workspace(ALL_PACKED, p.trials * p.packed_size * sizeof(float));
  share(frame, pack_gates, &p, p.trials * p.blocks, p.trials * p.packed_size * 0.3);
  share(frame, forwards, &p, p.trials * p.groups, work(&p));
  return NULL;
}

/* Maps (gates [trials, steps, batch, 4 hidden], cells [trials, steps, batch, hidden], c0 [trials, batch, hidden],
 * recurrent [trials, hidden, 4 hidden], mask [trials, steps, batch] and the gradients of outputs [trials, steps, batch,
 * hidden], of the last of them and of the last cells [trials, batch, hidden]) to the gradients of pre-activations
 * [trials, steps, batch, 4 hidden], h0 and c0 [trials, batch, hidden] */
XLA_FFI_Error* lstm_backward(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  XLA_FFI_Buffer **in = (XLA_FFI_Buffer**)frame->args.args, **out = (XLA_FFI_Buffer**)frame->rets.rets;
  Sequences p = sequences(frame, in[1]->dims, 0, out[0]->dims[0]);
  p.gates = array(in[0]), p.cells = array(in[1]), p.c0 = array(in[2]), p.recurrent = array(in[3]);
  p.mask = array(in[4]), p.d_outputs = array(in[5]), p.after_h = array(in[6]), p.after_c = array(in[7]);
  p.dz = array(out[0]), p.dh0 = array(out[1]), p.dc0 = array(out[2]);
  long panels = parts(p.hidden, WIDTH);
  p.packed_size = panels * GATE_COUNT * p.hidden * WIDTH;
  p.packed = workspace(ALL_PACKED, p.trials * p.packed_size * sizeof(float));
  share(frame, pack_transposed, &p, p.trials * panels, p.trials * p.packed_size * 0.5);
  share(frame, backwards, &p, p.trials * p.groups, work(&p));
  return NULL;
}
