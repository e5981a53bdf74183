/* Convolutions in float32: outputs, at stride 1 with a transposed kernel the gradient of the inputs, and the gradient
 * of the kernel.
 *
 * No patches are made. In images with their padding a row of a window is contiguous, so a convolution is a matrix
 * product whose rows begin wherever windows begin. A unit of work takes some lines of the outputs, and keeps what they
 * see, with its padding, in the cache.
 */
#include "kernels.h"
#include "tiles.h"

/* About how many nanoseconds of a thread a product of two numbers, and moving a number, take. */
static const double MULTIPLYING = 0.015, MOVING = 0.3;

enum { ALL_PACKED, ALL_SUMS, OWN_LINES, OWN_BEGINS, OWN_PANEL, OWN_FIRST, OWN_SECOND, OWN_PLACES }; /* memory */
enum {
  NEAR = 1 << 14, FAR = 1 << 18, /* bytes that stay in a core's first and second cache */
  SLICES = 16, /* most slices of a batch with sums of their own; as many on any processor, for the same sums */
};

typedef struct {
  long trials, n, h, w, c, kh, kw, o; /* inputs [n, h, w, c], window [kh, kw], c to o channels */
  long top, bottom, left, right, down, across; /* padding; strides */
  int transposed;      /* the kernel is [kh, kw, o, c], and its window is read backwards */
  int products;        /* of bfloat16 by matrix units in the place of one of float32; 0: none */
  long hp, wp, ho, wo; /* images with their padding [n, hp, wp, c], outputs [n, ho, wo, o] */
  const float *x, *kernel, *dy;
  long x_stride, kernel_stride, dy_stride; /* from trial to trial, 0 where all share one */
  float *y, *dk, *packed, *sums;
  long deep, panels, panel;                /* numbers of a window, panels of WIDTH output channels, of one */
  long lines, chunk, chunks;               /* lines of outputs, of a unit of work, units */
  long group, groups;                      /* panels of a unit, units */
  long all, share, shares, adders;         /* numbers (or tiles) of the window, of a unit; units, those of adding */
} Windows;

static Windows windows(const XLA_FFI_CallFrame* frame, const int64_t* kernel, long o) {
  const XLA_FFI_Buffer *x = frame->args.args[0], *result = frame->rets.rets[0];
  const int64_t *in = x->dims, *option = ((XLA_FFI_Array*)frame->attrs.attrs[0])->data;
  Windows s = {.trials = result->dims[0], .n = in[1], .h = in[2], .w = in[3], .c = in[4], .kh = kernel[0],
               .kw = kernel[1], .o = o, .top = option[0], .bottom = option[1], .left = option[2],
               .right = option[3], .down = option[4], .across = option[5], .transposed = option[6],
               .products = option[7], .x = x->data, .x_stride = trial_stride(x)};
  s.hp = s.h + s.top + s.bottom, s.wp = s.w + s.left + s.right;
  s.ho = (s.hp - s.kh) / s.down + 1, s.wo = (s.wp - s.kw) / s.across + 1, s.lines = s.n * s.ho;
  s.deep = s.kh * s.kw * s.c, s.panels = parts(o, WIDTH), s.panel = s.deep * WIDTH;
  return s;
}

static int vectors_of(const Windows* s, long panel) { return s->o - panel * WIDTH > LANES ? 2 : 1; }

/* Returns images with their padding as so many lines of outputs see them, and where each line's first window begins. */
static const float* staged(const Windows* s, long trial, long first, long count, long* begins) {
  const float* x = s->x + trial * s->x_stride;
  long own = s->w * s->c, line = s->wp * s->c;
  if (s->hp == s->h && s->wp == s->w) {
    for (long i = 0; i < count; i++) begins[i] = ((first + i) / s->ho * s->h + (first + i) % s->ho * s->down) * own;
    return x;
  }
  long images = count / s->ho + 2;
  float *all = workspace(OWN_LINES, (count * s->down + images * s->kh) * line * sizeof(float)), *to = all;
  for (long done = 0; done < count;) {
    long image = (first + done) / s->ho, i = (first + done) % s->ho, run = least(s->ho - i, count - done);
    long start = i * s->down - s->top;
    for (long k = 0; k < run; k++) begins[done + k] = to - all + k * s->down * line;
    for (long y = start; y < start + (run - 1) * s->down + s->kh; y++, to += line) {
      memset(to, 0, line * sizeof *to);
      if (y >= 0 && y < s->h) memcpy(to + s->left * s->c, x + (image * s->h + y) * own, own * sizeof *to);
    }
    done += run;
  }
  return all;
}

/* Packs a panel of the kernel as products read it: [window][WIDTH], or half of that for one vector; then for tiles:
 * [kh][depths of a row of the window][tiles][high, low]. */
static void pack_panel(const void* context, long unit) {
  const Windows* s = context;
  long trial = unit / s->panels, panel = unit % s->panels, width = vectors_of(s, panel) * LANES;
  long first = panel * WIDTH, count = least(width, s->o - first), taps = s->kh * s->kw;
  const float* kernel = s->kernel + trial * s->kernel_stride;
  float* packed = s->packed + unit * s->panel;
  float *plain = s->products ? workspace(OWN_PANEL, s->deep * width * sizeof *plain) : packed, *to = plain;
  for (long tap = 0; tap < taps; tap++, to += s->c * width) {
    if (!s->transposed) {
      const float* from = kernel + tap * s->c * s->o + first;
      for (long i = 0; i < s->c; i++)
        for (long j = 0; j < width; j += LANES) store(to + i * width + j, load_some(from + i * s->o + j, count - j));
      continue;
    }
    const float* from = kernel + ((taps - 1 - tap) * s->o + first) * s->c;
    for (long i = 0; i < s->c; i += LANES) /* a square at a time stays in the cache */
      for (long j = 0; j < width; j++)
        for (long k = i; k < least(i + LANES, s->c); k++) to[k * width + j] = j < count ? from[j * s->c + k] : 0;
  }
  bf16* tile = (bf16*)packed;
  for (long i = 0, own = s->kw * s->c; s->products && i < s->kh; i++, plain += own * width)
    for (long k = 0; k < own; k += DEPTH)
      for (long t = 0; t < width; t += TILE, tile += 2 * BLOCK) {
        const float* row[DEPTH];
        for (long r = 0; r < least(DEPTH, own - k); r++) row[r] = plain + (k + r) * width + t;
        pack_tile(row, own - k, 0, TILE, tile);
      }
}

/* Returns where a window begins, and goes on to the next one; the last of those that are left stays. */
INLINE const float* next_window(const Windows* s, const float* x, const long* begins, long left, long* line, long* j) {
  const float* window = x + begins[*line] + *j * s->across * s->c;
  if (left > 1 && ++*j == s->wo) *j = 0, ++*line;
  return window;
}

/* Computes some outputs for some panels by tiles. */
static void multiply_by_tiles(const Windows* s, const float* x, const long* begins, long count, const float* packed,
                              long panel, long last, float* y) {
  long deep = s->kw * s->c, depths = s->kh * parts(deep, DEPTH), line = 0, j = 0;
  bf16* a = workspace(OWN_FIRST, depths * 4 * BLOCK * sizeof *a);
  const float* row[2 * TILE];
  float tile[2 * TILE * WIDTH] __attribute__((aligned(64)));
  Piece pieces[s->kh];
  for (long i = 0; i < s->kh; i++) pieces[i] = (Piece){i * s->wp * s->c, 0};
  tiles_on();
  for (long q = 0; q < count; q += 2 * TILE) {
    for (long r = 0; r < 2 * TILE; r++) row[r] = next_window(s, x, begins, count - q - r, &line, &j);
    pack_rows(row, pieces, s->kh, deep, a);
    for (long p = panel; p < last; p++) {
      int two = vectors_of(s, p) == 2;
      multiply_tiles(a, (const bf16*)(packed + p * s->panel), depths, two, s->products, tile);
      for (long r = 0; r < least(2 * TILE, count - q); r++)
        for (long i = p * WIDTH; i < p * WIDTH + (1 + two) * LANES; i += LANES)
          store_some(y + (q + r) * s->o + i, load(tile + r * WIDTH + i - p * WIDTH), s->o - i);
    }
  }
  _tile_release();
}

/* Computes some lines of the outputs for some panels. */
static void multiply(const void* context, long unit) {
  const Windows* s = context;
  long trial = unit / (s->chunks * s->groups), first = unit / s->groups % s->chunks * s->chunk;
  long lines = least(s->chunk, s->lines - first), count = lines * s->wo;
  long panel = unit % s->groups * s->group, last = least(s->panels, panel + s->group);
  long* begins = workspace(OWN_BEGINS, s->chunk * sizeof *begins);
  const float *x = staged(s, trial, first, lines, begins), *row[MOST_ROWS];
  const float* packed = s->packed + (s->kernel_stride ? trial : 0) * s->panels * s->panel;
  float* y = s->y + (trial * s->lines + first) * s->wo * s->o;
  if (s->products) return multiply_by_tiles(s, x, begins, count, packed, panel, last, y);
  for (; panel < last; panel++) {
    long vectors = vectors_of(s, panel), rows = rows_of(vectors), deep = s->kw * s->c, line = 0, j = 0;
    Piece pieces[s->kh];
    for (long i = 0; i < s->kh; i++) pieces[i] = (Piece){i * s->wp * s->c, i * deep * vectors * LANES};
    for (long q = 0; q < count; q += rows) {
      for (long r = 0; r < rows; r++) row[r] = next_window(s, x, begins, count - q - r, &line, &j);
      block(vectors, 0, row, pieces, s->kh, deep, 1, packed + panel * s->panel, y + q * s->o + panel * WIDTH, s->o,
            count - q, s->o - panel * WIDTH, 0);
    }
  }
}

/* Maps (x [trials, n, h, w, c], kernel [trials, kh, kw, c, o]) to y [trials, n, ho, wo, o]. */
XLA_FFI_Error* multiply_windows(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  const XLA_FFI_Buffer *kernel = frame->args.args[1], *y = frame->rets.rets[0];
  Windows s = windows(frame, kernel->dims + 1, y->dims[4]);
  s.kernel = kernel->data, s.kernel_stride = trial_stride(kernel), s.y = y->data;
  long wanted = 4 * threads_of(frame), kernels = s.kernel_stride ? s.trials : 1;
  s.chunk = most(1, least(FAR / 2 / (s.down * s.wp * s.c * sizeof(float)), parts(512, s.wo)));
  if (s.deep * s.o < s.lines * s.wo * s.c) /* the kernel is the smaller one: each unit takes all of it */
    s.chunk = least(s.chunk, parts(s.lines * s.trials, wanted));
  s.chunks = parts(s.lines, s.chunk);
  s.group = parts(s.panels, least(s.panels, parts(wanted, s.chunks * s.trials)));
  s.groups = parts(s.panels, s.group);
  if (s.products) s.panel = s.kh * round_up(s.kw * s.c, DEPTH) * WIDTH;
  s.packed = workspace(ALL_PACKED, kernels * s.panels * s.panel * sizeof(float));
  share(frame, pack_panel, &s, kernels * s.panels, kernels * s.deep * s.o * MOVING);
  share(frame, multiply, &s, s.trials * s.chunks * s.groups, s.trials * s.lines * s.wo * s.deep * s.o * MULTIPLYING);
  return NULL;
}

/* Adds up tiles of [output channels][numbers of the window], from one to another, over some positions. */
static void sum_tiles(const Windows* s, const float* x, const long* begins, const float* dy, long count, long from,
                      long to, float* sums, int add) {
  long own = s->kw * s->c, blocks = parts(own, 2 * TILE), depths = parts(count, DEPTH), size = depths * 4 * BLOCK;
  const float **place = workspace(OWN_PLACES, 2 * count * sizeof *place), **gradient = place + count;
  bf16* a = workspace(OWN_FIRST, s->panels * size * sizeof *a);
  bf16* b = workspace(OWN_SECOND, size * sizeof *b);
  float tile[2 * TILE * WIDTH] __attribute__((aligned(64)));
  tiles_on();
  for (long q = 0; q < count; q++) {
    place[q] = x + begins[q / s->wo] + q % s->wo * s->across * s->c;
    gradient[q] = dy + q * s->o;
  }
  for (long o = 0, i = 0; o < s->panels * WIDTH; o += 2 * TILE)
    for (long q = 0; q < count; q += DEPTH)
      for (long t = o; t < o + 2 * TILE; t += TILE, i += 2 * BLOCK)
        pack_transposed_tile(gradient + q, count - q, t, s->o - t, a + i);
  for (; from < to; from++) {
    long m = from % blocks * 2 * TILE, height = from / blocks;
    for (long q = 0, i = 0; q < count; q += DEPTH)
      for (long t = m; t < m + 2 * TILE; t += TILE, i += 2 * BLOCK)
        pack_tile(place + q, count - q, height * s->wp * s->c + t, own - t, b + i);
    for (long o = 0; o < s->o; o += WIDTH) {
      multiply_tiles(a + o / WIDTH * size, b, depths, 1, s->products, tile);
      float* out = sums + (height * own + m) * s->o + o;
      for (long k = 0; k < least(2 * TILE, own - m); k++, out += s->o)
        for (long j = 0; j < least(WIDTH, s->o - o); j++) out[j] = tile[j * WIDTH + k] + (add ? out[j] : 0);
    }
  }
  _tile_release();
}

/* Adds up some rows of the gradient over a slice of the lines. */
static void sum(const void* context, long unit) {
  const Windows* s = context;
  long trial = unit / (s->chunks * s->shares), slice = unit / s->shares % s->chunks, own = s->kw * s->c;
  long from = unit % s->shares * s->share, to = least(s->all, from + s->share);
  long first = slice * s->chunk, last = least(s->lines, first + s->chunk);
  long seen = s->down * s->wp * s->c * sizeof(float), own_panel = s->wo * WIDTH * sizeof(float);
  long together = most(1, least(FAR / 2 / seen, (s->products ? FAR / 2 : NEAR) / own_panel));
  float* sums = (s->sums ? s->sums : s->dk) + (trial * s->chunks + slice) * s->deep * s->o;
  float* b = workspace(OWN_PANEL, together * own_panel);
  long* begins = workspace(OWN_BEGINS, together * sizeof *begins);
  Piece piece[together];
  for (long line = first; line < last; line += together) {
    long count = least(together, last - line);
    const float *x = staged(s, trial, line, count, begins), *dy = s->dy + trial * s->dy_stride + line * s->wo * s->o;
    if (s->products) {
      sum_tiles(s, x, begins, dy, count * s->wo, from, to, sums, line > first);
      continue;
    }
    for (long panel = 0; panel < s->panels; panel++, dy += WIDTH) {
      long vectors = vectors_of(s, panel), width = vectors * LANES, columns = s->o - panel * WIDTH;
      for (long q = 0; q < count * s->wo; q++)
        for (long j = 0; j < width; j += LANES) store(b + q * width + j, load_some(dy + q * s->o + j, columns - j));
      for (long i = 0; i < count; i++) piece[i] = (Piece){begins[i], i * s->wo * width};
      for (long m = from, rows = rows_of(vectors); m < to; m += rows) {
        const float* row[MOST_ROWS];
        for (long r = 0; r < rows; r++) {
          long k = least(m + r, s->deep - 1);
          row[r] = x + k / own * s->wp * s->c + k % own;
        }
        block(vectors, m + rows <= to && m % own + rows <= own, row, piece, count, s->wo, s->across * s->c, b,
              sums + m * s->o + panel * WIDTH, s->o, to - m, columns, line > first);
      }
    }
  }
}

/* Adds up the sums of all slices, always in the same order. */
static void add_slices(const void* context, long unit) {
  const Windows* s = context;
  long size = s->deep * s->o, part = parts(size, s->adders), trial = unit / s->adders, from = unit % s->adders * part;
  const float* sums = s->sums + trial * s->chunks * size;
  for (long i = from, to = least(size, from + part); i < to; i += LANES) {
    Vector total = load_some(sums + i, to - i);
    for (long slice = 1; slice < s->chunks; slice++) total += load_some(sums + slice * size + i, to - i);
    store_some(s->dk + trial * size + i, total, to - i);
  }
}

/* Maps (x [trials, n, h, w, c], dy [trials, n, ho, wo, o]) to dk [trials, kh, kw, c, o]. */
XLA_FFI_Error* sum_windows(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  const XLA_FFI_Buffer *dy = frame->args.args[1], *dk = frame->rets.rets[0];
  Windows s = windows(frame, dk->dims + 1, dk->dims[4]);
  s.dy = dy->data, s.dy_stride = trial_stride(dy), s.dk = dk->data;
  long size = s.deep * s.o, wanted = 4 * threads_of(frame);
  /* sums pass through memory: a slice where they are small beside what they are sums of */
  s.chunk = parts(s.lines, most(1, least(SLICES, s.lines * (s.wp * s.c + s.wo * s.o) / (4 * size))));
  s.chunks = parts(s.lines, s.chunk);
  s.sums = s.chunks > 1 ? workspace(ALL_SUMS, s.trials * s.chunks * size * sizeof(float)) : NULL;
  s.all = s.deep, s.share = s.o > LANES ? ROWS : ROWS_OF_ONE, s.adders = wanted;
  if (s.products) s.all = s.kh * parts(s.kw * s.c, 2 * TILE), s.share = 1;
  s.shares = most(parts(size * sizeof(float), FAR), parts(wanted, s.chunks * s.trials));
  s.share = round_up(parts(s.all, s.shares), s.share), s.shares = parts(s.all, s.share);
  share(frame, sum, &s, s.trials * s.chunks * s.shares, s.trials * s.lines * s.wo * size * MULTIPLYING);
  if (s.sums) share(frame, add_slices, &s, s.trials * s.adders, s.trials * s.chunks * size * MOVING);
  return NULL;
}
