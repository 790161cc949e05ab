// SPDX-License-Identifier: Apache-2.0
#include "shim/engine.h"

#include <fcntl.h>
#include <stdlib.h>

#include <span>

#include "abi/hmm/hmm.h"
#include "abi/iommufd/iommufd.h"
#include "abi/kvm/kvm.h"
#include "abi/kvm/level.h"
#include "abi/vfio/vfio.h"
#include "base/size_text.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/backstop.h"
#include "host/blocked_faults.h"
#include "host/mmu_notifier.h"
#include "host/page_owner.h"
#include "host/pin.h"
#include "host/process.h"
#include "host/process_files.h"
#include "host/run_section.h"
#include "host/session.h"
#include "host/thread_count.h"
#include "reclaim/reclaim.h"
#include "shim/forks.h"
#include "shim/libc_calls.h"
#include "shim/memory_limit.h"
#include "shim/next.h"
#include "shim/options.h"
#include "shim/signal_masks.h"
#include "shim/signals.h"
#include "shim/virtual_io.h"
#include "sync/futex.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
namespace {

// One thread wakes, and none while another forks: a child would have what is half made.
//
//   waker                                | forker, not awake (libc's fork, _Fork)
//   no fork and no waker → waking        | no waker → forks + 1
//   makes the engine; awake; free        | forks; parent: forks - 1; child: nobody
//
// A signal handler of a thread that is in there itself waits for nobody. clone3 by number, of a
// process that sleeps, is not seen.
sync::Atomic<u32> gate{0};
constexpr u32 kWaking = u32{1} << 31;
thread_local bool is_waking = false;
thread_local bool is_forking = false;

// Set once, released after everything it stands for; readers only branch on it.
sync::Atomic<bool> is_awake{false};

// Whose memory this is. A child of vfork uses it and is another.
sync::Atomic<s32> whose{0};
s32 waker = 0;  // the process that woke; its children have no vCPUs of their own to tell of

void say_summary() {
  if (sys::getpid() != waker) return;
  FixedString<512> line;
  line.append("at exit: ");
  abi_kvm::append_summary(line);
  log_line(line.view());
}

// secure=SIZE: how much secure memory this machine has.
void offer_secure_guests() {
  const std::string_view text = option("secure");
  if (text.empty()) return;
  const auto bytes = parse_size(text);
  if (!bytes) return warn("STAGETWO_OPTIONS: no size, ignored: ", "secure");
  abi_kvm::offer_secure_guests(*bytes);
}

void say_what_is_seen() {
  FixedString<512> line;
  append_libc_calls(line);
  log_line(line.view());
}

// A descriptor that another process made.
Box<host::Description> attach_any(std::string_view kind, int fd, host::DescriptorSpec* spec) {
  auto found = abi_iommufd::attach(kind, fd, spec);
  if (!found) found = abi_vfio::attach(kind, fd, spec);
  return found ? std::move(found) : abi_kvm::attach(kind, spec);
}

// "fail-nth: 12 sites failed: iommu.area iommu.frames …": who sweeps wants to know what was swept.
void report_failed_sites(std::span<const char* const> sites) {
  FixedString<2048> line;
  line.append("fail-nth: ").append_int(sites.size()).append(" sites failed:");
  for (const char* site : sites) line.append(" ").append(site);
  warn(line.view(), {});
}

// False: another thread has woken it.
bool begin_waking() {
  const u32 own = is_forking ? 1 : 0;
  for (;;) {
    if (is_awake.load(sync::kAcquire)) return false;
    u32 seen = gate.load(sync::kRelaxed);
    const bool free = seen <= own;
    if (free && gate.compare_exchange_weak(seen, seen | kWaking, sync::kAcquire)) return true;
    if (!free) sync::yield_thread();
  }
}

Result<void> make_awake() {
  next::resolve_all();
  host::set_thread_count(static_cast<u32*>(dlsym(RTLD_NEXT, "__nptl_nthreads")));
  read_options();
  warn_of_options();
  enter_session();
  static_cast<void>(wants_hugetlb_standin());
  take_all_appended();
  if (const auto name = option("abi"); !name.empty() && !abi_kvm::set_level(name)) {
    warn("unknown ABI level, 6.12 is used: ", name);
  }
  host::set_attacher(attach_any);
  offer_secure_guests();
  abi_iommufd::set_newer_requests(option("abi") == "6.18");
  abi_vfio::set_newer_requests(option("abi") == "6.18");
  abi_iommufd::set_test_commands(!option("iommufd-test").empty());
  abi_iommufd::set_site_report(report_failed_sites);
  host::set_owner_warning(warn);
  host::choose_how_touches_come();
  host::note_library_data();
  host::open_process_files();
  ST_TRY(host::backstop::install());
  adopt_mask();
  wrap_signals();
  if (!see_forks()) return refuse(ENOMEM);
  see_libc_calls();
  whose.store(sys::getpid(), sync::kRelaxed);
  is_awake.store(true, sync::kRelease);
  log_line("engine awake");
  say_what_is_seen();
  waker = sys::getpid();
  start_memory_limit();
  // A program that ends by a signal or _exit ends without it; so does one where this fails.
  if (!option("verbose").empty()) static_cast<void>(atexit(say_summary));
  return {};
}

// exit() runs this after the program's own handlers; its threads still run.
[[gnu::destructor]] void end_address_space() {
  if (!awake() || sys::getpid() != waker) return;
  say_statistics();
  const host::EngineSection section(host::Touches::kNothing);
  host::release_address_space();
  if (!option("verbose").empty()) log_line("address space released");
}

}  // namespace

// A child has no page owners: what they hold comes back first (host/page_owner.h). Nor has it pins:
// no page is on its way to their store (host/pin.h).
void before_fork() {
  host::EngineSection section(host::Touches::kNothing);
  abi_hmm::before_fork();
  host::owners_before_fork();
  reclaim::before_fork();
  host::announce_fork();
  host::pins_before_fork();
  section.leave();
}

void after_fork_in_parent() {
  host::EngineSection section(host::Touches::kNothing);
  host::pins_after_fork_parent();
  reclaim::after_fork_parent();
  host::owners_after_fork_parent();
  abi_hmm::after_fork_parent();
  section.leave();
}

// What another thread of the parent was in the middle of is gone; its memory is not ours to finish.
void after_fork_in_child() {
  whose.store(sys::getpid(), sync::kRelaxed);
  host::descriptors_after_fork_child();
  host::run_sections_after_fork_child();
  host::after_fork_child();
  reclaim::after_fork_child();
  abi_hmm::after_fork_child();
  abi_vfio::after_fork_child();
  signals_after_fork_child();
}

bool awake() {
  return is_awake.load(sync::kRelaxed);
}

bool begin_sleeping_fork() {
  for (;;) {
    if (is_awake.load(sync::kAcquire)) return false;
    u32 seen = gate.load(sync::kRelaxed);
    const bool free = (seen & kWaking) == 0 || is_waking;
    if (free && gate.compare_exchange_weak(seen, seen + 1, sync::kAcquire)) break;
    if (!free) sync::yield_thread();
  }
  is_forking = true;
  return true;
}

void end_sleeping_fork(bool in_child) {
  is_forking = false;
  if (in_child) {
    gate.store(is_waking ? kWaking : 0, sync::kRelaxed);
  } else {
    gate.fetch_sub(1, sync::kRelease);
  }
}

Result<void> wake() {
  if (is_awake.load(sync::kAcquire)) [[likely]]
    return {};
  if (!begin_waking()) return {};
  is_waking = true;
  const auto made = make_awake();
  is_waking = false;
  gate.fetch_sub(kWaking, sync::kRelease);
  return made;
}

bool in_borrowed_memory() {
  return sys::getpid() != whose.load(sync::kRelaxed);
}

bool names_this_process(int pidfd) {
  constexpr int kSelfThread = -10000;  // PIDFD_SELF_THREAD
  constexpr int kSelf = -10001;        // PIDFD_SELF_THREAD_GROUP
  if (pidfd == kSelfThread || pidfd == kSelf) return true;
  FixedString<64> path;
  const sync::PassingNumber passing;
  path.append("/proc/self/fdinfo/").append_int(pidfd);
  const auto fd = sys::openat(AT_FDCWD, path.c_str(), O_RDONLY | O_CLOEXEC);
  if (!fd) return false;
  char text[256];
  const auto got = sys::read(*fd, text, sizeof(text));
  static_cast<void>(sys::close(*fd));
  const std::string_view all(text, got ? *got : 0);
  FixedString<32> wanted;
  wanted.append("Pid:\t").append_int(sys::getpid()).append_char('\n');
  return all.find(wanted.view()) != std::string_view::npos;
}

bool may_be_ours(int fd, struct ::stat* behind) {
  return sys::fstat(fd, behind).has_value() && host::could_be_ours(*behind);
}

bool stands_behind(int fd, const struct ::stat& seen) {
  struct ::stat now{};
  static_cast<void>(sys::fstat(fd, &now));
  return now.st_dev == seen.st_dev && now.st_ino == seen.st_ino;
}

}  // namespace stagetwo::shim
