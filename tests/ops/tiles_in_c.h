/* The matrix units of a processor in C, by which their code is tested on processors without them. */
#define TILES_IN_C
#define LANES_OF 16
#include <stdint.h>
#include <string.h>

static _Thread_local uint32_t tile_of_test[8][16][16];

static inline float upper_half(uint32_t bits) {
  float number;
  bits &= 0xffff0000;
  memcpy(&number, &bits, sizeof number);
  return number;
}

static inline void load_tile(int t, const void* from, long stride) {
  for (long r = 0; r < 16; r++) memcpy(tile_of_test[t][r], (const char*)from + r * stride, 64);
}

static inline void store_tile(int t, void* to, long stride) {
  for (long r = 0; r < 16; r++) memcpy((char*)to + r * stride, tile_of_test[t][r], 64);
}

static inline void multiply_tile(int c, int a, int b) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) {
      float sum;
      memcpy(&sum, &tile_of_test[c][i][j], sizeof sum);
      for (int k = 0; k < 16; k++) {
        uint32_t left = tile_of_test[a][i][k], right = tile_of_test[b][k][j];
        sum += upper_half(left << 16) * upper_half(right << 16) + upper_half(left) * upper_half(right);
      }
      memcpy(&tile_of_test[c][i][j], &sum, sizeof sum);
    }
}

#define _tile_zero(t) memset(tile_of_test[t], 0, sizeof tile_of_test[t])
#define _tile_loadd(t, from, stride) load_tile(t, from, stride)
#define _tile_stored(t, to, stride) store_tile(t, to, stride)
#define _tile_dpbf16ps(c, a, b) multiply_tile(c, a, b)
#define _tile_loadconfig(tiles) (void)(tiles)
#define _tile_release() (void)0
