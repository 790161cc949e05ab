// SPDX-License-Identifier: Apache-2.0
// The memory half of a VMM by somebody who has only the installed package: a slot over the
// program's own memory, bytes through it in both directions, and a refusal with the kernel's errno.
#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "stage2/address_space.h"

namespace {

constexpr std::size_t kSize = 16 * stagetwo::kPageSize;

int fail(const char* what) {
  std::printf("consumer: %s\n", what);
  return 1;
}

}  // namespace

int main() {
  void* memory = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return fail("no memory");
  auto guest = stagetwo::stage2::GuestMemory::create({});
  if (!guest) return fail("no guest memory");

  stagetwo::stage2::Region region;
  region.gpa = 0x100000;
  region.size = kSize;
  region.hva = reinterpret_cast<stagetwo::u64>(memory);
  if (!(*guest)->slots().set_region(region)) return fail("the slot was refused");

  using stagetwo::stage2::FaultOutcome;
  if ((*guest)->write(stagetwo::Gpa(0x100ffc), "coherent", 9) != FaultOutcome::kFixed)
    return fail("write");
  if (std::strcmp(static_cast<char*>(memory) + 0xffc, "coherent") != 0) return fail("not coherent");
  char byte = 0;
  if ((*guest)->read(stagetwo::Gpa(0), &byte, 1) != FaultOutcome::kMmio)
    return fail("a hole is MMIO");

  region.slot = 1;  // Over the same guest addresses.
  const auto refused = (*guest)->slots().set_region(region);
  if (refused || stagetwo::to_int(refused.error()) != EEXIST) return fail("an overlap is EEXIST");
  std::puts("consumer: one memory, seen from both sides; an overlap is refused");
  return 0;
}
