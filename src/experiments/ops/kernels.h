/* Common parts of the operations in C: vectors, a matrix product in registers, threads, and XLA's calls.
 *
 * Everything is exact float32, in the compiler's portable vectors, as long as the processor's: AVX2, AVX-512, NEON.
 * Arrays have a first axis of independent trials, that of vmap; one whose length there is 1 belongs to all trials.
 */
#pragma once

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

/* Numbers of a vector. A block of results stays in registers, of which there are 16 or 32: ROWS rows of two
 * vectors, or ROWS_OF_ONE rows of one. Tests try other processors' vectors by LANES_OF. */
#if defined(LANES_OF)
enum { LANES = LANES_OF, ROWS = 6, ROWS_OF_ONE = 8 };
#elif defined(__AVX512F__)
enum { LANES = 16, ROWS = 12, ROWS_OF_ONE = 12 };
#elif defined(__aarch64__)
enum { LANES = 4, ROWS = 12, ROWS_OF_ONE = 12 };
#else
enum { LANES = 8, ROWS = 6, ROWS_OF_ONE = 8 };
#endif
enum {
  MOST_ROWS = 12,    /* of a block */
  WIDTH = 2 * LANES, /* columns of a block */
  WAKING = 30000,    /* nanoseconds of work that are worth waking a thread for */
};

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }
INLINE long parts(long all, long each) { return (all + each - 1) / each; }
INLINE long round_up(long count, long to) { return parts(count, to) * to; }

INLINE Vector fill(float x) { return x - (Vector){0}; }
INLINE Vector load(const float* from) { return *(const Unaligned*)from; }
INLINE void store(float* to, Vector x) { *(Unaligned*)to = x; }

/* Copies fewer numbers than a vector has; copies of constant size are single instructions. */
INLINE void copy_some(float* to, const float* from, long count) {
  long done = 0;
#pragma GCC unroll 4
  for (int size = LANES / 2; size > 0; size /= 2)
    if (count & size) memcpy(to + done, from + done, size * sizeof *to), done += size;
}

/* The first `count` numbers of a vector; the others are 0. */
INLINE Vector load_some(const float* from, long count) {
  if (count >= LANES) return load(from);
  float some[LANES] = {0};
  if (count > 0) copy_some(some, from, count);
  return load(some);
}

INLINE void store_some(float* to, Vector x, long count) {
  if (count >= LANES) return store(to, x);
  float some[LANES];
  store(some, x);
  if (count > 0) copy_some(to, some, count);
}

/* ---- A matrix product in registers ---------------------------------------------------------- */

/* Where a run of products begins: in the rows of the first factor, and in the second factor. */
typedef struct {
  long a, b;
} Piece;

/* Adds up out[i][j] = sum over pieces p and k < deep of row[i][p.a + k step] * b[p.b + k vectors LANES + j].
 *
 * Args:
 *   rows, vectors: constants; the block's size.
 *   adjacent: constant; row[i] is row[0] + i, which spares the processor its many addresses.
 *   add: the sums go on from what is in `out`.
 *   live, columns: only so many rows and columns are read from and written to `out`, whose rows are `line`
 *     floats apart. */
INLINE void block_of(const int rows, const int vectors, const int adjacent, const float* const* row,
                     const Piece* piece, long pieces, long deep, long step, const float* b, float* out, long line,
                     long live, long columns, int add) {
  Vector sum[MOST_ROWS][2];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++)
      sum[i][j] = add && i < live ? load_some(out + i * line + j * LANES, columns - j * LANES) : fill(0);
  for (const Piece* end = piece + pieces; piece < end; piece++) {
    const float *right = b + piece->b, *left[MOST_ROWS];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) left[i] = row[adjacent ? 0 : i] + piece->a;
    for (long k = 0, at = 0; k < deep; k++, at += step, right += vectors * LANES) {
      Vector column[2];
#pragma GCC unroll 2
      for (int j = 0; j < vectors; j++) column[j] = load(right + j * LANES);
#pragma GCC unroll 16
      for (int i = 0; i < rows; i++) {
        Vector factor = fill(adjacent ? left[0][at + i] : left[i][at]);
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) sum[i][j] += factor * column[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++)
      if (i < live) store_some(out + i * line + j * LANES, sum[i][j], columns - j * LANES);
}

/* The rows of a block of one or two vectors, and its sums as above. */
INLINE long rows_of(long vectors) { return vectors == 2 ? ROWS : ROWS_OF_ONE; }

INLINE void block(long vectors, int adjacent, const float* const* row, const Piece* piece, long pieces, long deep,
                  long step, const float* b, float* out, long line, long live, long columns, int add) {
  if (vectors == 2 && adjacent)
    block_of(ROWS, 2, 1, row, piece, pieces, deep, step, b, out, line, live, columns, add);
  else if (vectors == 2)
    block_of(ROWS, 2, 0, row, piece, pieces, deep, step, b, out, line, live, columns, add);
  else if (adjacent)
    block_of(ROWS_OF_ONE, 1, 1, row, piece, pieces, deep, step, b, out, line, live, columns, add);
  else
    block_of(ROWS_OF_ONE, 1, 0, row, piece, pieces, deep, step, b, out, line, live, columns, add);
}

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

static inline void help(void* job) { take(job), leave(job); }

static inline int failed(const XLA_FFI_CallFrame* frame, XLA_FFI_Error* error) {
  if (!error) return 0;
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  frame->api->XLA_FFI_Error_Destroy(&args);
  return 1;
}

static inline long threads_of(const XLA_FFI_CallFrame* frame) {
  int64_t count = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &count};
  return failed(frame, frame->api->XLA_FFI_ThreadPool_NumThreads(&args)) ? 1 : count;
}

INLINE void rest(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Does all units of work, on this thread and on idle threads of the device. It waits for units that another has
 * begun, but never for a thread to start, as XLA promises none. No more threads are woken than have WAKING of the
 * `nanoseconds` each that all units take together, about. */
static inline void share(const XLA_FFI_CallFrame* frame, Work* work, const void* context, long units,
                         double nanoseconds) {
  long helpers = least(least(threads_of(frame), units), (long)(nanoseconds / WAKING)) - 1;
  Job* job = malloc(sizeof *job);
  if (!job) abort();
  job->work = work, job->context = context, job->units = units;
  atomic_init(&job->next, 0), atomic_init(&job->left, units), atomic_init(&job->users, 1);
  for (long i = 0; i < helpers; i++) {
    atomic_fetch_add(&job->users, 1);
    XLA_FFI_ThreadPool_Schedule_Args args = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help, job};
    if (failed(frame, frame->api->XLA_FFI_ThreadPool_Schedule(&args))) leave(job);
  }
  take(job);
  for (long turns = 0; atomic_load(&job->left) > 0; turns++) turns < 2000 ? rest() : (void)sched_yield();
  leave(job);
}

/* Returns memory of at least `size` bytes, which the thread holds from call to call; there are 8 places for it. */
static void* workspace(int place, size_t size) {
  static _Thread_local struct {
    void* at;
    size_t size;
  } slots[8];
  if (slots[place].size < size) {
    free(slots[place].at);
    slots[place].size = round_up(size, 4096);
    slots[place].at = aligned_alloc(4096, slots[place].size);
    if (!slots[place].at) abort();
  }
  return slots[place].at;
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
