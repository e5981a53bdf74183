/* Working memory of threads, which all operations share. */
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
