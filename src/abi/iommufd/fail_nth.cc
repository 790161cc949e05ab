// SPDX-License-Identifier: Apache-2.0
// The files of fault injection, for the kernel's own sweep of iommufd's error paths. kernel files:
// fs/proc/base.c (proc_fail_nth_read, proc_fail_nth_write), lib/fault-inject.c, mm/failslab.c.
//
//   /proc/self/task/TID/fail-nth                 N: the Nth injection point from now on fails; 0:
//   none /sys/kernel/debug/failslab/ignore-gfp-wait   taken and without effect: every allocation
//   counts
//
// An injection point is whatever base/failpoint.h asks about: every allocation, mapping and pin of
// the engine. Differs: they are counted for the process and not for the thread. Which of them have
// failed is told when a sweep is over: the one that was armed was never come to.
#include <fcntl.h>

#include "abi/iommufd/calls.h"
#include "abi/iommufd/iommufd.h"
#include "base/failpoint.h"
#include "base/text.h"
#include "base/vec.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr size_t kLongestNumber = 32;

SiteReport report_sites = nullptr;

host::DescriptorSpec spec_of(int flags) {
  return {.shape = host::FileShape::kCharDevice,
          .home = host::StateHome::kProcess,
          .open_flags = flags & host::kOpenFlags,
          .wants_last_close = true};
}

class FailNthFile final : public host::Description {
 public:
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  [[nodiscard]] bool moves_bytes() const override { return true; }
  Result<long> read_bytes(u64 to, u64 size) override;
  Result<long> write_bytes(u64 from, u64 size) override;
  void last_close() override;

 private:
  void note_failed();

  u64 armed_ = 0;  // 0: nothing is
  Vec<const char*> failed_{"abi_iommufd.failed_sites"};
};

// How many points are left until the one that fails; 0: it has.
Result<long> FailNthFile::read_bytes(u64 to, u64 size) {
  const u64 left = armed_ == 0 || failpoint::failed() != 0
                       ? 0
                       : armed_ - std::min(armed_ - 1, failpoint::asked());
  FixedString<kLongestNumber> text;
  text.append_int(left).append_char('\n');
  const u64 bytes = std::min<u64>(size, text.size());
  if (host::copy_to(Hva(to), text.view().data(), bytes) != bytes) return refuse(EFAULT);
  return static_cast<long>(bytes);
}

Result<long> FailNthFile::write_bytes(u64 from, u64 size) {
  char text[kLongestNumber];
  const u64 bytes = std::min<u64>(size, sizeof(text));
  if (host::copy_from(text, Hva(from), bytes) != bytes) return refuse(EFAULT);
  const u64 nth = ST_TRY(parse_kernel_unsigned({text, bytes}, ~u32{0}));
  failpoint::disarm();
  note_failed();
  const bool swept = armed_ != 0 && failpoint::failed() == 0;
  if (swept && report_sites != nullptr) report_sites({failed_.begin(), failed_.end()});
  armed_ = nth;
  if (nth != 0) failpoint::arm(nullptr, nth);
  return static_cast<long>(size);
}

void FailNthFile::note_failed() {
  if (armed_ == 0) return;
  failpoint::for_each_site(
      [](void* self, const char* site, u64, u64 failed) {
        auto& known = static_cast<FailNthFile*>(self)->failed_;
        if (failed == 0) return;
        for (const char* one : known) {
          if (std::string_view(one) == site) return;
        }
        static_cast<void>(known.push_back(site));
      },
      this);
}

void FailNthFile::last_close() {
  failpoint::disarm();
}

// Only written to, and only so that who looks for fault injection finds it.
class KnobFile final : public host::Description {
 public:
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  [[nodiscard]] bool moves_bytes() const override { return true; }
  Result<long> write_bytes(u64, u64 size) override { return static_cast<long>(size); }
};

template <typename File>
Result<int> open_file(const char* kind, int flags) {
  auto backing = ST_TRY(host::Backing::create(kind, 0));
  auto file = ST_TRY(make_box<File>(kind));
  return host::publish(std::move(file), std::move(backing), spec_of(flags));
}

}  // namespace

void set_site_report(SiteReport report) {
  report_sites = report;
}

Result<int> open_fail_nth(int flags) {
  return open_file<FailNthFile>("fail-nth", flags);
}

Result<int> open_fail_knob(int flags) {
  return open_file<KnobFile>("fail-knob", flags);
}

}  // namespace stagetwo::abi_iommufd
