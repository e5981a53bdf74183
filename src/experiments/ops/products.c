/* Convolutions and matrix products in float32 by the matrix units of a processor.
 *
 * Everything is one operation: a window of kh x kw pixels moves over images, at stride 1. A dense
 * layer is a window of one pixel on images of one. Images are staged: split into their high and low
 * parts, in rows with zeros between them, so that one row of any window is contiguous in memory, and
 * the same tap of neighbouring windows is one matrix with overlapping rows. Nothing else is copied.
 * The zeros right of one row are those left of the next.
 */
#include "units.h"

/* About how many nanoseconds of a thread one number, and one product of two, take. */
static const double STAGING = 0.5, MULTIPLYING = 0.008;

enum {
  CACHE = 1 << 18, /* bytes of staged images at a time, which stay close to a core, */
  LARGE = 1 << 20, /*   or of those of a large kernel, which stay in its second-level cache */
  SLICES = 16,     /* most slices of a batch whose gradients are added up; not one per thread, so
                      that sums are the same on any processor */
  NARROW = 8,      /* widest images that are staged in rows of windows */
};

enum { ALL_A, ALL_B, ALL_SUMS, OWN_A, OWN_B, OWN_WINDOWS, OWN_PLACES }; /* working memory */

/* ---- Shapes and staging -------------------------------------------------------------------- */

typedef struct {
  long n, h, w, c, kh, kw, o; /* inputs [n, h, w, c], window [kh, kw], c to o channels */
  long top, bottom, left, right;
  int transposed;     /* the kernel is [kh, kw, o, c], and its window is read backwards */
  int is_bf16;        /* all numbers are bfloat16, so that their low parts are 0 */
  long ho, wo;        /* outputs [n, ho, wo, o] */
  long joined;        /* rows of a window that are staged as one place: see `shape` */
  long hp, wp, wide;  /* staged [n, hp, wp, wide]: places of `wide` numbers; a window has */
  long rows, columns; /*   rows x columns of them, */
  long deep;          /*   and a row of it `deep` numbers */
} Shape;

/* A window that fits a tile's depth is staged as one place. On images of at most `narrow` columns
 * each row of a window is one, as there the zeros between rows would cost more than the copies. */
static Shape shape(const int64_t* inputs, long kh, long kw, long o, const int64_t* geometry,
                   long narrow) {
  Shape s = {.n = inputs[1], .h = inputs[2], .w = inputs[3], .c = inputs[4], .kh = kh, .kw = kw, .o = o,
             .top = geometry[0], .bottom = geometry[1], .left = geometry[2], .right = geometry[3],
             .is_bf16 = geometry[4], .transposed = geometry[5]};
  s.ho = s.h + s.top + s.bottom - kh + 1, s.wo = s.w + s.left + s.right - kw + 1;
  s.hp = s.h + most(s.top, s.bottom), s.wp = s.w + most(s.left, s.right);
  s.wide = kw == 1 && s.c > DEPTH ? parts(s.c, DEPTH) * DEPTH : s.c, s.rows = kh, s.columns = kw, s.deep = kw * s.c;
  if (kh * kw > 1 && kh * s.deep <= DEPTH)
    s.joined = kh, s.hp = s.ho, s.wp = s.wo, s.wide = DEPTH, s.rows = s.columns = 1, s.deep *= kh;
  else if (kw > 1 && s.w <= narrow)
    s.joined = 1, s.wp = s.wo, s.wide = s.deep, s.columns = 1;
  return s;
}

/* Numbers in a plane of so many staged images, with all that tiles read beyond the last place. */
static long staged(const Shape* s, long images) {
  return (images * s->hp * s->wp + s->rows * s->wp + s->columns + 4 * TILE + DEPTH) * s->wide + DEPTH;
}

static void clear(bf16* high, bf16* low, long from, long to) {
  if (to <= from) return;
  memset(high + from, 0, (to - from) * sizeof(bf16));
  memset(low + from, 0, (to - from) * sizeof(bf16));
}

static void stage_rows(const Shape* s, const float* x, long images, long hp, long wp, long wide,
                       bf16* high, bf16* low, long size) {
  long runs = wide == s->c ? 1 : s->w, run = s->w * s->c / runs, at = 0;
  for (long image = 0; image < images; image++)
    for (long i = 0; i < s->h; i++)
      for (long j = 0; j < runs; j++, x += run) {
        long to = ((image * hp + i + s->top) * wp + s->left + j) * wide;
        clear(high, low, at, to);
        split_row(x, high + to, low + to, run);
        at = to + run;
      }
  clear(high, low, at, size);
}

/* Windows of up to eight rows of up to eight numbers: eight numbers of each row make all the windows
 * that lie in them. */
typedef struct {
  long count;
  __m512i from[8]; /* which of 8 x 8 numbers a window consists of */
  __mmask32 live;
} Windows;

static Windows short_windows(const Shape* s) {
  long row = s->kw * s->c, all = s->joined * row;
  Windows w = {.count = 1 + (8 - row) / s->c, .live = all == DEPTH ? ~0u : (1u << all) - 1};
  uint16_t from[8][DEPTH] = {{0}};
  for (long i = 0; i < w.count; i++)
    for (long k = 0; k < s->joined; k++)
      for (long m = 0; m < row; m++) from[i][k * row + m] = k * 8 + m + i * s->c;
  memcpy(w.from, from, sizeof from);
  return w;
}

/* Writes a row of windows as places of DEPTH numbers, one behind the other. */
static void join_short_rows(const Shape* s, const Windows* w, const bf16* from, long wp, bf16* to) {
  for (long j = 0; j < s->wp; j += w->count, from += w->count * s->c) {
    __m512i upper = _mm512_setzero_si512(), lower = upper;
    for (long k = 0; k < s->joined; k++) {
      __m128i row = _mm_loadu_si128((void*)(from + k * wp * s->c));
      if (k < 4)
        upper = _mm512_mask_broadcast_i32x4(upper, 15 << 4 * k, row);
      else
        lower = _mm512_mask_broadcast_i32x4(lower, 15 << 4 * (k - 4), row);
    }
    for (long i = 0; i < least(w->count, s->wp - j); i++, to += DEPTH)
      _mm512_storeu_si512(to, _mm512_maskz_permutex2var_epi16(w->live, upper, w->from[i], lower));
  }
}

static void stage_windows(const Shape* s, const float* x, long images, bf16* high, bf16* low,
                          long size) {
  long hp = s->h + most(s->top, s->bottom), wp = s->w + most(s->left, s->right), row = s->kw * s->c;
  long count = (hp + s->kh) * wp * s->c + row + DEPTH, at = 0;
  bf16 *h = workspace(OWN_WINDOWS, 2 * count * sizeof(bf16)), *l = h + count;
  int few = row <= 8 && s->joined > 1 && s->joined <= 8;
  Windows windows = few ? short_windows(s) : (Windows){0};
  for (long image = 0; image < images; image++) {
    stage_rows(s, x + image * s->h * s->w * s->c, 1, hp, wp, s->c, h, l, count);
    for (long i = 0; i < s->hp; i++) {
      const bf16 *h_row = h + i * wp * s->c, *l_row = l + i * wp * s->c;
      if (few) {
        join_short_rows(s, &windows, h_row, wp, high + at);
        join_short_rows(s, &windows, l_row, wp, low + at);
        at += s->wp * DEPTH;
        continue;
      }
      for (long j = 0; j < s->wp; j++, at += s->wide)
        for (long k = 0; k < s->joined; k++)
          for (long m = 0; m < row; m += DEPTH) { /* the next row overwrites the zeros behind it */
            long to = at + k * row + m, from = (j + k * wp) * s->c + m;
            __mmask32 live = row - m >= DEPTH ? ~0u : (1u << (row - m)) - 1;
            _mm512_storeu_si512(high + to, _mm512_maskz_loadu_epi16(live, h_row + from));
            _mm512_storeu_si512(low + to, _mm512_maskz_loadu_epi16(live, l_row + from));
          }
    }
  }
  clear(high, low, at, size);
}

/* Writes `images` images as a high and a low plane of `size` numbers each. */
static void stage(const Shape* s, const float* x, long images, bf16* high, bf16* low, long size) {
  if (s->joined)
    stage_windows(s, x, images, high, low, size);
  else
    stage_rows(s, x, images, s->hp, s->wp, s->wide, high, low, size);
}

/* ---- Outputs, and with a transposed kernel the gradient of the inputs ----------------------- */

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

/* ---- The gradient of the kernel ------------------------------------------------------------- */

/* For each tap, the sum over all places of the number that the tap sees times the gradient of the
 * output. The units add up along rows, so the images are transposed: a row for each of their
 * channels. The taps of a window see the same rows from different places on. The gradients of the
 * outputs stand in the places of the staged images, with zeros at borders, where no window begins. */
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

/* ---- The operations, as XLA calls them ------------------------------------------------------ */

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

/* Requests the use of the units from the system, as Linux demands; returns 0 if it is granted. */
int ask_for_tiles(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) != 0;
}
