/* The gradient of the kernel of convolutions and matrix products in float32.
 *
 * For each tap, the sum over all places of the number that the tap sees times the gradient of the
 * output. The units add up along rows, so the images are transposed: a row for each of their
 * channels. The taps of a window see the same rows from different places on. The gradients of the
 * outputs stand in the places of the staged images, with zeros at borders, where no window begins.
 */
#include "windows.h"

/* most slices of a batch with sums of their own, which are added up; not one per thread, so that
 * sums are the same on any processor */
enum { SLICES = 16 };

typedef struct {
  Shape s;
  const float *x, *dy;
  float* dk;
  long x_stride, dy_stride;
  long taps_across;          /* taps of a row of the window that have tiles of their own, */
  long inner;                /*   of so many numbers: all of the row's, where they are few */
  long c_tiles, o_tiles;
  long reach;                /* places from the first tap to the last */
  long group, each, slices;  /* images that are staged together, images of a slice, slices */
  long row, transposed;      /* numbers of a row of transposed images, of all rows */
  long paired;               /* numbers of the gradients in pairs */
  long sums;                 /* floats of a slice's sums */
  float* partial;
  bf16 *a, *b;
} Gradient;

static long depth(const Gradient* p, long images) {
  return parts(images * p->s.hp * p->s.wp, DEPTH) * DEPTH;
}

/* Writes the numbers that taps see: [c_tiles][16][row], high and low. */
static void transpose_images(const Gradient* p, const float* x, long images, bf16* to) {
  const Shape* s = &p->s;
  long size = staged(s, p->group);
  bf16 *high = workspace(OWN_PLACES, 2 * size * sizeof(bf16)), *low = high + size;
  stage(s, x, images, high, low, size);
  for (long q = 0; q < depth(p, images) + p->reach; q += DEPTH)
    for (long t = 0; t < p->c_tiles; t++) {
      __mmask16 live = first(p->inner - t * TILE);
      for (int plane = 0; plane < 2; plane++) {
        const bf16* from = (plane ? low : high) + q * s->wide + t * TILE;
        __m512i rows[TILE];
        for (long r = 0; r < TILE; r++, from += 2 * s->wide)
          rows[r] = paired(_mm256_maskz_loadu_epi16(live, from),
                           _mm256_maskz_loadu_epi16(live, from + s->wide));
        transpose(rows);
        bf16* line = to + plane * p->transposed + t * TILE * p->row + q;
        for (long r = 0; r < TILE; r++) _mm512_storeu_si512(line + r * p->row, rows[r]);
      }
    }
}

/* Writes the gradients of the outputs in pairs of places: [depth / 32][o_tiles][16][16][2], high
 * and low. */
static void pair_up(const Gradient* p, const float* dy, long images, bf16* to) {
  const Shape* s = &p->s;
  long image = 0, i = 0, j = 0;
  for (long q = 0; q < depth(p, images); q += 2) {
    const float* from[2];
    for (int r = 0; r < 2; r++) {
      int inside = image < images && i < s->ho && j < s->wo;
      from[r] = inside ? dy + ((image * s->ho + i) * s->wo + j) * s->o : NULL;
      if (++j < s->wp) continue;
      j = 0;
      if (++i < s->hp) continue;
      i = 0, image++;
    }
    bf16* here = to + q / DEPTH * p->o_tiles * BLOCK + q % DEPTH * TILE;
    for (long t = 0; t < p->o_tiles; t++, here += BLOCK) {
      __mmask16 live = first(s->o - t * TILE);
      __m512 even = from[0] ? _mm512_maskz_loadu_ps(live, from[0] + t * TILE) : _mm512_setzero_ps();
      __m512 odd = from[1] ? _mm512_maskz_loadu_ps(live, from[1] + t * TILE) : _mm512_setzero_ps();
      __m256i h0, l0, h1, l1;
      split(even, &h0, &l0), split(odd, &h1, &l1);
      _mm512_store_si512(here, paired(h0, h1));
      _mm512_store_si512(here + p->paired, paired(l0, l1));
    }
  }
}

static void add(float* to, const float* from) {
  for (long i = 0; i < TILE * TILE; i += TILE)
    _mm512_store_ps(to + i, _mm512_add_ps(_mm512_load_ps(to + i), _mm512_load_ps(from + i)));
}

/* 2 x 2 tiles of sums in memory: rows are `line` floats apart, tiles of inputs `down`, of outputs
 * `on`. */
typedef struct {
  float* at;
  long line, down, on;
} Sums;

/* Tiles one behind the other: [2][2][16 inputs][16 outputs]. */
static Sums scratch(float* at) { return (Sums){at, TILE, 2 * TILE * TILE, TILE * TILE}; }

/* Adds up products over places for up to 2 x 2 tiles, on top of the sums `from` unless it is NULL.
 * With fewer tiles the products are spread over the idle ones, so that none waits for the one before
 * it, and the tiles are added up in the end; then `to` must be scratch. */
static void accumulate(const Gradient* p, const bf16* a, const bf16* b, long places, int c_tiles,
                       int o_tiles, const float* from, Sums to) {
  long bytes = p->row * sizeof(bf16), next = TILE * p->row, far = p->o_tiles * BLOCK;
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  if (from) {
    _tile_loadd(0, from, 64);
    if (o_tiles == 2) _tile_loadd(1, from + 256, 64);
    if (c_tiles == 2) _tile_loadd(2, from + 512, 64);
    if (c_tiles == 2 && o_tiles == 2) _tile_loadd(3, from + 768, 64);
  }
  for (long q = 0; q < places; q += DEPTH, a += DEPTH, b += far) {
    const bf16 *l = a + p->transposed, *bl = b + p->paired;
    if (p->s.is_bf16) {
      _tile_loadd(4, a, bytes); _tile_loadd(6, b, 64); _tile_dpbf16ps(0, 4, 6);
      if (o_tiles == 2) { _tile_loadd(7, b + BLOCK, 64); _tile_dpbf16ps(1, 4, 7); }
      if (c_tiles == 2) { _tile_loadd(5, a + next, bytes); _tile_dpbf16ps(2, 5, 6); }
      if (c_tiles == 2 && o_tiles == 2) { _tile_dpbf16ps(3, 5, 7); }
      continue;
    }
    if (c_tiles == 2 && o_tiles == 2) {
      _tile_loadd(4, l, bytes); _tile_loadd(6, b, 64); _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + BLOCK, 64); _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, l + next, bytes); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(4, a, bytes); _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + next, bytes); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(6, bl, 64); _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, bl + BLOCK, 64); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(3, 5, 7);
      continue;
    }
    _tile_loadd(4, a, bytes); _tile_loadd(6, b, 64); _tile_dpbf16ps(0, 4, 6);
    if (o_tiles == 2) {
      _tile_loadd(7, b + BLOCK, 64); _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, l, bytes); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(6, bl, 64); _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, bl + BLOCK, 64); _tile_dpbf16ps(1, 4, 7);
    } else if (c_tiles == 2) {
      _tile_loadd(5, a + next, bytes); _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, bl, 64); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(4, l, bytes); _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, l + next, bytes); _tile_dpbf16ps(2, 5, 6);
    } else {
      _tile_loadd(7, bl, 64); _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, l, bytes); _tile_dpbf16ps(2, 5, 6);
    }
  }
  long line = to.line * sizeof *to.at;
  _tile_stored(0, to.at, line); _tile_stored(1, to.at + to.on, line);
  _tile_stored(2, to.at + to.down, line); _tile_stored(3, to.at + to.down + to.on, line);
  if (o_tiles == 1) add(to.at, to.at + to.on), add(to.at + to.down, to.at + to.down + to.on);
  if (c_tiles == 1) add(to.at, to.at + to.down), add(to.at + to.on, to.at + to.down + to.on);
}

typedef struct {
  long tap, c, o; /* c and o: the first tiles of inputs and of outputs */
} Block;

static long block_count(const Gradient* p) {
  return p->s.rows * p->taps_across * parts(p->c_tiles, 2) * parts(p->o_tiles, 2);
}

static Block block_at(const Gradient* p, long index) {
  long taps = p->s.rows * p->taps_across, pairs = parts(p->o_tiles, 2);
  return (Block){index % taps, index / taps / pairs * 2, index / taps % pairs * 2};
}

static void sum_block(const Gradient* p, Block block, const bf16* a, const bf16* b, long images,
                      const float* from, Sums to) {
  long moved = block.tap / p->taps_across * p->s.wp + block.tap % p->taps_across;
  accumulate(p, a + block.c * TILE * p->row + moved, b + block.o * BLOCK, depth(p, images),
             least(2, p->c_tiles - block.c), least(2, p->o_tiles - block.o), from, to);
}

/* Writes the sum of all slices' sums to the gradient, always added in the same order. */
static void put(const Gradient* p, Block block, const float* sums, long slices, float* dk) {
  for (int t = 0; t < 4; t++) {
    long c = (block.c + t / 2) * TILE, o = (block.o + t % 2) * TILE;
    __mmask16 live = first(p->s.o - o);
    for (long r = 0; live && r < least(TILE, p->inner - c); r++) {
      const float* from = sums + t * 256 + r * TILE;
      __m512 sum = _mm512_load_ps(from);
      for (long slice = 1; slice < slices; slice++)
        sum = _mm512_add_ps(sum, _mm512_load_ps(from + slice * p->sums));
      _mm512_mask_storeu_ps(dk + (block.tap * p->inner + c + r) * p->s.o + o, live, sum);
    }
  }
}

static const float* inputs_of(const Gradient* p, long trial, long image) {
  return p->x + trial * p->x_stride + image * p->s.h * p->s.w * p->s.c;
}

static const float* gradients_of(const Gradient* p, long trial, long image) {
  return p->dy + trial * p->dy_stride + image * p->s.ho * p->s.wo * p->s.o;
}

static float* kernel_of(const Gradient* p, long trial) {
  return p->dk + trial * p->s.kh * p->s.kw * p->s.c * p->s.o;
}

/* Where kernels are smaller than images, a unit of work is a slice of the batch with sums of its own, */
static void sum_slice(const void* context, long unit) {
  const Gradient* p = context;
  long trial = unit / p->slices, start = unit % p->slices * p->each;
  long stop = least(p->s.n, start + p->each);
  bf16* a = workspace(OWN_A, 2 * p->transposed * sizeof(bf16));
  bf16* b = workspace(OWN_B, 2 * p->paired * sizeof(bf16));
  for (long image = start; image < stop; image += p->group) {
    long images = least(p->group, stop - image);
    transpose_images(p, inputs_of(p, trial, image), images, a);
    pair_up(p, gradients_of(p, trial, image), images, b);
    tiles_on();
    for (long i = 0; i < block_count(p); i++) {
      float* sums = p->partial + unit * p->sums + i * 4 * TILE * TILE;
      sum_block(p, block_at(p, i), a, b, images, image == start ? NULL : sums,
                scratch(sums));
    }
    _tile_release();
  }
}

static void put_block(const void* context, long unit) {
  const Gradient* p = context;
  long trial = unit / block_count(p), i = unit % block_count(p);
  put(p, block_at(p, i), p->partial + trial * p->slices * p->sums + i * 4 * TILE * TILE, p->slices,
      kernel_of(p, trial));
}

/* and elsewhere tiles of the kernel with all of their taps, for the whole batch at once. */
static void stage_trial(const void* context, long unit) {
  const Gradient* p = context;
  long trial = unit / 2;
  if (unit % 2)
    pair_up(p, gradients_of(p, trial, 0), p->s.n, p->b + trial * 2 * p->paired);
  else
    transpose_images(p, inputs_of(p, trial, 0), p->s.n, p->a + trial * 2 * p->transposed);
}

static void sum_taps(const void* context, long unit) {
  const Gradient* p = context;
  long taps = p->s.rows * p->taps_across, units = block_count(p) / taps, trial = unit / units;
  float out[4 * TILE * TILE] __attribute__((aligned(64)));
  tiles_on();
  for (long tap = 0; tap < taps; tap++) {
    Block block = block_at(p, unit % units * taps + tap);
    long c = block.c * TILE, o = block.o * TILE, whole = c + 2 * TILE <= p->inner && o + 2 * TILE <= p->s.o;
    float* dk = kernel_of(p, trial) + (block.tap * p->inner + c) * p->s.o + o;
    sum_block(p, block, p->a + trial * 2 * p->transposed, p->b + trial * 2 * p->paired, p->s.n, NULL,
              whole ? (Sums){dk, p->s.o, TILE * p->s.o, TILE} : scratch(out));
    if (!whole) put(p, block, out, 1, kernel_of(p, trial));
  }
  _tile_release();
}

/* Maps (x [trials, n, h, w, c], dy [trials, n, ho, wo, o]) to dk [trials, kh, kw, c, o]. */
XLA_FFI_Error* sum_windows(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  const XLA_FFI_Buffer *x = frame->args.args[0], *dy = frame->args.args[1];
  const XLA_FFI_Buffer* dk = frame->rets.rets[0];
  const int64_t *k = dk->dims, *geometry = ((XLA_FFI_Array*)frame->attrs.attrs[0])->data;
  Gradient p = {.s = shape(x->dims, k[1], k[2], k[4], geometry, 0), .x = x->data, .dy = dy->data,
                .dk = dk->data, .x_stride = trial_stride(x), .dy_stride = trial_stride(dy)};
  const Shape* s = &p.s;
  long trials = k[0], one = s->hp * s->wp;
  int whole_rows = s->c < TILE || s->joined;
  p.taps_across = whole_rows ? 1 : s->columns, p.inner = whole_rows ? s->deep : s->c;
  p.c_tiles = parts(p.inner, TILE), p.o_tiles = parts(s->o, TILE);
  p.reach = (s->rows - 1) * s->wp + p.taps_across - 1;
  p.sums = block_count(&p) * 4 * TILE * TILE;
  int at_once = s->n * one * most(p.inner, s->o) < 4 * s->rows * s->deep * s->o || s->n == 1;
  double staging = trials * s->n * one * (p.inner + s->o) * STAGING;
  double work = trials * s->n * one * s->rows * s->deep * s->o * MULTIPLYING;
  double putting = trials * s->rows * s->deep * s->o * STAGING;
  p.slices = least(SLICES, s->n * one * (p.inner + s->o) / (4 * p.sums)); /* they pass through memory */
  p.each = at_once ? s->n : parts(s->n, most(1, least(s->n, p.slices)));
  p.slices = parts(s->n, p.each);
  p.group = CACHE / (one * (p.c_tiles + p.o_tiles) * TILE * 2 * sizeof(bf16));
  p.group = at_once ? s->n : most(1, least(p.group, p.each));
  p.row = (parts(depth(&p, p.group) + p.reach, DEPTH) | 1) * DEPTH; /* odd: rows differ in their cache set */
  p.transposed = p.c_tiles * TILE * p.row, p.paired = depth(&p, p.group) * p.o_tiles * TILE;
  if (at_once) {
    p.a = workspace(ALL_A, trials * 2 * p.transposed * sizeof(bf16));
    p.b = workspace(ALL_B, trials * 2 * p.paired * sizeof(bf16));
    share(frame, stage_trial, &p, trials * 2, staging);
    share(frame, sum_taps, &p, trials * block_count(&p) / (s->rows * p.taps_across), work + putting);
  } else {
    p.partial = workspace(ALL_SUMS, trials * p.slices * p.sums * sizeof(float));
    share(frame, sum_slice, &p, trials * p.slices, staging + work);
    share(frame, put_block, &p, trials * block_count(&p), p.slices * putting);
  }
  return NULL;
}
