// SPDX-License-Identifier: Apache-2.0
// What a process charged to its user goes with it, however it ends; two that live share the limit.
#define _GNU_SOURCE
#include <signal.h>

#include "give_up_lock.h"
#include "iommufd_client.h"

enum { kLimit = 16, kPages = 64 };

struct client {
  int fd;
  uint32_t ioas;
  uint64_t at;
};
static struct client begin(void) {
  struct client c = {.fd = open("/dev/iommu", O_RDWR), .at = kAperture};
  REQUIRE(c.fd >= 0);
  c.ioas = ioas_of(c.fd);
  device_on(c.fd, c.ioas);
  return c;
}
static int map_more(struct client* c, unsigned pages) {
  uint8_t* const from =
      mmap(NULL, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(from != MAP_FAILED);
  memset(from, 1, pages * kPage);
  if (map_at(c->fd, c->ioas, from, pages * kPage, c->at) != 0) return errno;
  c->at += pages * kPage;
  return 0;
}
static void map_all(void) {
  struct client c = begin();
  REQUIRE(map_more(&c, kLimit + 1) == ENOMEM);
  for (int i = 0; i < kLimit / 2; ++i) REQUIRE(map_more(&c, 2) == 0);
  REQUIRE(map_more(&c, 1) == ENOMEM);
}

enum end { kReturn, kExit, kExitAtOnce, kExec, kExecOfAnother, kTerm, kKill, kEnds };

// Of two processes at once.
static void share(void) {
  int up[2], down[2];
  REQUIRE(pipe(up) == 0 && pipe(down) == 0);
  char byte = 0;
  const pid_t child = fork();
  if (child == 0) {
    struct client c = begin();
    REQUIRE(map_more(&c, 10) == 0);
    REQUIRE(write(up[1], &byte, 1) == 1);
    for (;;) pause();
  }
  REQUIRE(read(up[0], &byte, 1) == 1);
  struct client c = begin();
  REQUIRE(map_more(&c, 7) == ENOMEM);
  REQUIRE(map_more(&c, 6) == 0);
  REQUIRE(map_more(&c, 1) == ENOMEM);
  const pid_t heir = fork();  // is not charged for what its parent has mapped
  if (heir == 0) {
    struct client own = begin();
    REQUIRE(map_more(&own, 1) == ENOMEM);
    REQUIRE(kill(child, SIGKILL) == 0);
    REQUIRE(read(down[0], &byte, 1) == 1);
    REQUIRE(map_more(&own, 10) == 0);
    REQUIRE(map_more(&own, 1) == ENOMEM);
    _exit(0);
  }
  REQUIRE(waitpid(child, NULL, 0) == child);
  REQUIRE(write(down[1], &byte, 1) == 1);
  ends_well(heir);
  REQUIRE(map_more(&c, 10) == 0);
  REQUIRE(unmap_at(c.fd, c.ioas, 0, ~0ull) == 0);
  close(c.fd);
}

int main(int count, char** words) {
  alarm(30);
  if (count > 1) {
    map_all();
    return 0;
  }
  REQUIRE(give_up_lock(kLimit * kPage) == 0);
  share();
  for (enum end end = kReturn; end != kEnds; ++end) {
    const pid_t child = fork();
    if (child == 0) {
      map_all();
      if (end == kReturn) return 0;
      if (end == kExit) exit(0);
      if (end == kExitAtOnce) _exit(0);
      if (end == kExec) execl("/proc/self/exe", words[0], "more", NULL);
      if (end == kExecOfAnother) execlp("true", "true", NULL);
      if (end == kTerm) raise(SIGTERM);
      if (end == kKill) raise(SIGKILL);
      _exit(9);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(status == (end == kTerm ? SIGTERM : end == kKill ? SIGKILL : 0));
  }
  map_all();
  puts("done");
  return 0;
}
