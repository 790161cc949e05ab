// SPDX-License-Identifier: Apache-2.0
// A small VMM in plain C that gives its guest's memory away while most of it is absent: by a
// message, and by every way a program starts that inherits the descriptor. Whoever gets it must
// find every byte. Knows nothing but the public KVM ABI: who limits its memory is not told here.
//
//   giving_vmm WAY               all of it, then "whole"
//   giving_vmm check FD PAGES    the program that inherits it
#define _GNU_SOURCE
#include <spawn.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "small_vmm.h"

enum { kMemoryPages = 1024, kKeptPages = 640, kOther = 40 };

extern char** environ;
static const char* self;
static char* memory;
static int memory_fd;

static uint64_t word_of(size_t page, size_t at) {
  return (page * 512 + at + 1) * 0x9e3779b97f4a7c15U;
}
static void fill(void) {
  for (size_t page = 0; page < kMemoryPages; ++page) {
    for (size_t at = 0; at < 512; at += 1 + page % 3) {
      ((uint64_t*)(memory + page * kPage))[at] = word_of(page, at);
    }
  }
}
static int wrong_pages(const char* bytes, size_t pages) {
  int wrong = 0;
  for (size_t page = 0; page < pages; ++page) {
    const uint64_t* words = (const uint64_t*)(bytes + page * kPage);
    int right = 1;
    for (size_t at = 0; at < 512; at += 1 + page % 3) right &= words[at] == word_of(page, at);
    wrong += !right;
  }
  return wrong;
}

// By mapping and by reading: both show the file as it is.
static int check_file(int fd, size_t pages) {
  char* bytes = mmap(NULL, pages * kPage, PROT_READ, MAP_SHARED, fd, 0);
  if (bytes == MAP_FAILED) return 2;
  char last[kPage];
  const size_t page = pages - 1;
  if (pread(fd, last, kPage, (off_t)(page * kPage)) != kPage) return 3;
  if (((uint64_t*)last)[0] != word_of(page, 0)) return 4;
  const int wrong = wrong_pages(bytes, pages);
  if (wrong != 0) printf("%d of %zu pages are not what they were\n", wrong, pages);
  return wrong == 0 ? 0 : 1;
}

// Pages of the file that are in memory: what is absent is a hole for the kernel, who is asked past
// everybody.
static size_t pages_there(void) {
  struct stat now;
  long answer;
  __asm__ volatile("syscall"
                   : "=a"(answer)
                   : "a"(SYS_fstat), "D"((long)memory_fd), "S"(&now)
                   : "rcx", "r11", "memory");
  check(answer == 0, "fstat");
  return (size_t)now.st_blocks * 512 / kPage;
}
static void wait_until_most_is_absent(void) {
  for (int i = 0; i < 10000 && pages_there() > kKeptPages; ++i) usleep(1000);
  errno = 0;
  check(pages_there() <= kKeptPages, "most of the memory is absent");
}

static void make_memory(unsigned flags) {
  memory_fd = memfd_create("guest memory", flags);
  check(memory_fd >= 0 && ftruncate(memory_fd, kMemoryPages * kPage) == 0, "memfd_create");
  memory = mmap(NULL, kMemoryPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
  check(memory != MAP_FAILED, "mmap");
  slot(0, 0, kMemoryPages * kPage, memory);
  fill();
  wait_until_most_is_absent();
}

static char* arguments[5];
static char number[16];
static char pages_text[16];
static char* const* checking(int fd) {
  snprintf(number, sizeof(number), "%d", fd);
  snprintf(pages_text, sizeof(pages_text), "%d", kMemoryPages);
  arguments[0] = (char*)self;
  arguments[1] = "check";
  arguments[2] = number;
  arguments[3] = pages_text;
  return arguments;
}
static const char* command_for(int fd) {
  static char text[4200];
  snprintf(text, sizeof(text), "exec '%s' check %d %d", self, fd, kMemoryPages);
  return text;
}

static void ends_well(pid_t child) {
  int status = 0;
  check(child > 0 && waitpid(child, &status, 0) == child, "waitpid");
  errno = 0;
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the other one finds every byte");
}

static pid_t spawn(int fd, const posix_spawn_file_actions_t* actions) {
  pid_t child = -1;
  check(posix_spawn(&child, self, actions, NULL, checking(fd), environ) == 0, "posix_spawn");
  return child;
}

static int to_helper;
static pid_t helper;
// A process that was there before anything was opened, and gets the descriptor by a message.
static void start_helper(void) {
  int ends[2];
  check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  helper = fork();
  if (helper == 0) {
    char byte;
    char space[CMSG_SPACE(sizeof(int))];
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space)};
    close(ends[0]);
    if (recvmsg(ends[1], &message, 0) != 1) _exit(0);
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    _exit(check_file(fd, kMemoryPages));
  }
  close(ends[1]);
  to_helper = ends[0];
}
static void send_to_helper(void) {
  char byte = 1;
  char space[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec part = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space)};
  struct cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(head), &memory_fd, sizeof(int));
  check(sendmsg(to_helper, &message, 0) == 1, "sendmsg");
}

// The file as this process sees it in other ways than by its first mapping, and what allocates in
// it.
static void look_again(int flags) {
  const size_t bytes = kMemoryPages * kPage;
  make_memory(MFD_CLOEXEC);
  char* again = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, memory_fd, 0);
  check(again != MAP_FAILED, "a second mapping");
  if (flags == MAP_SHARED) check(pages_there() <= kKeptPages, "nothing came back for it");
  check(wrong_pages(again, kMemoryPages) == 0, "it shows every byte");
  usleep(20000);
  check(wrong_pages(again, kMemoryPages) == 0, "and goes on to");
  const int copies = (flags & MAP_TYPE) == MAP_PRIVATE;
  if (copies) check(munmap(again, bytes) == 0, "munmap");
  wait_until_most_is_absent();
  if (!copies) check(wrong_pages(again, kMemoryPages) == 0, "as often as it is asked");
}
// What is locked the kernel fills where it grows; so it does what it maps by number.
static void show_more(void) {
  enum { kShown = 8, kLocked = 1, kFew = 9 };
  make_memory(MFD_CLOEXEC);
  char* more = mmap(NULL, kLocked * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
  check(more != MAP_FAILED && mlock(more, kLocked * kPage) == 0, "mlock");
  wait_until_most_is_absent();
  more = mremap(more, kLocked * kPage, kFew * kPage, MREMAP_MAYMOVE);
  check(more != MAP_FAILED, "mremap");
  check(wrong_pages(more, kFew) == 0, "what has grown shows every byte");
  char* again = mremap(more, 0, (kFew + 4) * kPage, MREMAP_MAYMOVE);
  check(again != MAP_FAILED, "mremap of no size");
  check(wrong_pages(again, kFew + 4) == 0, "so does another one");
  check(munmap(more, kFew * kPage) == 0 && munmap(again, (kFew + 4) * kPage) == 0, "munmap");
  char* other = mmap(NULL, kMemoryPages * kPage, PROT_READ, MAP_SHARED, memory_fd, 0);
  check(other != MAP_FAILED, "mmap");
  wait_until_most_is_absent();
  check(syscall(SYS_remap_file_pages, other + kShown * kPage, (kMemoryPages - kShown) * kPage, 0, 0,
                0) == 0,
        "remap_file_pages");
  check(wrong_pages(other + kShown * kPage, kMemoryPages - kShown) == 0,
        "what is mapped by number shows every byte");
}
static void allocate(void) {
  const off_t bytes = kMemoryPages * kPage;
  make_memory(MFD_CLOEXEC);
  check(fallocate(memory_fd, 0, 0, bytes) == 0, "fallocate");
  check(wrong_pages(memory, kMemoryPages) == 0, "fallocate leaves every byte");
  wait_until_most_is_absent();
  check(posix_fallocate(memory_fd, 0, bytes) == 0, "posix_fallocate");
}

// A call on one page of the file brings that one back and not the file, whatever its name.
static void few_came(const char* call) {
  check(pages_there() <= kKeptPages, call);
}
static void use_pieces(void) {
  const off_t at = 500 * kPage;
  char page[kPage];
  struct iovec part = {page, kPage};
  int ends[2];
  loff_t place = at;
  make_memory(MFD_CLOEXEC);
  check(pipe(ends) == 0, "pipe");
  const int other = memfd_create("other", MFD_CLOEXEC);
  const uint64_t* word = (const uint64_t*)page;
  check(preadv(memory_fd, &part, 1, at) == kPage && *word == word_of(500, 0), "preadv");
  few_came("preadv");
  check(preadv2(memory_fd, &part, 1, at + kPage, 0) == kPage && *word == word_of(501, 0),
        "preadv2");
  few_came("preadv2");
  check(pwritev2(memory_fd, &part, 1, at + kPage, 0) == kPage, "pwritev2");
  few_came("pwritev2");
  check(syscall(SYS_preadv2, memory_fd, &part, 1L, at + 2 * kPage, 0L, 0) == kPage &&
            *word == word_of(502, 0),
        "preadv2 by number");
  few_came("preadv2 by number");
  check(splice(memory_fd, &place, ends[1], NULL, kPage, 0) == kPage, "splice");
  check(read(ends[0], page, kPage) == kPage && *word == word_of(500, 0), "splice");
  few_came("splice");
  place = at + 7 * kPage;
  check(syscall(SYS_splice, memory_fd, &place, ends[1], NULL, (long)kPage, 0L) == kPage, "splice");
  check(read(ends[0], page, kPage) == kPage && *word == word_of(507, 0), "splice by number");
  few_came("splice by number");
  place = at + 4 * kPage;
  check(sendfile(other, memory_fd, &place, kPage) == kPage, "sendfile");
  check(pread(other, page, kPage, 0) == kPage && *word == word_of(504, 0), "sendfile");
  few_came("sendfile");
  place = at + 5 * kPage;
  loff_t begin = 0;
  check(copy_file_range(memory_fd, &place, other, &begin, kPage, 0) == kPage, "copy_file_range");
  check(pread(other, page, kPage, 0) == kPage && *word == word_of(505, 0), "copy_file_range");
  few_came("copy_file_range");
  readahead(memory_fd, at, kPage);
  few_came("readahead");
  // Where a descriptor stands is asked of the whole file.
  check(lseek(memory_fd, at, SEEK_SET) == at, "lseek");
  check(sendfile(other, memory_fd, NULL, kPage) == kPage, "sendfile from where it stands");
  check(pread(other, page, kPage, kPage) == kPage && *word == word_of(500, 0), "sendfile");
  close(other);
}

// Streams read and write by calls of libc's own.
static void read_by_stream(void) {
  make_memory(MFD_CLOEXEC);
  char* bytes = malloc(kMemoryPages * kPage);
  FILE* stream = fdopen(dup(memory_fd), "r");
  check(bytes != NULL && stream != NULL, "fdopen");
  check(fread(bytes, kPage, kMemoryPages, stream) == kMemoryPages, "fread");
  check(wrong_pages(bytes, kMemoryPages) == 0, "a stream reads every byte");
  fclose(stream);
  free(bytes);
}

// Who copies the file without its holes copies every byte.
static void seek_through(void) {
  const off_t bytes = kMemoryPages * kPage;
  const off_t hole = 100 * kPage;
  const off_t behind = 110 * kPage;
  struct stat said;
  struct statx told;
  make_memory(MFD_CLOEXEC);
  check(lseek(memory_fd, 0, SEEK_HOLE) == bytes, "no hole before its end");
  check(lseek(memory_fd, 0, SEEK_CUR) == bytes, "where the descriptor stands");
  for (off_t at = 3; at < bytes; at += 977 * 13) {
    check(lseek(memory_fd, at, SEEK_DATA) == at, "data everywhere");
  }
  check(syscall(SYS_lseek, memory_fd, 7 * kPage, SEEK_HOLE) == bytes, "by number");
  check(lseek(memory_fd, bytes, SEEK_DATA) == -1 && errno == ENXIO, "nothing behind its end");
  check(fstat(memory_fd, &said) == 0 && said.st_blocks * 512 >= bytes, "blocks");
  check(statx(memory_fd, "", AT_EMPTY_PATH, STATX_BLOCKS, &told) == 0 &&
            told.stx_blocks * 512 >= (uint64_t)bytes,
        "blocks of statx");
  check(fallocate(memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, hole, behind - hole) == 0,
        "fallocate");
  check(lseek(memory_fd, 5, SEEK_HOLE) == hole, "the hole");
  check(lseek(memory_fd, hole + 5, SEEK_HOLE) == hole + 5, "in it");
  check(lseek(memory_fd, hole + 5, SEEK_DATA) == behind, "its end");
  check(lseek(memory_fd, behind, SEEK_HOLE) == bytes, "no other");
  fill();
}

static void give(const char* way) {
  const int is_vfork = strncmp(way, "vfork", 5) == 0;
  if (strcmp(way, "message") == 0) {
    make_memory(MFD_CLOEXEC);
    send_to_helper();
    ends_well(helper);
  } else if (strcmp(way, "spawn") == 0) {
    make_memory(0);
    ends_well(spawn(memory_fd, NULL));
  } else if (strcmp(way, "spawn-dup") == 0) {
    make_memory(MFD_CLOEXEC);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addclose(&actions, 0);
    posix_spawn_file_actions_adddup2(&actions, memory_fd, kOther);
    ends_well(spawn(kOther, &actions));
    posix_spawn_file_actions_destroy(&actions);
  } else if (strcmp(way, "dup") == 0) {
    make_memory(MFD_CLOEXEC);
    ends_well(spawn(dup(memory_fd), NULL));
  } else if (strcmp(way, "flag") == 0) {
    make_memory(MFD_CLOEXEC);
    check(fcntl(memory_fd, F_SETFD, 0) == 0, "F_SETFD");
    ends_well(spawn(memory_fd, NULL));
  } else if (strcmp(way, "system") == 0) {
    make_memory(0);
    check(system(command_for(memory_fd)) == 0, "system");
  } else if (strcmp(way, "popen") == 0) {
    make_memory(0);
    FILE* told = popen(command_for(memory_fd), "r");
    char line[64] = "";
    check(told != NULL && fgets(line, sizeof(line), told) != NULL, "popen");
    check(pclose(told) == 0 && strcmp(line, "checked\n") == 0, "popen");
  } else if (is_vfork) {
    make_memory(strcmp(way, "vfork") == 0 ? 0 : MFD_CLOEXEC);
    const pid_t child = vfork();
    if (child == 0) {
      const int other = strcmp(way, "vfork-dup") == 0;
      const int fd = other ? dup2(memory_fd, kOther) : memory_fd;
      if (strcmp(way, "vfork-number") == 0) {
        fcntl(memory_fd, F_SETFD, 0);
        syscall(SYS_execve, self, checking(fd), environ);
      }
      execv(self, checking(fd));
      _exit(9);
    }
    ends_well(child);
  } else if (strcmp(way, "exec") == 0) {
    make_memory(0);
    execv(self, checking(memory_fd));
    check(0, "execv");
  } else if (strcmp(way, "nothing") == 0) {
    // None of these gives it away, so it can be taken again.
    make_memory(MFD_CLOEXEC);
    check(system("exit 0") == 0, "system");
    fill();
    wait_until_most_is_absent();
    check(fcntl(memory_fd, F_SETFD, 0) == 0, "F_SETFD");
    check(execl("/nowhere", "nowhere", NULL) == -1 && errno == ENOENT, "execl of what is not");
    pid_t child;
    check(posix_spawn(&child, "/nowhere", NULL, NULL, checking(0), environ) == ENOENT,
          "posix_spawn of what is not");
    fill();
    wait_until_most_is_absent();
  } else if (strcmp(way, "mapped") == 0) {
    look_again(MAP_SHARED);
  } else if (strcmp(way, "copied") == 0) {
    look_again(MAP_PRIVATE);
  } else if (strcmp(way, "populated") == 0) {
    look_again(MAP_SHARED | MAP_POPULATE);
  } else if (strcmp(way, "populated-copy") == 0) {
    look_again(MAP_PRIVATE | MAP_POPULATE);
  } else if (strcmp(way, "more") == 0) {
    show_more();
  } else if (strcmp(way, "allocated") == 0) {
    allocate();
  } else if (strcmp(way, "pieces") == 0) {
    use_pieces();
  } else if (strcmp(way, "stream") == 0) {
    read_by_stream();
  } else if (strcmp(way, "sought") == 0) {
    seek_through();
  } else {
    check(0, "a way");
  }
  check(wrong_pages(memory, kMemoryPages) == 0, "nothing is lost here");
}

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc == 4 && strcmp(argv[1], "check") == 0) {
    const int answer = check_file(atoi(argv[2]), (size_t)atoi(argv[3]));
    if (answer == 0) printf("checked\n");
    return answer;
  }
  check(argc == 2, "argument: WAY");
  self = argv[0];
  start_helper();
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "open /dev/kvm");
  vm = ioctl(kvm, KVM_CREATE_VM, 0);
  check(vm >= 0, "KVM_CREATE_VM");
  give(argv[1]);
  printf("whole\n");
  return 0;
}
