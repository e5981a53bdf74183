/* Adam's step for all weights in one pass through memory (Kingma & Ba 2015, algorithm 1). */
#include "units.h"

/* Nanoseconds that a weight takes a thread, about. */
static const double STEPPING = 1.5;

enum {
  PIECE = 1 << 13, /* weights that a thread takes at a time */
  SETTINGS = 9,    /* numbers that say how a kind of arrays is stepped, see `step` */
};

enum { WEIGHTS, GRADIENTS, MEANS, SQUARES, ROLES };

typedef struct {
  const float* from[ROLES];
  float* to[ROLES]; /* no gradients */
  long lane[ROLES]; /* from lane to lane of `from` */
  long size, pieces;  /* weights of a lane, and what they are cut into */
  long kind;          /* whose settings it has */
} Array;

typedef struct {
  const float* settings;
  long settings_lane, lanes, pieces;
  Array* array;
} Step;

static inline void step_some(const Array* a, const float* s, long lane, long at, __mmask16 live) {
  __m512 w = _mm512_maskz_loadu_ps(live, a->from[WEIGHTS] + lane * a->lane[WEIGHTS] + at);
  __m512 g = _mm512_maskz_loadu_ps(live, a->from[GRADIENTS] + lane * a->lane[GRADIENTS] + at);
  __m512 m = _mm512_maskz_loadu_ps(live, a->from[MEANS] + lane * a->lane[MEANS] + at);
  __m512 v = _mm512_maskz_loadu_ps(live, a->from[SQUARES] + lane * a->lane[SQUARES] + at);
  m = _mm512_fmadd_ps(_mm512_set1_ps(s[0]), m, _mm512_mul_ps(_mm512_set1_ps(s[1]), g));
  v = _mm512_fmadd_ps(_mm512_set1_ps(s[2]), v, _mm512_mul_ps(_mm512_set1_ps(s[3]), _mm512_mul_ps(g, g)));
  __m512 root = _mm512_sqrt_ps(_mm512_mul_ps(v, _mm512_set1_ps(s[4])));
  __m512 direction = _mm512_div_ps(m, _mm512_add_ps(root, _mm512_set1_ps(s[5])));
  __m512 stepped = _mm512_fnmadd_ps(_mm512_set1_ps(s[6]), direction, w);
  stepped = _mm512_fnmadd_ps(_mm512_set1_ps(s[7]), w, stepped);
  at += lane * a->size;
  _mm512_mask_storeu_ps(a->to[WEIGHTS] + at, live, stepped);
  _mm512_mask_storeu_ps(a->to[MEANS] + at, live, m);
  _mm512_mask_storeu_ps(a->to[SQUARES] + at, live, v);
}

/* A piece of an array. Its settings are the decay of the mean and 1 less it, the same of the squares,
 * what squares are corrected by, epsilon, how far to go, the share of a weight that decays, and
 * whether to step at all. */
static void step(const void* what, long unit) {
  const Step* p = what;
  long lane = unit / p->pieces, piece = unit % p->pieces, index = 0;
  for (; piece >= p->array[index].pieces; index++) piece -= p->array[index].pieces;
  const Array* a = &p->array[index];
  const float* s = p->settings + lane * p->settings_lane + a->kind * SETTINGS;
  long at = piece * PIECE, end = least(a->size, at + PIECE);
  if (s[8] == 0) {
    for (int i = 0; i < ROLES; i++) {
      const float* from = a->from[i] + lane * a->lane[i] + at;
      float* to = a->to[i] + lane * a->size + at;
      if (a->to[i] && from != to) memcpy(to, from, (end - at) * sizeof *to);
    }
    return;
  }
  for (; at + 16 <= end; at += 16) step_some(a, s, lane, at, 0xffff);
  if (at < end) step_some(a, s, lane, at, first(end - at));
}

/* (settings [lanes, kinds, 9], then all weights, all gradients, all means of them and all means of
 * their squares, each [lanes, ...]) to weights, means and means of squares, in their places; where
 * the settings are [kinds, 9] there are no lanes. The options are the kind of each array. */
XLA_FFI_Error* adam_step(XLA_FFI_CallFrame* frame) {
  if (asks_for_version(frame)) return NULL;
  const XLA_FFI_Buffer* settings = frame->args.args[0];
  const XLA_FFI_Array* kinds = frame->attrs.attrs[0];
  long axes = settings->rank - 2, count = kinds->size; /* of lanes; of arrays */
  Step p = {.settings = settings->data, .settings_lane = axes ? lane_size(settings) : 0, .lanes = 1};
  p.array = calloc(most(count, 1), sizeof *p.array);
  double weights = 0;
  for (long i = 0; i < count; i++) {
    Array* a = &p.array[i];
    for (int role = 0; role < ROLES; role++) {
      const XLA_FFI_Buffer* from = frame->args.args[1 + role * count + i];
      a->from[role] = from->data, a->lane[role] = axes ? lane_size(from) : 0;
    }
    const XLA_FFI_Buffer* to = frame->rets.rets[i];
    a->to[WEIGHTS] = to->data, a->to[MEANS] = ((XLA_FFI_Buffer*)frame->rets.rets[count + i])->data;
    a->to[SQUARES] = ((XLA_FFI_Buffer*)frame->rets.rets[2 * count + i])->data;
    if (axes) p.lanes = to->dims[0];
    a->size = 1, a->kind = ((const int64_t*)kinds->data)[i];
    for (long j = axes; j < to->rank; j++) a->size *= to->dims[j];
    a->pieces = parts(a->size, PIECE), p.pieces += a->pieces, weights += p.lanes * a->size;
  }
  share(frame, step, &p, p.lanes * p.pieces, weights * STEPPING);
  free(p.array);
  return NULL;
}
