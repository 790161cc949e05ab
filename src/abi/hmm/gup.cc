// SPDX-License-Identifier: Apache-2.0
// /sys/kernel/debug/gup_test: takes references of pages and gives them back within one call. A
// reference of a page that is with a device brings it back first. No reference outlives a call, so
// none has to be kept. kernel file: mm/gup_test.c.
#include <fcntl.h>

#include <algorithm>

#include "abi/hmm/gup_uapi.h"
#include "abi/hmm/hmm.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/descriptor.h"
#include "host/faultin.h"
#include "mirror/mirror.h"

static_assert(sizeof(gup_test) == 80);
static_assert(GUP_FAST_BENCHMARK == 0xC0506701);

namespace stagetwo::abi_hmm {
namespace {

constexpr u32 kForWriting = 1;
constexpr u32 kLongTerm = 0x100;
constexpr u64 kMostPages = u64{1} << 32;

bool is_known(u32 request) {
  return request == GUP_FAST_BENCHMARK || request == PIN_FAST_BENCHMARK ||
         request == PIN_LONGTERM_BENCHMARK || request == GUP_BASIC_TEST ||
         request == PIN_BASIC_TEST;
}

bool only_gets(u32 request) {
  return request == GUP_FAST_BENCHMARK || request == GUP_BASIC_TEST;
}

// How many pages from `first` on could be had.
u64 reference_pages(Hva first, u64 count, u32 flags) {
  const Access access = (flags & kForWriting) != 0 ? Access::kWrite : Access::kRead;
  u64 had = 0;
  for (; had < count; ++had) {
    const Hva page = first + had * kPageSize;
    // A device's memory is not to be held for long: what is there goes to ordinary memory first.
    if ((flags & kLongTerm) != 0) mirror::leave_device_memory(HvaRange(page, kPageSize));
    if (!host::faultin(page, access)) break;
  }
  return had;
}

// A batch that cannot begin ends the call without an error: the size says how far it came.
void take_references(u32 request, gup_test* test) {
  const u64 begun = sys::monotonic_ns();
  const bool refused = only_gets(request) && (test->gup_flags & kLongTerm) != 0;
  const u32 flags = test->gup_flags | (request == PIN_LONGTERM_BENCHMARK ? kLongTerm : 0);
  const u64 end = test->addr + test->size;
  u64 at = test->addr;
  u64 batch = test->nr_pages_per_call;
  while (at < end && batch == test->nr_pages_per_call && !refused) {
    batch = std::min<u64>(batch, (end - at) / kPageSize);
    const u64 next = std::min(end, at + u64{test->nr_pages_per_call} * kPageSize);
    batch = reference_pages(page_floor(Hva(at)), batch, flags);
    if (batch == 0) break;
    at = next;
  }
  test->size = at - test->addr;
  test->get_delta_usec = (sys::monotonic_ns() - begun) / 1000;
  test->put_delta_usec = 0;
}

class GupFile final : public host::Description {
 public:
  long ioctl(int, unsigned long request, unsigned long arg) override {
    const Result<void> done = serve(static_cast<u32>(request), arg);
    return done ? 0 : -static_cast<long>(to_int(done.error()));
  }

 private:
  static Result<void> serve(u32 request, u64 arg) {
    gup_test test{};
    if (!is_known(request)) return refuse(EINVAL);
    if (!host::is_user_range(Hva(arg), sizeof(test))) return refuse(EFAULT);
    if (!host::read_struct(Hva(arg), &test)) return refuse(EFAULT);
    if (test.size / kPageSize > kMostPages) return refuse(ENOMEM);
    take_references(request, &test);
    if (!host::write_struct(Hva(arg), test)) return refuse(EFAULT);
    return {};
  }
};

}  // namespace

Result<int> open_gup_test(int flags) {
  auto backing = ST_TRY(host::Backing::create("gup_test", 0));
  auto file = ST_TRY(make_box<GupFile>("abi_hmm.gup"));
  const host::DescriptorSpec spec{.shape = host::FileShape::kAnonInode,
                                  .home = host::StateHome::kProcess,
                                  .open_flags = flags & (O_ACCMODE | O_CLOEXEC | O_NONBLOCK)};
  return host::publish(std::move(file), std::move(backing), spec);
}

}  // namespace stagetwo::abi_hmm
