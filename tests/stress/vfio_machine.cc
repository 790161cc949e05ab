// SPDX-License-Identifier: Apache-2.0
// examples/vfio_vmm.c with the engine in one program, so that the sanitizers see both: its calls to
// the kernel come here, by names of their own (tests/stress/CMakeLists.txt).
#include "tests/stress/vfio_machine.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "abi/vfio/vfio.h"
#include "host/descriptor.h"
#include "host/mmu_notifier.h"
#include "host/placed_io.h"
#include "tests/abi/kvm_client.h"

namespace {

std::string machines_session;  // whose tree stands for /sys

std::string in_machines_session(const char* path) {
  const std::string name(path);
  return name.starts_with("/sys/") ? machines_session + name : name;
}

}  // namespace

extern "C" {
int vmm_main(int count, char** arguments);
int vmm_open(const char* path, int flags, ...) {
  const std::string name(path);
  if (name == "/dev/kvm") return kvm_client::open_kvm(flags);
  stagetwo::Result<int> fd = stagetwo::refuse(ENOENT);
  if (name == "/dev/vfio/vfio") {
    fd = stagetwo::abi_vfio::open_container(flags);
  } else if (name.starts_with("/dev/vfio/")) {
    const auto group = static_cast<stagetwo::u32>(std::atoi(name.c_str() + 10));
    for (int i = 0; i < 20000; ++i) {  // whoever had it was killed
      fd = stagetwo::abi_vfio::open_group(group, flags);
      if (fd || stagetwo::to_int(fd.error()) != EBUSY) break;
      usleep(1000);
    }
  } else {
    return ::open(in_machines_session(path).c_str(), flags);
  }
  if (!fd) errno = stagetwo::to_int(fd.error());
  return fd ? *fd : -1;
}
ssize_t vmm_readlink(const char* path, char* to, size_t size) {
  return ::readlink(in_machines_session(path).c_str(), to, size);
}
static ssize_t vmm_io(bool write, int fd, const void* at, size_t size, off_t place) {
  const auto ref = stagetwo::host::find(fd);
  auto* const placed = dynamic_cast<stagetwo::host::PlacedIo*>(ref.get());
  const auto address = reinterpret_cast<stagetwo::u64>(at);
  const auto done =
      write ? placed->write_at(address, size, place) : placed->read_at(address, size, place);
  if (!done) errno = stagetwo::to_int(done.error());
  return done ? *done : -1;
}
ssize_t vmm_pread(int fd, void* to, size_t size, off_t at) {
  return vmm_io(false, fd, to, size, at);
}
ssize_t vmm_pwrite(int fd, const void* from, size_t size, off_t at) {
  return vmm_io(true, fd, from, size, at);
}
void* vmm_mmap(void* at, size_t size, int prot, int flags, int fd, off_t place) {
  void* const made = ::mmap(at, size, prot, flags, fd, place);
  if (fd < 0 || made == MAP_FAILED) return made;
  const auto ref = stagetwo::host::find(fd);
  auto* const placed = dynamic_cast<stagetwo::host::PlacedMaps*>(ref.get());
  if (placed == nullptr) return made;
  const auto shown = placed->mapped_at(stagetwo::Hva{reinterpret_cast<stagetwo::u64>(made)},
                                       {size, prot, flags, place});
  if (shown) return made;
  errno = stagetwo::to_int(shown.error());
  return MAP_FAILED;
}
int vmm_munmap(void* at, size_t size) {
  using namespace stagetwo;
  const host::InvalidateSection change(
      {HvaRange(Hva(reinterpret_cast<u64>(at)), size), host::EventKind::kUnmap});
  return ::munmap(at, size);
}
int vmm_close(int fd) {
  stagetwo::host::CloseWatch watch(fd);
  const int done = ::close(fd);
  watch.closed();
  return done;
}
}

int run_vfio_machine(const char* session, const std::string& uuid) {
  machines_session = session;
  std::string words[] = {"vfio_vmm", "3", uuid};
  char* arguments[] = {words[0].data(), words[1].data(), words[2].data(), nullptr};
  return vmm_main(3, arguments);
}
