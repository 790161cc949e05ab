// SPDX-License-Identifier: Apache-2.0
#pragma once

// The descriptor of a guest_memfd. The object is mem::GuestMemfd; here stand its file operations,
// the VM it belongs to and what a process that did not make it may do with it.
//
// Linux analogue: kvm_gmem_fops (kernel file: virt/kvm/guest_memfd.c).
// Lifetime: the file pins the VM, not the other way round: a VM whose descriptor is closed lives
// until its files are, too.

#include <string_view>

#include "base/alloc.h"
#include "base/result.h"
#include "host/descriptor.h"
#include "host/kept_fd.h"
#include "mem/guest_memfd.h"

namespace stagetwo::abi_kvm {

class Vm;

class GuestMemfdFile final : public host::Description {
 public:
  // The new descriptor. Failure: EMFILE, ENFILE, ENOMEM. Pre: size and flags are checked.
  [[nodiscard]] static Result<long> open(Vm& vm, u64 size, u64 flags);

  GuestMemfdFile(Vm& vm, u64 size, u64 flags);
  ~GuestMemfdFile() override;

  // The guest_memfd behind a number, held; empty and *error: EBADF or, where it is another VM's or
  // no such file, EINVAL.
  [[nodiscard]] static host::DescriptionRef find(Vm& vm, int fd, int* error);

  [[nodiscard]] mem::GuestMemfd& object() { return object_; }
  [[nodiscard]] bool is_mappable() const;

  // host::Description
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  Result<void> check_mmap(const host::MapRequest& request) override;
  off_t map_offset(const host::MapRequest& request) override;
  [[nodiscard]] bool is_regular() const override;
  [[nodiscard]] off_t asked_offset(off_t placed) const override;
  Result<void> fallocate(int fd, int mode, off_t offset, off_t size) override;
  void last_close() override;
  void let_go_in_child() override { pages_.close(); }

 private:
  void forget_file();

  Vm* vm_;  // one reference
  const u64 flags_;
  const u32 stamp_;     // the process it was made in
  host::HeldFd pages_;  // the file that holds them; a child of fork has it, too
  // Where the client's number leads to pages of nobody's: for its close in a full table, which has
  // no number for a question about who else holds it (host/descriptor.cc, watch_late).
  host::HeldFd stand_in_;
  mem::GuestMemfd object_;
};

// For a process that received the descriptor: `kind` as GuestMemfdFile::open named it; null: not
// one of these.
[[nodiscard]] Box<host::Description> attach_guest_memfd(std::string_view kind,
                                                        host::DescriptorSpec* spec);

}  // namespace stagetwo::abi_kvm
