// SPDX-License-Identifier: Apache-2.0
// A program that touches no device. Under the engine it must not be able to tell.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void handler(int number) {
  (void)number;
}

static unsigned count_entries(const char* path) {
  unsigned count = 0;
  DIR* directory = opendir(path);
  if (directory == NULL) return 0;
  while (readdir(directory) != NULL) count++;
  closedir(directory);
  return count;
}

int main(int argc, char** argv) {
  (void)argc;
  printf("threads %u\n", count_entries("/proc/self/task") - 2);
  printf("descriptors %u\n", count_entries("/proc/self/fd") - 2);
  struct sigaction action = {.sa_handler = handler}, seen;
  sigaction(SIGUSR1, &action, NULL);
  sigaction(SIGUSR1, NULL, &seen);
  printf("handler %s\n", seen.sa_handler == handler ? "mine" : "not mine");
  sigaction(SIGSEGV, NULL, &seen);
  printf("fault handler %s\n", seen.sa_handler == SIG_DFL ? "default" : "not default");
  printf("random %ld\n", random());
  // The ways libc itself starts programs.
  fflush(stdout);
  if (system("echo from a shell; exit 3") != 3 << 8) return 1;
  const int null = open("/dev/null", O_RDWR);
  void* page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(page, 4096, PROT_READ);
  madvise(page, 4096, MADV_DONTNEED);
  munmap(page, 4096);
  close(null);
  errno = 0;
  if (open("/nonexistent", O_RDONLY) != -1 || errno != ENOENT) return 2;
  printf("preload %s\n", getenv("LD_PRELOAD") != NULL && argv[1] != NULL ? "kept" : "-");
  return 0;
}
