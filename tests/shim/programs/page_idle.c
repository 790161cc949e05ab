// SPDX-License-Identifier: Apache-2.0
// Which of its pages has a guest used? /proc/self/pagemap gives their frames,
// /sys/kernel/mm/page_idle/bitmap says which frames are idle.
#define _GNU_SOURCE
#include <sys/uio.h>

#include "machine.h"

static struct machine m;

// mov 0x200000, %rax; out %al, $0x10; jmp back
static const uint8_t kReadLoop[] = {0x48, 0x8b, 0x04, 0x25, 0x00, 0x00,
                                    0x20, 0x00, 0xe6, 0x10, 0xeb, 0xf4};
static const char kBitmap[] = "/sys/kernel/mm/page_idle/bitmap";
static const uint64_t kPresent = 1ull << 63, kFrame = (1ull << 55) - 1;

static uint64_t frame_of(int pagemap, const void* at) {
  uint64_t entry = 0;
  REQUIRE(pread(pagemap, &entry, 8, (off_t)((uintptr_t)at / kPage * 8)) == 8);
  return entry & kPresent ? entry & kFrame : 0;
}

static int is_idle(int bitmap, uint64_t frame) {
  uint64_t word = 0;
  REQUIRE(pread(bitmap, &word, 8, (off_t)(frame / 64 * 8)) == 8);
  return word >> frame % 64 & 1;
}

static void mark_idle(int bitmap, uint64_t frame) {
  const uint64_t word = 1ull << frame % 64;
  REQUIRE(pwrite(bitmap, &word, 8, (off_t)(frame / 64 * 8)) == 8);
}

static void open_both(int* bitmap, int* pagemap) {
  create_machine(&m, kReadLoop, sizeof kReadLoop);
  *bitmap = open(kBitmap, O_RDWR);
  *pagemap = open("/proc/self/pagemap", O_RDONLY);
  REQUIRE(*bitmap >= 0 && *pagemap >= 0);
}

static void used_pages(void) {
  int bitmap, pagemap;
  open_both(&bitmap, &pagemap);
  uint8_t* const used = m.memory + kData;
  uint8_t* const unused = m.memory + kData + kPage;
  used[0] = unused[0] = 1;
  REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
  const uint64_t frame = frame_of(pagemap, used), other = frame_of(pagemap, unused);
  REQUIRE(frame != 0 && other == frame + 1);
  REQUIRE(!is_idle(bitmap, frame));  // never marked
  mark_idle(bitmap, frame);
  mark_idle(bitmap, other);
  REQUIRE(is_idle(bitmap, frame) && is_idle(bitmap, other));
  REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
  REQUIRE(!is_idle(bitmap, frame));  // also where the processor knew its address
  REQUIRE(is_idle(bitmap, other));
  for (int i = 0; i < 100; ++i) {
    mark_idle(bitmap, frame);
    REQUIRE(is_idle(bitmap, frame));
    REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
    REQUIRE(!is_idle(bitmap, frame));
  }
  REQUIRE(is_idle(bitmap, other));
}

static void refusals(void) {
  int bitmap, pagemap;
  uint64_t words[2] = {0, 0};
  open_both(&bitmap, &pagemap);
  m.memory[kData] = 1;
  REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
  REFUSES(pread(bitmap, words, 8, 4), EINVAL);
  REFUSES(pread(bitmap, words, 4, 0), EINVAL);
  REFUSES(pwrite(bitmap, words, 12, 0), EINVAL);
  const off_t end = (off_t)(1ull << 60);
  REQUIRE(pread(bitmap, words, 8, end) == 0);
  REFUSES(pwrite(bitmap, words, 8, end), ENXIO);
  const off_t at = (off_t)(frame_of(pagemap, m.memory + kData) / 64 * 8);
  void* volatile nowhere = (void*)8;
  REFUSES(pread(bitmap, nowhere, 8, at), EFAULT);
  REQUIRE(pread(bitmap, words, 16, at) == 16);
  // With a position of its own.
  REQUIRE(lseek(bitmap, at, SEEK_SET) == at);
  REQUIRE(read(bitmap, words, 8) == 8 && lseek(bitmap, 0, SEEK_CUR) == at + 8);
  struct iovec parts[2] = {{words, 8}, {words + 1, 8}};
  REQUIRE(preadv(bitmap, parts, 2, at) == 16);
  const int read_only = open(kBitmap, O_RDONLY);
  REFUSES(pwrite(read_only, words, 8, at), EBADF);
  REFUSES(open("/proc/self/pagemap", O_RDWR), EACCES);
  REFUSES(pread(pagemap, words, 4, 0), EINVAL);
}

static uint64_t word_of(FILE* stream, off_t at) {
  uint64_t word = 0;
  REQUIRE(fseeko(stream, at, SEEK_SET) == 0 && fread(&word, 8, 1, stream) == 1);
  return word;
}

// What libc's streams show and write is what read and write do.
static void streams(void) {
  int bitmap, pagemap;
  open_both(&bitmap, &pagemap);
  m.memory[kData] = m.memory[kData + kPage] = 1;
  REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
  const off_t at = (off_t)((uintptr_t)(m.memory + kData) / kPage * 8);
  uint64_t wanted = 0;
  REQUIRE(pread(pagemap, &wanted, 8, at) == 8 && wanted << 9 != 0);
  FILE* const named = fopen("/proc/self/pagemap", "r");
  FILE* const opened = fdopen(open("/proc/self/pagemap", O_RDONLY), "rb");
  REQUIRE(named != NULL && opened != NULL);
  REQUIRE(word_of(named, at) == wanted && word_of(opened, at) == wanted);
  uint64_t again = 0;
  REQUIRE(pread(fileno(named), &again, 8, at) == 8 && again == wanted);
  const uint64_t frame = frame_of(pagemap, m.memory + kData);
  FILE* const idle = fopen(kBitmap, "r+");
  const uint64_t word = 1ull << frame % 64;
  REQUIRE(idle != NULL && fseeko(idle, (off_t)(frame / 64 * 8), SEEK_SET) == 0);
  REQUIRE(fwrite(&word, 8, 1, idle) == 1 && fflush(idle) == 0);
  REQUIRE(is_idle(bitmap, frame));
  REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
  REQUIRE((word_of(idle, (off_t)(frame / 64 * 8)) & word) == 0);
  REQUIRE(fclose(idle) == 0 && fclose(named) == 0);
  const int number = fileno(opened);
  REQUIRE(fclose(opened) == 0);
  REFUSES(close(number), EBADF);
  REQUIRE(fdopen(pagemap, "w") == NULL && errno == EINVAL);
  REQUIRE(fopen("/proc/self/pagemap", "w") == NULL && errno == EACCES);
}

// What is in no slot keeps what the kernel says of it.
static void other_memory(void) {
  int bitmap, pagemap;
  open_both(&bitmap, &pagemap);
  uint8_t* const other =
      mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(frame_of(pagemap, other) == 0);
  other[0] = 1;
  const uint64_t ours = frame_of(pagemap, m.memory + kCode);
  const uint64_t kernels = frame_of(pagemap, other);
  REQUIRE(ours >= 1ull << 44 && kernels < 1ull << 44);
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/pagemap", getpid());
  const int again = open(path, O_RDONLY);
  REQUIRE(frame_of(again, m.memory + kCode) == ours);
}

// Before a device is opened pagemap is the kernel's; the bitmap is there for those who look.
static void asleep(void) {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY);
  if (pagemap >= 0) REQUIRE(frame_of(pagemap, &m) < 1ull << 44);
  const int bitmap = open(kBitmap, O_RDWR);
  REQUIRE(bitmap >= 0 && access(kBitmap, R_OK | W_OK) == 0);
  const off_t at = (off_t)(1ull << 41);
  uint64_t word = 1;
  REQUIRE(pread(bitmap, &word, 8, at) == 8 && word == 0);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"used_pages", used_pages}, {"refusals", refusals}, {"other_memory", other_memory},
      {"asleep", asleep},         {"streams", streams},   {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}
