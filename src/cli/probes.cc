// SPDX-License-Identifier: Apache-2.0
#include "cli/probes.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <linux/kvm.h>
#include <linux/membarrier.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "base/kernel_numbers.h"

// Not in a libc before 2.35.
#pragma weak __rseq_size

namespace stagetwo::cli {
namespace {

constexpr int kUserModeOnly = 1;             // UFFD_USER_MODE_ONLY
constexpr unsigned kNewFromDevice = 0xAA00;  // USERFAULTFD_IOC_NEW
constexpr long kSysMemfdSecret = 447;
constexpr unsigned kCapUserMemory2 = 231;
constexpr unsigned kCapMemoryAttributes = 233;
constexpr unsigned kCapGuestMemfd = 234;
constexpr size_t kPageBytes = 4096;

class Fd {
 public:
  explicit Fd(long fd) : fd_(static_cast<int>(fd)), error_(fd < 0 ? errno : 0) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  explicit operator bool() const { return fd_ >= 0; }
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] const char* why() const { return std::strerror(error_); }

 private:
  int fd_;
  int error_;
};

// The first line of a file, or empty.
std::string line_of(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

Finding probe_preload() {
  Finding f = required_finding("proc");
  const Fd self(open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  f.verdict = self ? Verdict::kYes : Verdict::kNo;
  f.detail = self ? "/proc is mounted: descriptors can be opened a second time"
                  : fmt::format("/proc/self/fd: {}", self.why());
  f.mechanism = "second open of memfds through /proc/thread-self/fd, last close by OFD lock";
  if (!self) f.advice = "mount proc on /proc";
  return f;
}

Finding probe_memfd() {
  Finding f = required_finding("memfd");
  const Fd fd(memfd_create("stagetwo:doctor", MFD_CLOEXEC));
  f.verdict = fd ? Verdict::kYes : Verdict::kNo;
  f.detail = fd ? "memfd_create works" : fmt::format("memfd_create: {}", fd.why());
  f.mechanism = "every emulated descriptor is a memfd";
  if (!fd) f.advice = "allow memfd_create in the seccomp profile";
  return f;
}

std::string userfaultfd_features(int fd) {
  uffdio_api api{};
  api.api = UFFD_API;
  if (ioctl(fd, UFFDIO_API, &api) != 0) return fmt::format("UFFDIO_API: {}", std::strerror(errno));
  return fmt::format("features {:#x}", static_cast<unsigned long long>(api.features));
}

Finding probe_userfaultfd() {
  Finding f = finding("userfaultfd");
  const Fd direct(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  const Fd device(direct ? -1 : open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  const Fd by_device(device ? ioctl(device.get(), kNewFromDevice, O_CLOEXEC | O_NONBLOCK) : -1);
  const Fd& full = direct ? direct : by_device;
  if (full) {
    f.verdict = Verdict::kYes;
    f.detail = fmt::format("kernel-mode faults too, {}", userfaultfd_features(full.get()));
    f.mechanism = "touch of absent pages: userfaultfd";
    return f;
  }
  const Fd user(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | kUserModeOnly));
  f.verdict = user ? Verdict::kLimited : Verdict::kNo;
  f.detail = user ? fmt::format("user-mode faults only ({} otherwise)", direct.why())
                  : fmt::format("userfaultfd: {}", user.why());
  f.mechanism =
      user ? "touch of absent pages: userfaultfd; interposed calls bring their buffers back"
           : "touch of absent pages: PROT_NONE and a chained SIGSEGV handler; interposed "
             "calls bring their buffers back";
  f.advice =
      access("/dev/userfaultfd", F_OK) == 0
          ? "give this user access to /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1"
          : "sysctl vm.unprivileged_userfaultfd=1, and allow userfaultfd in the seccomp profile";
  return f;
}

// A question of zeros is refused, but for another reason where it is known.
bool knows_question(const char* path, unsigned long request) {
  const Fd fd(open(path, O_RDONLY | O_CLOEXEC));
  char zeros[256] = {};
  return fd && (ioctl(fd.get(), request, zeros) == 0 || errno != ENOTTY);
}

Finding probe_page_maps() {
  Finding f = finding("page_maps");
  const bool scan = knows_question("/proc/self/pagemap", _IOWR('f', 16, char[96]));
  const bool query = knows_question("/proc/self/maps", _IOWR('f', 17, char[104]));
  f.verdict = scan && query ? Verdict::kYes : Verdict::kLimited;
  f.detail = fmt::format("PAGEMAP_SCAN {}, PROCMAP_QUERY {}", scan ? "works" : "not supported",
                         query ? "works" : "not supported");
  f.mechanism = scan
                    ? "zero pages and huge pages are told apart"
                    : "a zero page looks like a shared one, transparent huge pages like small ones";
  if (!query) f.mechanism += "; mappings are read from the text of /proc/self/maps";
  if (f.verdict != Verdict::kYes) f.advice = "a kernel of 6.11 or later";
  return f;
}

Finding probe_memfd_secret() {
  Finding f = finding("memfd_secret");
  const Fd fd(syscall(kSysMemfdSecret, O_CLOEXEC));
  f.verdict = fd ? Verdict::kYes : Verdict::kNo;
  f.detail = fd ? "keys can be kept out of the kernel's own mappings"
                : fmt::format("memfd_secret: {}", fd.why());
  f.mechanism = fd ? "keys of sealed memory: memfd_secret"
                   : "keys of sealed memory: locked memory, excluded from dumps";
  if (!fd) f.advice = "boot with secretmem.enable=1";
  return f;
}

Finding probe_hugepages() {
  Finding f = finding("hugepages");
  const std::string free = line_of("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
  const std::string thp = line_of("/sys/kernel/mm/transparent_hugepage/enabled");
  const bool reserved = !free.empty() && free != "0";
  const bool transparent = thp.find("[never]") == std::string::npos && !thp.empty();
  f.verdict = reserved ? Verdict::kYes : transparent ? Verdict::kLimited : Verdict::kNo;
  f.detail = fmt::format("2 MiB pages free: {}; transparent: {}", free.empty() ? "none" : free,
                         thp.empty() ? "absent" : thp);
  f.mechanism = reserved ? "hugetlb guest memory as the program asks"
                         : "guest memory in small or transparent huge pages";
  if (!reserved) f.advice = "as root: echo 64 > /proc/sys/vm/nr_hugepages";
  return f;
}

std::string kvm_module() {
  for (const char* name : {"kvm_intel", "kvm_amd", "kvm_pvm"}) {
    if (access((std::string("/sys/module/") + name).c_str(), F_OK) == 0) return name;
  }
  return "an unknown module";
}

Finding probe_real_kvm() {
  Finding f = finding("real_kvm");
  const Fd fd(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!fd) {
    f.detail = fmt::format("/dev/kvm: {}", fd.why());
    f.mechanism = "comparison with the kernel's KVM: absent";
    f.advice = "only needed for --oracle runs: load kvm_amd or kvm_intel, or join the group kvm";
    return f;
  }
  const int version = ioctl(fd.get(), KVM_GET_API_VERSION, 0);
  if (version < 0) {
    f.detail = "/dev/kvm: is not the device of KVM";
    f.mechanism = "comparison with the kernel's KVM: absent";
    return f;
  }
  f.verdict = Verdict::kYes;
  const auto has = [&fd](unsigned cap) { return ioctl(fd.get(), KVM_CHECK_EXTENSION, cap); };
  f.detail = fmt::format(
      "API {}, {}; user_memory2 {}, memory_attributes {}, guest_memfd {}, dirty_ring {}, "
      "max_vcpus {}, memslots {}",
      version, kvm_module(), has(kCapUserMemory2), has(kCapMemoryAttributes), has(kCapGuestMemfd),
      has(KVM_CAP_DIRTY_LOG_RING), has(KVM_CAP_MAX_VCPUS), has(KVM_CAP_NR_MEMSLOTS));
  f.mechanism = "used by --oracle alone; `stagetwo run` always emulates";
  return f;
}

bool advice_works(int advice, int prot) {
  void* const page = mmap(nullptr, kPageBytes, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  const bool works = madvise(page, kPageBytes, advice) == 0;
  munmap(page, kPageBytes);
  return works;
}

Finding probe_populate() {
  Finding f = finding("populate");
  const bool both = advice_works(MADV_POPULATE_READ, PROT_READ) &&
                    advice_works(MADV_POPULATE_WRITE, PROT_READ | PROT_WRITE);
  f.verdict = both ? Verdict::kYes : Verdict::kNo;
  f.detail = both ? "MADV_POPULATE_READ and _WRITE work" : "MADV_POPULATE_*: not supported";
  f.mechanism = both ? "guest faults: MADV_POPULATE, an errno in place of a signal"
                     : "guest faults: a guarded touch of the page";
  if (!both) f.advice = "a kernel of 5.14 or later";
  return f;
}

Finding probe_fork_wipe() {
  Finding f = finding("wipe_on_fork");
  const bool works = advice_works(MADV_WIPEONFORK, PROT_READ | PROT_WRITE);
  f.verdict = works ? Verdict::kYes : Verdict::kNo;
  f.detail = works ? "MADV_WIPEONFORK works" : "MADV_WIPEONFORK: not supported";
  f.mechanism = works ? "a child of fork is told by an empty page" : "a child is told by its pid";
  return f;
}

// For restartable sequences, in the area whose name and size it tells.
bool libc_registers_threads() {
  constexpr unsigned kNeeded = 16;  // up to rseq_cs
  return &__rseq_size != nullptr && __rseq_size >= kNeeded;
}

Finding probe_membarrier() {
  Finding f = finding("membarrier");
  const long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
  const bool expedited = commands > 0 && (commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0;
  const bool restarts = commands > 0 && (commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ) != 0 &&
                        libc_registers_threads();
  f.verdict = expedited ? Verdict::kYes : Verdict::kNo;
  f.detail = commands < 0 ? fmt::format("membarrier: {}", std::strerror(errno))
                          : fmt::format("commands {:#x}", commands);
  f.mechanism = restarts    ? "flush acknowledgement: polling for 2 us, then membarrier"
                : expedited ? "flush acknowledgement: polling; membarrier is the fence"
                            : "flush acknowledgement: polling with full fences";
  if (!expedited) f.advice = "allow membarrier in the seccomp profile";
  return f;
}

Finding probe_rseq() {
  Finding f = finding("rseq");
  // EPERM and EBUSY: libc has registered this thread; EINVAL: the call exists.
  const long answer = syscall(SYS_rseq, nullptr, 0, 0, 0);
  const bool there = answer == 0 || errno != ENOSYS;
  const bool registered = there && libc_registers_threads();
  f.verdict = registered ? Verdict::kYes : there ? Verdict::kLimited : Verdict::kNo;
  f.detail = registered ? "restartable sequences are available"
             : there    ? "restartable sequences: libc does not register its threads"
                        : "rseq: not supported";
  f.mechanism = registered ? "an invalidation passes a vCPU that is not scheduled"
                           : "an invalidation waits for a vCPU until it is scheduled";
  if (there && !registered) f.advice = "unset glibc.pthread.rseq in GLIBC_TUNABLES";
  return f;
}

Finding probe_limits() {
  Finding f = finding("limits");
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  const std::string maps = line_of("/proc/sys/vm/max_map_count");
  f.verdict = files.rlim_cur >= 1024 ? Verdict::kYes : Verdict::kLimited;
  f.detail =
      fmt::format("open files {}, mappings {}", static_cast<unsigned long long>(files.rlim_cur),
                  maps.empty() ? "unknown" : maps);
  if (f.verdict != Verdict::kYes) f.advice = "ulimit -n 1024";
  return f;
}

}  // namespace

std::vector<Finding> probe_all() {
  std::vector<Finding> all;
  for (auto* probe : {probe_preload, probe_memfd, probe_userfaultfd, probe_populate,
                      probe_page_maps, probe_membarrier, probe_rseq, probe_fork_wipe,
                      probe_memfd_secret, probe_hugepages, probe_real_kvm, probe_limits}) {
    all.push_back(probe());
  }
  return all;
}

}  // namespace stagetwo::cli
