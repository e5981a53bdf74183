/* Products by the matrix units (AMX) of a processor, for those who ask for less than float32.
 *
 * The units multiply bfloat16. A float is split into a high and a low part, two bfloat16, exact to 2^-17 of it in
 * sum. A product of two floats is the sum of three, high high + high low + low high, added in float32 (Henry, Tang &
 * Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations", 2019). One
 * is enough for numbers that are bfloat16 already.
 */
#pragma once

#include "kernels.h"
#include <sys/syscall.h>
#include <unistd.h>

#if defined(TILES_IN_C) /* tests compute tiles in C on any processor */
enum { HAS_TILES = 1 };
#elif defined(__AMX_BF16__) && defined(__AVX512F__) && !defined(LANES_OF)
#include <immintrin.h>
enum { HAS_TILES = 1 };
#else /* they are compiled, but never used */
enum { HAS_TILES = 0 };
#define _tile_zero(t)
#define _tile_loadd(t, from, bytes) (void)(from)
#define _tile_stored(t, to, bytes) (void)(to), (void)(bytes)
#define _tile_dpbf16ps(sum, left, right)
#define _tile_loadconfig(tiles) (void)(tiles)
#define _tile_release() (void)0
#endif

enum {
  TILE = LANES,         /* rows and columns of a tile of results: 16 where there are any */
  DEPTH = 2 * LANES,    /* products that a unit adds up at once */
  BLOCK = TILE * DEPTH, /* numbers of a tile of factors */
};

typedef uint16_t bf16; /* the bits of a bfloat16 */
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint32_t LooseBits __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

/* Returns 1 if there are units and the system, as Linux must be asked to, lets them be used. */
int has_tiles(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
#if defined(__linux__) && defined(__x86_64__) && !defined(TILES_IN_C)
  return HAS_TILES && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#endif
  return HAS_TILES;
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

/* The nearest bfloat16, in the upper half of each number's bits. */
INLINE Bits rounded(Vector x) { return ((Bits)x + 0x7fff + (((Bits)x >> 16) & 1)) & 0xffff0000; }

/* Packs a second factor: 32 rows, of which so many count, times 16 columns, in pairs of rows; high, low. */
static inline void pack_tile(const float* const* row, long rows, long from, long columns, bf16* to) {
  for (long r = 0; r < DEPTH; r += 2, to += DEPTH) {
    Vector a = r < rows ? load_some(row[r] + from, columns) : fill(0);
    Vector b = r + 1 < rows ? load_some(row[r + 1] + from, columns) : fill(0);
    Bits high_a = rounded(a), high_b = rounded(b);
    *(LooseBits*)to = high_a >> 16 | high_b;
    *(LooseBits*)(to + BLOCK) = rounded(a - (Vector)high_a) >> 16 | rounded(b - (Vector)high_b);
  }
}

/* Packs a first factor from its 32 columns, of which so many count, times 16 rows. */
static inline void pack_transposed_tile(const float* const* column, long columns, long from, long rows, bf16* to) {
  bf16 pairs[2 * BLOCK] __attribute__((aligned(64)));
  pack_tile(column, columns, from, rows, pairs);
  for (long part = 0; part < 2 * BLOCK; part += BLOCK)
    for (long i = 0; i < TILE; i++)
      for (long k = 0; k < TILE; k++) memcpy(to + part + i * DEPTH + 2 * k, pairs + part + k * DEPTH + 2 * i, 4);
}

/* Packs a first factor: 32 rows of pieces, each rounded up to whole depths: [depths][2 tiles][high, low]. */
static inline void pack_rows(const float* const* row, const Piece* piece, long pieces, long deep, bf16* to) {
  for (const Piece* end = piece + pieces; piece < end; piece++)
    for (long k = 0; k < deep; k += DEPTH, to += 4 * BLOCK)
      for (long r = 0; r < 2 * TILE; r++)
        for (long i = 0; i < DEPTH; i += TILE) {
          Vector x = load_some(row[r] + piece->a + k + i, deep - k - i);
          Bits high = rounded(x), low = rounded(x - (Vector)high);
          bf16* at = to + r / TILE * 2 * BLOCK + r % TILE * DEPTH + i;
          for (long j = 0; j < TILE; j++) at[j] = high[j] >> 16, at[BLOCK + j] = low[j] >> 16;
        }
}

/* Multiplies 32 rows by one or two tiles of columns, packed as [depths][tiles][high, low], to out [32][32]. */
static inline void multiply_tiles(const bf16* a, const bf16* b, long depths, int two, int products, float* out) {
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (long d = 0; d < depths; d++, a += 4 * BLOCK, b += 2 * BLOCK * (1 + two))
    for (int low = 0; low < products; low++) { /* of neither factor, of the first, of the second */
      const bf16 *left = a + (low == 1) * BLOCK, *right = b + (low == 2) * BLOCK;
      _tile_loadd(4, left, 64); _tile_loadd(5, left + 2 * BLOCK, 64); _tile_loadd(6, right, 64);
      _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(2, 5, 6);
      if (two) { _tile_loadd(7, right + 2 * BLOCK, 64); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(3, 5, 7); }
    }
  const long line = WIDTH * sizeof *out;
  float* below = out + TILE * WIDTH;
  _tile_stored(0, out, line); _tile_stored(1, out + TILE, line);
  _tile_stored(2, below, line); _tile_stored(3, below + TILE, line);
}
