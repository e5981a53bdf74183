/* Images as the matrix units read the windows that move over them.
 *
 * Everything is one operation: a window of kh x kw pixels moves over images, at stride 1. A dense
 * layer is a window of one pixel on images of one. Images are staged: split into their high and low
 * parts, in rows with zeros between them, so that one row of any window is contiguous in memory, and
 * the same tap of neighbouring windows is one matrix with overlapping rows. Nothing else is copied.
 * The zeros right of one row are those left of the next.
 */
#pragma once

#include "units.h"

/* About how many nanoseconds of a thread one number, and one product of two, take. */
static const double STAGING = 0.5, MULTIPLYING = 0.008;

enum { CACHE = 1 << 18 }; /* bytes of staged images at a time, which stay close to a core */

enum { ALL_A, ALL_B, ALL_SUMS, OWN_A, OWN_B, OWN_WINDOWS, OWN_PLACES }; /* working memory */

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
static inline Shape shape(const int64_t* inputs, long kh, long kw, long o, const int64_t* geometry,
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
static inline long staged(const Shape* s, long images) {
  return (images * s->hp * s->wp + s->rows * s->wp + s->columns + 4 * TILE + DEPTH) * s->wide + DEPTH;
}

static inline void clear(bf16* high, bf16* low, long from, long to) {
  if (to <= from) return;
  memset(high + from, 0, (to - from) * sizeof(bf16));
  memset(low + from, 0, (to - from) * sizeof(bf16));
}

static inline void stage_rows(const Shape* s, const float* x, long images, long hp, long wp, long wide,
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

static inline Windows short_windows(const Shape* s) {
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
static inline void join_short_rows(const Shape* s, const Windows* w, const bf16* from, long wp, bf16* to) {
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

static inline void stage_windows(const Shape* s, const float* x, long images, bf16* high, bf16* low,
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
static inline void stage(const Shape* s, const float* x, long images, bf16* high, bf16* low, long size) {
  if (s->joined)
    stage_windows(s, x, images, high, low, size);
  else
    stage_rows(s, x, images, s->hp, s->wp, s->wide, high, low, size);
}
