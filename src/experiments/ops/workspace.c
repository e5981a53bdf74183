/* What all operations share: working memory of threads, and the right to use matrix units. */
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels.h"

static _Thread_local struct {
  void* at;
  size_t size;
} slots[8];

void* workspace(int place, size_t size) {
  if (slots[place].size < size) {
    free(slots[place].at);
    slots[place].size = round_up(size, 4096);
    slots[place].at = aligned_alloc(4096, slots[place].size);
    if (!slots[place].at) abort();
  }
  return slots[place].at;
}

/* Returns 1 if operations know matrix units, and the system, as Linux must be asked to, lets them be used. */
int has_tiles(void) {
#if defined(TILES_IN_C)
  return 1;
#elif defined(HAS_TILES)
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
  return 0;
#endif
}
