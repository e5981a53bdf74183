/* The parts of all operations that exist only once: working memory, and the right to use the units. */
#include <sys/syscall.h>
#include <unistd.h>

#include "units.h"

static _Thread_local struct {
  void* at;
  size_t size;
} slots[8];

void* workspace(int place, size_t size) {
  if (slots[place].size < size) {
    free(slots[place].at);
    slots[place].size = parts(size, 4096) * 4096;
    slots[place].at = aligned_alloc(4096, slots[place].size);
    if (!slots[place].at) abort();
  }
  return slots[place].at;
}

/* Requests the use of the units from the system, as Linux demands; returns 0 if it is granted. */
int ask_for_tiles(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) != 0;
}
