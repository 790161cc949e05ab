// SPDX-License-Identifier: Apache-2.0
// Type 1 charges the process that maps: with what it has locked itself, and without what another
// one of the same user has mapped.
#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>

#include "give_up_lock.h"
#include "vfio_client.h"

enum { kLimit = 16 };
#define TYPE "/sys/class/mdev_bus/dma-engine/mdev_supported_types/dma-engine-1/create"
static const char* const names[] = {"d0a5b652-825f-3413-9000-0000000000c0",
                                    "d0a5b652-825f-3413-9000-0000000000c1"};

static int container_with(int which) {
  char folder[128];
  snprintf(folder, sizeof folder, "/sys/bus/mdev/devices/%s", names[which]);
  const int container = open("/dev/vfio/vfio", O_RDWR), group = open(group_of(folder), O_RDWR);
  open_in_container(container, group, names[which]);
  return container;
}

int main(void) {
  alarm(30);
  REQUIRE(put(TYPE, names[0]) > 0 && put(TYPE, names[1]) > 0);
  REQUIRE(give_up_lock(kLimit * kPage) == 0);
  char* const at = memory_of(32 * kPage);
  memset(at, 1, 32 * kPage);
  int up[2];
  REQUIRE(pipe(up) == 0);
  char byte = 0;
  const pid_t other = fork();
  if (other == 0) {
    const int container = container_with(0);
    REQUIRE(map_dma(container, at, 0, 12 * kPage) == 0);
    REQUIRE(write(up[1], &byte, 1) == 1);
    for (;;) pause();
  }
  REQUIRE(read(up[0], &byte, 1) == 1);

  const int container = container_with(1);
  REFUSED(map_dma(container, at, 0, 17 * kPage), ENOMEM);
  REQUIRE(map_dma(container, at, 0, 12 * kPage) == 0);
  REFUSED(map_dma(container, at + 12 * kPage, 12 * kPage, 5 * kPage), ENOMEM);
  REQUIRE(mlock(at + 20 * kPage, 2 * kPage) == 0);
  REFUSED(map_dma(container, at + 12 * kPage, 12 * kPage, 3 * kPage), ENOMEM);
  REQUIRE(map_dma(container, at + 12 * kPage, 12 * kPage, 2 * kPage) == 0);
  REQUIRE(munlock(at + 20 * kPage, 2 * kPage) == 0);
  REQUIRE(map_dma(container, at + 14 * kPage, 14 * kPage, 2 * kPage) == 0);
  REFUSED(map_dma(container, at + 16 * kPage, 16 * kPage, kPage), ENOMEM);
  uint64_t bytes = 0;
  REQUIRE(unmap_dma(container, 0, 16 * kPage, 0, &bytes) == 0 && bytes == 16 * kPage);
  REQUIRE(map_dma(container, at, 0, 16 * kPage) == 0);
  REQUIRE(kill(other, SIGKILL) == 0 && waitpid(other, NULL, 0) == other);

  // The same pages in a second container cost a second time.
  const int second = container_with(0);
  REFUSED(map_dma(second, at, 0, kPage), ENOMEM);
  puts("done");
  return 0;
}
