/* Convolutions and matrix products in float32: outputs, and with a transposed kernel the gradient of
 * the inputs. */
#include "windows.h"

enum {
  LARGE = 1 << 20, /* bytes of staged images of a large kernel, which stay in a second-level cache */
  NARROW = 8,      /* widest images that are staged in rows of windows */
};

typedef struct {
  Shape s;
  const float *x, *kernel;
  float* y;
  long x_stride, kernel_stride; /* floats from trial to trial, 0 where all share one */
  long panels, panel;           /* pairs of tiles of output channels, numbers of each */
  long group, groups, plane;    /* images that are staged together, how often, numbers of a plane */
  bf16 *packed, *planes;
} Product;

/* Writes one or two tiles of output channels as the units read them: [rows][deep][tiles][high, low]. */
static void pack(const Shape* s, const float* kernel, long channel, int tiles, bf16* to) {
  for (long row = 0; row < s->rows; row++)
    for (long k = 0; k < s->deep; k += DEPTH)
      for (int t = 0; t < tiles; t++, to += 2 * BLOCK) {
        long n = channel + t * TILE;
        if (!s->transposed) {
          const float* from = kernel + (row * s->deep + k) * s->o + n;
          pack_tile(from, s->o, s->deep - k, first(s->o - n), to);
          continue;
        }
        float columns[TILE][DEPTH] = {{0}};
        for (long j = 0; j < least(TILE, s->o - n); j++)
          for (long i = k; i < least(s->deep, k + DEPTH);) {
            long tap = s->kh * s->kw - 1 - (row * s->kw + i / s->c), c = i % s->c;
            long run = least(least(s->c - c, s->deep - i), k + DEPTH - i);
            memcpy(columns[j] + i - k, kernel + (tap * s->o + n + j) * s->c + c, run * sizeof(float));
            i += run;
          }
        pack_columns(columns, to);
      }
}

/* Multiplies 48 places by 16 channels: out [48][16]. */
static void three_by_one(Rows a, const bf16* high, const bf16* low, const bf16* b, float* out,
                         long width) {
  long bytes = a.wide * sizeof(bf16), next = TILE * a.wide, line = width * sizeof *out;
  _tile_zero(0); _tile_zero(1); _tile_zero(2);
  for (long piece = 0; piece < a.pieces; piece++, high += a.down, low += a.down)
    for (long k = 0; k < a.deep; k += DEPTH, b += 2 * BLOCK) {
      const bf16 *h = high + k, *l = low + k;
      _tile_loadd(3, b, 64); _tile_loadd(5, h, bytes); _tile_dpbf16ps(0, 5, 3);
      _tile_loadd(6, h + next, bytes); _tile_dpbf16ps(1, 6, 3);
      _tile_loadd(7, h + 2 * next, bytes); _tile_dpbf16ps(2, 7, 3);
      if (a.is_bf16) continue;
      _tile_loadd(4, b + BLOCK, 64); _tile_dpbf16ps(0, 5, 4); _tile_dpbf16ps(1, 6, 4);
      _tile_dpbf16ps(2, 7, 4); _tile_loadd(5, l, bytes); _tile_dpbf16ps(0, 5, 3);
      _tile_loadd(6, l + next, bytes); _tile_dpbf16ps(1, 6, 3);
      _tile_loadd(7, l + 2 * next, bytes); _tile_dpbf16ps(2, 7, 3);
    }
  _tile_stored(0, out, line); _tile_stored(1, out + TILE * width, line);
  _tile_stored(2, out + 2 * TILE * width, line);
}

/* Multiplies staged images by a panel: the outputs' channels from `channel` on. Places run on from
 * row to row and, where images are small, from image to image; the results of windows that reach
 * across a border are left out. */
static void multiply(const Shape* s, const bf16* high, const bf16* low, long images, const bf16* b,
                     long channel, int tiles, float* y) {
  float out[4 * TILE * TILE] __attribute__((aligned(64)));
  long image_places = s->hp * s->wp, own = (s->ho - 1) * s->wp + s->wo;
  int together = s->ho * s->wp < 64;
  long pieces = together ? 1 : images, places = together ? (images - 1) * image_places + own : own;
  long block = tiles == 2 ? 2 * TILE : 3 * TILE, width = tiles * TILE;
  Rows rows = {s->wide, s->rows, s->wp * s->wide, s->deep, s->is_bf16};
  __mmask16 left = first(s->o - channel), right = first(s->o - channel - TILE);
  for (long piece = 0; piece < pieces; piece++) {
    long image = piece, i = 0, j = 0;
    for (long q = 0; q < places; q += block) {
      long at = (piece * image_places + q) * s->wide;
      (tiles == 2 ? two_by_two : three_by_one)(rows, high + at, low + at, b, out, width);
      for (const float *from = out, *end = out + least(block, places - q) * width; from < end;
           from += width) {
        if (i < s->ho && j < s->wo) {
          float* to = y + ((image * s->ho + i) * s->wo + j) * s->o + channel;
          _mm512_mask_storeu_ps(to, left, _mm512_load_ps(from));
          if (right) _mm512_mask_storeu_ps(to + TILE, right, _mm512_load_ps(from + TILE));
        }
        if (++j < s->wp) continue;
        j = 0;
        if (++i < s->hp) continue;
        i = 0, image++;
      }
    }
  }
}

static int tiles_of(const Product* p, long panel) {
  return p->s.o - panel * 2 * TILE > TILE ? 2 : 1;
}

static void pack_panel(const void* context, long unit) {
  const Product* p = context;
  long trial = unit / p->panels, panel = unit % p->panels;
  pack(&p->s, p->kernel + trial * p->kernel_stride, panel * 2 * TILE, tiles_of(p, panel),
       p->packed + unit * p->panel);
}

static void stage_group(const void* context, long unit) {
  const Product* p = context;
  const Shape* s = &p->s;
  long trial = unit / p->groups, from = unit % p->groups * p->group;
  bf16* high = p->planes + unit * 2 * p->plane;
  stage(s, p->x + trial * p->x_stride + from * s->h * s->w * s->c, least(p->group, s->n - from), high,
        high + p->plane, p->plane);
}

/* Either a unit of work is a group of images times all panels, */
static void multiply_group(const void* context, long unit) {
  const Product* p = context;
  const Shape* s = &p->s;
  long trial = unit / p->groups, from = unit % p->groups * p->group;
  long images = least(p->group, s->n - from);
  bf16 *high = workspace(OWN_A, 2 * p->plane * sizeof(bf16)), *low = high + p->plane;
  stage(s, p->x + trial * p->x_stride + from * s->h * s->w * s->c, images, high, low, p->plane);
  tiles_on();
  for (long panel = 0; panel < p->panels; panel++)
    multiply(s, high, low, images, p->packed + ((p->kernel_stride ? trial : 0) * p->panels + panel) * p->panel,
             panel * 2 * TILE, tiles_of(p, panel), p->y + (trial * s->n + from) * s->ho * s->wo * s->o);
  _tile_release();
}

/* or a panel times all groups. */
static void multiply_panel(const void* context, long unit) {
  const Product* p = context;
  const Shape* s = &p->s;
  long trial = unit / p->panels, panel = unit % p->panels;
  bf16* b = workspace(OWN_B, p->panel * sizeof(bf16));
  pack(s, p->kernel + trial * p->kernel_stride, panel * 2 * TILE, tiles_of(p, panel), b);
  tiles_on();
  for (long group = 0; group < p->groups; group++) {
    long from = group * p->group;
    const bf16* high = p->planes + ((p->x_stride ? trial : 0) * p->groups + group) * 2 * p->plane;
    multiply(s, high, high + p->plane, least(p->group, s->n - from), b, panel * 2 * TILE,
             tiles_of(p, panel), p->y + (trial * s->n + from) * s->ho * s->wo * s->o);
  }
  _tile_release();
}

/* Maps (x [trials, n, h, w, c], kernel [trials, kh, kw, c, o]) to y [trials, n, ho, wo, o]. */
XLA_FFI_Error* multiply_windows(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  const XLA_FFI_Buffer *x = frame->args.args[0], *kernel = frame->args.args[1];
  const XLA_FFI_Buffer* y = frame->rets.rets[0];
  const int64_t *k = kernel->dims, *geometry = ((XLA_FFI_Array*)frame->attrs.attrs[0])->data;
  Product p = {.s = shape(x->dims, k[1], k[2], y->dims[4], geometry, NARROW), .x = x->data,
               .kernel = kernel->data, .y = y->data, .x_stride = trial_stride(x),
               .kernel_stride = trial_stride(kernel)};
  const Shape* s = &p.s;
  long trials = y->dims[0], one = s->hp * s->wp * s->wide;
  p.panels = parts(s->o, 2 * TILE), p.panel = s->rows * parts(s->deep, DEPTH) * 4 * BLOCK;
  /* each group reads the whole kernel, so groups are as large as the kernel asks for */
  long size = least(LARGE, most(CACHE, p.panels * p.panel * sizeof(bf16) / 2));
  p.group = size / (most(one * 2 * sizeof(bf16), s->ho * s->wo * s->o * sizeof(float)));
  p.group = least(p.group, parts(s->n * trials, 2 * threads_of(frame)));
  p.group = most(1, least(p.group, s->n)), p.groups = parts(s->n, p.group);
  p.plane = parts(staged(s, p.group), DEPTH) * DEPTH;
  double work = trials * s->n * s->ho * s->wo * s->rows * s->deep * s->o * MULTIPLYING;
  double packing = trials * s->rows * s->deep * s->o * STAGING;
  if (s->rows * s->deep * s->o > s->n * one || trials * s->n * one * STAGING < 2 * WAKING) {
    long staged_trials = p.x_stride ? trials : 1;
    p.planes = workspace(ALL_A, staged_trials * p.groups * 2 * p.plane * sizeof(bf16));
    share(frame, stage_group, &p, staged_trials * p.groups, staged_trials * s->n * one * STAGING);
    share(frame, multiply_panel, &p, trials * p.panels, work + packing);
  } else {
    long packed_trials = p.kernel_stride ? trials : 1;
    p.packed = workspace(ALL_B, packed_trials * p.panels * p.panel * sizeof(bf16));
    share(frame, pack_panel, &p, packed_trials * p.panels, packing);
    share(frame, multiply_group, &p, trials * p.groups, work + trials * s->n * one * STAGING);
  }
  return NULL;
}
