/* Common parts of the operations by the matrix units (AMX) of a processor.
 *
 * The units multiply bfloat16. A float is split into a high and a low part, two bfloat16; their sum is
 * exact to 2^-17 of it. A product of two floats is the sum of three products, high high + high low +
 * low high, which are added in float32 (Henry, Tang & Heinecke, "Leveraging the bfloat16 artificial
 * intelligence datatype for higher-precision computations", 2019). Errors are some 2^-17 of the
 * largest output. The low parts of numbers that are bfloat16 already are 0, so that one product is
 * enough.
 *
 * Arrays have a first axis of independent trials, that of vmap; where its length is 1 in one array,
 * that array belongs to all trials of the others.
 */
#pragma once

#include <immintrin.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

typedef uint16_t bf16; /* the bits of a bfloat16 */

enum {
  TILE = 16,            /* rows and columns of a tile of results */
  DEPTH = 32,           /* products that a unit adds up at once */
  BLOCK = TILE * DEPTH, /* numbers of a tile of factors */
  WAKING = 30000,       /* nanoseconds of work that are worth waking a thread for */
};

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long most(long a, long b) { return a > b ? a : b; }
static inline long parts(long all, long each) { return (all + each - 1) / each; }

/* ---- Units of work for all threads of the device ------------------------------------------- */

typedef void Work(const void* context, long unit);

typedef struct {
  Work* work;
  const void* context;
  long units;
  atomic_long next, left;
  atomic_int users; /* threads that may still read `next`; the last one frees the job */
} Job;

static inline void take(Job* job) {
  for (long unit; (unit = atomic_fetch_add(&job->next, 1)) < job->units;) {
    job->work(job->context, unit);
    atomic_fetch_sub(&job->left, 1);
  }
}

static inline void leave(Job* job) {
  if (atomic_fetch_sub(&job->users, 1) == 1) free(job);
}

static inline void help(void* job) {
  take(job);
  leave(job);
}

static inline int failed(const XLA_FFI_CallFrame* frame, XLA_FFI_Error* error) {
  if (!error) return 0;
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  frame->api->XLA_FFI_Error_Destroy(&args);
  return 1;
}

static inline long threads_of(const XLA_FFI_CallFrame* frame) {
  int64_t count = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL,
                                             frame->ctx, &count};
  return failed(frame, frame->api->XLA_FFI_ThreadPool_NumThreads(&args)) ? 1 : count;
}

/* Does all units of work, on this thread and on idle threads of the device. It waits for units that
 * another thread has begun, but never for a thread to start, as XLA promises none. `nanoseconds` is
 * about what all units take together; no more threads are woken than have WAKING of it each. */
static inline void share(const XLA_FFI_CallFrame* frame, Work* work, const void* context, long units,
                  double nanoseconds) {
  long helpers = least(least(threads_of(frame), units), (long)(nanoseconds / WAKING)) - 1;
  Job* job = malloc(sizeof *job);
  job->work = work, job->context = context, job->units = units;
  atomic_init(&job->next, 0), atomic_init(&job->left, units), atomic_init(&job->users, 1);
  for (long i = 0; i < helpers; i++) {
    atomic_fetch_add(&job->users, 1);
    XLA_FFI_ThreadPool_Schedule_Args args = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL,
                                             frame->ctx, help, job};
    if (failed(frame, frame->api->XLA_FFI_ThreadPool_Schedule(&args))) leave(job);
  }
  take(job);
  for (long turns = 0; atomic_load(&job->left) > 0; turns++)
    turns < 2000 ? _mm_pause() : (void)sched_yield();
  leave(job);
}

/* Returns memory of at least `size` bytes, which the thread holds from call to call; there are 8
 * places for it. */
__attribute__((visibility("hidden"))) void* workspace(int place, size_t size);

/* ---- High and low parts of vectors of 16 numbers -------------------------------------------- */

static inline __mmask16 first(long count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1;
}

static inline void split(__m512 x, __m256i* high, __m256i* low) {
  *high = (__m256i)_mm512_cvtneps_pbh(x);
  __m512i back = _mm512_slli_epi32(_mm512_cvtepu16_epi32(*high), 16);
  *low = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(x, _mm512_castsi512_ps(back)));
}

static inline void split_row(const float* x, bf16* high, bf16* low, long count) {
  for (long i = 0; i < count; i += 16) {
    __mmask16 live = first(count - i);
    __m256i h, l;
    split(_mm512_maskz_loadu_ps(live, x + i), &h, &l);
    _mm256_mask_storeu_epi16(high + i, live, h);
    _mm256_mask_storeu_epi16(low + i, live, l);
  }
}

/* a0 b0 a1 b1 ...: the order in pairs that the units read factors in */
static inline __m512i paired(__m256i a, __m256i b) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}

static inline __m512i joined(__m256i a, __m256i b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

/* Transposes 16 rows of 16 words. */
static inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

static inline void tiles_on(void) {
  struct __attribute__((packed, aligned(64))) {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } tiles = {.palette = 1};
  for (int i = 0; i < 8; i++) tiles.bytes[i] = 2 * DEPTH, tiles.rows[i] = TILE;
  __asm__ volatile("" ::: "memory"); /* the intrinsics do not say what they read */
  _tile_loadconfig(&tiles);
}

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
  x = _mm512_sub_ps(_mm512_setzero_ps(), x); /* max and min return their second operand if one is NaN */
  x = _mm512_max_ps(_mm512_set1_ps(-80), _mm512_min_ps(_mm512_set1_ps(80), x));
  __m512 q = exponential(x, &n);
  return inverse(_mm512_add_ps(one, _mm512_scalef_ps(_mm512_add_ps(one, q), n)));
}

/* (e^2x - 1) / (e^2x + 1), without cancellation near zero */
static inline __m512 hyperbolic_tangent(__m512 x) {
  __m512 one = _mm512_set1_ps(1), sign = _mm512_set1_ps(-0.0f), n;
  __m512 twice = _mm512_andnot_ps(sign, _mm512_add_ps(x, x));
  __m512 q = exponential(_mm512_min_ps(_mm512_set1_ps(20), twice), &n);
  __m512 e = _mm512_add_ps(_mm512_scalef_ps(q, n), _mm512_sub_ps(_mm512_scalef_ps(one, n), one));
  __m512 y = _mm512_mul_ps(e, inverse(_mm512_add_ps(e, _mm512_set1_ps(2))));
  return _mm512_or_ps(y, _mm512_and_ps(sign, x));
}

/* ---- Tiles of factors, and products of them -------------------------------------------------- */

/* Packs the second factor as the units read it: 32 rows, of which the first `rows` count, times 16
 * columns. */
static inline void pack_tile(const float* from, long stride, long rows, __mmask16 columns, bf16* to) {
  for (long r = 0; r < TILE; r++, from += 2 * stride) {
    __m256i h0, l0, h1, l1;
    _mm_prefetch(from + DEPTH * stride, _MM_HINT_T0);
    _mm_prefetch(from + (DEPTH + 1) * stride, _MM_HINT_T0);
    split(_mm512_maskz_loadu_ps(2 * r < rows ? columns : 0, from), &h0, &l0);
    split(_mm512_maskz_loadu_ps(2 * r + 1 < rows ? columns : 0, from + stride), &h1, &l1);
    _mm512_store_si512(to + r * DEPTH, paired(h0, h1));
    _mm512_store_si512(to + BLOCK + r * DEPTH, paired(l0, l1));
  }
}

/* Packs the second factor from its 16 columns. */
static inline void pack_columns(const float columns[TILE][DEPTH], bf16* to) {
  __m512i high[TILE], low[TILE];
  for (long j = 0; j < TILE; j++) {
    __m256i h0, l0, h1, l1;
    split(_mm512_loadu_ps(columns[j]), &h0, &l0);
    split(_mm512_loadu_ps(columns[j] + 16), &h1, &l1);
    high[j] = joined(h0, h1), low[j] = joined(l0, l1);
  }
  transpose(high), transpose(low);
  for (long r = 0; r < TILE; r++) {
    _mm512_store_si512(to + r * DEPTH, high[r]);
    _mm512_store_si512(to + BLOCK + r * DEPTH, low[r]);
  }
}

/* The layout of the first factor: rows are `wide` numbers apart and consist of `pieces`, each of
 * `deep` numbers and `down` from the one before; `is_bf16` if all low parts are 0. */
typedef struct {
  long wide, pieces, down, deep;
  int is_bf16;
} Rows;

/* Multiplies 32 rows by 32 columns, packed as [pieces][deep / 32][2 tiles][high, low], to
 * out [32][width]. */
static inline void two_by_two(Rows a, const bf16* high, const bf16* low, const bf16* b, float* out,
                              long width) {
  long bytes = a.wide * sizeof(bf16), next = TILE * a.wide, line = width * sizeof *out;
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (long piece = 0; piece < a.pieces; piece++, high += a.down, low += a.down)
    for (long k = 0; k < a.deep; k += DEPTH, b += 4 * BLOCK) {
      const bf16 *h = high + k, *l = low + k;
      if (a.is_bf16) {
        _tile_loadd(4, h, bytes); _tile_loadd(6, b, 64); _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 2 * BLOCK, 64); _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, h + next, bytes); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
        continue;
      }
      _tile_loadd(4, l, bytes); _tile_loadd(6, b, 64); _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + 2 * BLOCK, 64); _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, l + next, bytes); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(4, h, bytes); _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, h + next, bytes); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(6, b + BLOCK, 64); _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, b + 3 * BLOCK, 64); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(3, 5, 7);
    }
  _tile_stored(0, out, line); _tile_stored(1, out + TILE, line);
  _tile_stored(2, out + TILE * width, line); _tile_stored(3, out + TILE * width + TILE, line);
}

/* ---- Arguments of an operation, as XLA passes them ------------------------------------------ */

static inline int asks_for_version(XLA_FFI_CallFrame* frame) {
  __auto_type extension = frame->extension_start; /* its type is called differently in versions of XLA */
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}

/* Floats from trial to trial of an array; 0 if it belongs to all. */
static inline long trial_stride(const XLA_FFI_Buffer* array) {
  if (array->dims[0] == 1) return 0;
  long size = 1;
  for (long i = 1; i < array->rank; i++) size *= array->dims[i];
  return size;
}
