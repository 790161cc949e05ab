// SPDX-License-Identifier: Apache-2.0
// The guest's own page tables in memory that stage 2 may refuse, one level at a time. Under
// two-dimensional paging the processor reads tables by the VM's table: what it cannot have there is
// the VMM's to arrange, as for any access, and never the guest's page fault.
#include <sys/stat.h>
#include <sys/wait.h>

#include <fstream>
#include <string>

#include "tests/abi/private_machine.h"

namespace kvm_client {
namespace {

// Level n of the guest's tables is page 5 - n of the slot at kPrivateGpa; entry 0 leads on, the PT
// also maps the page with the code and the page with the data.
constexpr u64 kLevels = 5;
constexpr u64 kCode = 0x1000;
constexpr u64 kLoad = kCode + 0x100;
constexpr u64 kData = 0x2000;
constexpr u16 kPresent = 3;

const char* const kNames[] = {"", "Pt", "Pd", "Pdpt", "Pml4", "Pml5"};

class GuestTable : public PrivateMachine, public testing::WithParamInterface<u64> {
 protected:
  [[nodiscard]] static u64 page_of(u64 level) { return kLevels - level; }
  [[nodiscard]] static u64 table(u64 level) { return kPrivateGpa + page_of(level) * kPage; }
  [[nodiscard]] u64 tested() const { return table(GetParam()); }

  void SetUp() override {
    PrivateMachine::SetUp();
    if (IsSkipped()) return;
    if (on_oracle()) GTEST_SKIP() << "oracle: LA57 is not in every processor";
    Table<kvm_cpuid_entry2, 256> cpuid;
    ASSERT_EQ(call(device_, KVM_GET_SUPPORTED_CPUID, &cpuid), 0);
    ASSERT_EQ(call(vcpu_, KVM_SET_CPUID2, &cpuid), 0);
    const u8 load[] = {0x48, 0x8b, 0x07, 0xf4};  // rax = [rdi]; hlt
    std::memcpy(memory_ + (kLoad - kCode), load, sizeof(load));
    memory_[kData - kCode] = 0x5a;
    for (u64 level = 1; level <= kLevels; ++level) write_table(level);
  }
  // The words of one table in the half that is the client's.
  void write_table(u64 level) {
    u16* const words = &host_word(page_of(level));
    if (level > 1) {
      words[0] = static_cast<u16>(table(level - 1) | kPresent);
    } else {
      words[4 * (kCode >> 12)] = static_cast<u16>(kCode | kPresent);
      words[4 * (kData >> 12)] = static_cast<u16>(kData | kPresent);
    }
  }
  // The same by the guest, without paging, in the half that is its own.
  void guest_writes_table(u64 level) {
    if (level > 1) {
      EXPECT_TRUE(guest_store(table(level), static_cast<u16>(table(level - 1) | kPresent)));
      return;
    }
    for (const u64 page : {kCode, kData}) {
      EXPECT_TRUE(guest_store(table(1) + 8 * (page >> 12), static_cast<u16>(page | kPresent)));
    }
  }
  // The engine's own mapping of the tested table's page of the file.
  [[nodiscard]] void* engines_page() {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      unsigned long start = 0;
      if (line.find("stagetwo:pages:kvm-gmem") != std::string::npos &&
          std::sscanf(line.c_str(), "%lx-", &start) == 1) {
        return reinterpret_cast<void*>(start + page_of(GetParam()) * kPage);
      }
    }
    ADD_FAILURE() << "the file is not mapped";
    return nullptr;
  }
  void enter_long_mode() {
    kvm_sregs sregs{};
    ASSERT_EQ(call(vcpu_, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.l = 1;
    sregs.cs.g = 1;
    sregs.cs.limit = ~0U;
    sregs.cr3 = table(kLevels);
    sregs.cr4 = 1U << 5 | 1U << 12;
    sregs.efer = 1U << 8 | 1U << 10;
    sregs.cr0 = 1U | 1U << 4 | 1U << 31;
    ASSERT_EQ(call(vcpu_, KVM_SET_SREGS, &sregs), 0);
  }
  long run_long() {
    enter_long_mode();
    kvm_regs r{};
    r.rip = kLoad;
    r.rflags = 2;
    r.rdi = kData;
    EXPECT_EQ(call(vcpu_, KVM_SET_REGS, &r), 0);
    return call(vcpu_, KVM_RUN);
  }
  void expect_loaded() {
    EXPECT_EQ(run_long(), 0);
    EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_HLT});
    EXPECT_EQ(regs().rax, 0x5aU);
  }
  void expect_bare_efault() {
    EXPECT_EQ(run_long(), -EFAULT);
    EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_UNKNOWN});
    EXPECT_EQ(regs().rip, kLoad);
  }
  // Of a page of the file what was known to be there fails at the access, with a bare EFAULT. Where
  // the engine has forgotten that it was (two pages may have one place in what it remembers, by
  // their addresses) it asks for the page again, and of its own file nothing but memory can be
  // missing: ENOMEM.
  void expect_unserved() {
    const long result = run_long();
    const bool known = result == -EFAULT;
    EXPECT_EQ(result, known ? -EFAULT : -ENOMEM);
    EXPECT_EQ(run_->exit_reason, known ? u32{KVM_EXIT_UNKNOWN} : u32{KVM_EXIT_MEMORY_FAULT});
    EXPECT_EQ(regs().rip, kLoad);
  }
  void expect_asks_for(u64 gpa) {
    EXPECT_EQ(run_long(), -EFAULT);
    EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_MEMORY_FAULT});
    EXPECT_EQ(run_->memory_fault.flags, u64{KVM_MEMORY_EXIT_FLAG_PRIVATE});
    EXPECT_EQ(run_->memory_fault.gpa, gpa);
    EXPECT_EQ(run_->memory_fault.size, kPage);
    EXPECT_EQ(regs().rip, kLoad);
  }
};

TEST_P(GuestTable, InSharedMemoryIsWalked) {
  expect_loaded();
}

TEST_P(GuestTable, InPrivateMemoryIsReadFromTheFile) {
  ASSERT_EQ(make_private(tested()), 0);
  guest_writes_table(GetParam());
  std::memset(shared_ + page_of(GetParam()) * kPage, 0, kPage);
  expect_loaded();
  // Accessed bits are set there, too: the client's half stays as it is.
  for (u64 i = 0; i < kPage; ++i) EXPECT_EQ(shared_[page_of(GetParam()) * kPage + i], 0);
}

TEST_P(GuestTable, OfZeroesInPrivateMemoryIsTheGuestsPageFault) {
  ASSERT_EQ(make_private(tested()), 0);
  EXPECT_EQ(run_long(), 0);
  EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_SHUTDOWN});  // without handlers
}

TEST_P(GuestTable, InPrivateMemoryWithoutAFileIsTheVmmsToArrange) {
  file_.close();
  ASSERT_EQ(make_private(tested()), 0);
  expect_asks_for(tested());
  expect_asks_for(tested());  // as often as nobody does
  ASSERT_EQ(make_shared(tested()), 0);
  EXPECT_EQ(call(vcpu_, KVM_RUN), 0);
  EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_HLT});
  EXPECT_EQ(regs().rax, 0x5aU);
}

TEST_P(GuestTable, WhoseFileIsClosedAfterAWalkIsTheVmmsToArrange) {
  ASSERT_EQ(make_private(tested()), 0);
  guest_writes_table(GetParam());
  expect_loaded();
  file_.close();
  expect_asks_for(tested());
}

TEST_P(GuestTable, InSharedMemoryWithoutAMappingIsABareEfault) {
  ASSERT_EQ(::munmap(shared_ + page_of(GetParam()) * kPage, kPage), 0);
  expect_bare_efault();
}

// This program has no shim, so nothing below is heard: the VM's table still has its entry, and what
// it points to is gone.
TEST_P(GuestTable, WhoseFileAnotherProcessCutsIsABareEfaultUntilItIsThereAgain) {
  const int file = ::memfd_create("table", MFD_CLOEXEC);
  ASSERT_GE(file, 0);
  ASSERT_EQ(::ftruncate(file, kPage), 0);
  ASSERT_NE(::mmap(shared_ + page_of(GetParam()) * kPage, kPage, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_FIXED, file, 0),
            MAP_FAILED);
  write_table(GetParam());
  expect_loaded();
  const pid_t other = ::fork();
  if (other == 0) ::_exit(::ftruncate(file, 0) == 0 ? 0 : 1);
  int status = -1;
  ASSERT_EQ(::waitpid(other, &status, 0), other);
  ASSERT_EQ(status, 0);
  expect_bare_efault();
  expect_bare_efault();
  ASSERT_EQ(::ftruncate(file, kPage), 0);
  write_table(GetParam());
  expect_loaded();
  ::close(file);
}

TEST_P(GuestTable, ThatIsUnmappedUnheardIsABareEfaultUntilItIsThereAgain) {
  u8* const at = shared_ + page_of(GetParam()) * kPage;
  expect_loaded();
  ASSERT_EQ(::munmap(at, kPage), 0);
  expect_bare_efault();
  expect_bare_efault();
  ASSERT_EQ(
      ::mmap(at, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
      at);
  write_table(GetParam());
  expect_loaded();
}

TEST_P(GuestTable, ThatTheHostCannotWriteIsABareEfaultOnlyWhereABitIsToBeSet) {
  u8* const at = shared_ + page_of(GetParam()) * kPage;
  ASSERT_EQ(::mprotect(at, kPage, PROT_READ), 0);
  EXPECT_EQ(run_long(), -EFAULT);
  EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_UNKNOWN});
  ASSERT_EQ(::mprotect(at, kPage, PROT_READ | PROT_WRITE), 0);
  expect_loaded();
  ASSERT_EQ(::mprotect(at, kPage, PROT_READ), 0);
  expect_loaded();  // its entries are marked accessed now
}

// Nobody but the engine has this mapping, so it is the machine that takes it (poisoned memory).
TEST_P(GuestTable, OfAFileTheHostDoesNotServeEndsTheRunUntilItDoes) {
  ASSERT_EQ(make_private(tested()), 0);
  guest_writes_table(GetParam());
  void* const at = engines_page();
  ASSERT_EQ(::mprotect(at, kPage, PROT_NONE), 0);
  expect_unserved();
  expect_unserved();
  ASSERT_EQ(::mprotect(at, kPage, PROT_READ | PROT_WRITE), 0);
  expect_loaded();
}

TEST_P(GuestTable, OfAFileTheHostCannotWriteEndsTheRunOnlyWhereABitIsToBeSet) {
  ASSERT_EQ(make_private(tested()), 0);
  guest_writes_table(GetParam());
  void* const at = engines_page();
  ASSERT_EQ(::mprotect(at, kPage, PROT_READ), 0);
  expect_unserved();
  expect_unserved();
  ASSERT_EQ(::mprotect(at, kPage, PROT_READ | PROT_WRITE), 0);
  expect_loaded();
  ASSERT_EQ(::mprotect(at, kPage, PROT_READ), 0);
  expect_loaded();
}

TEST_P(GuestTable, WithoutASlotIsTheGuestsPageFaultAndPrivateTheVmmsToArrange) {
  kvm_userspace_memory_region2 slot = region(1, kPrivateGpa, kFilePages, 0);
  slot.memory_size = 0;
  ASSERT_EQ(set(slot), 0);
  // All tables but the tested one, each in a slot of its own.
  for (u64 level = 1; level <= kLevels; ++level) {
    if (level == GetParam()) continue;
    slot = region(static_cast<u32>(1 + level), table(level), 1, page_of(level));
    slot.userspace_addr = reinterpret_cast<u64>(shared_) + page_of(level) * kPage;
    ASSERT_EQ(set(slot), 0);
  }
  ASSERT_EQ(make_private(tested()), 0);
  expect_asks_for(tested());
  ASSERT_EQ(make_shared(tested()), 0);
  EXPECT_EQ(run_long(), 0);
  EXPECT_EQ(run_->exit_reason, u32{KVM_EXIT_SHUTDOWN});
}

TEST_P(GuestTable, IsReadByKvmTranslateAtTheClientsAddress) {
  enter_long_mode();
  kvm_translation asked{};
  asked.linear_address = kData;
  ASSERT_EQ(make_private(tested()), 0);  // zeroes there, the tables here
  ASSERT_EQ(call(vcpu_, KVM_TRANSLATE, &asked), 0);
  EXPECT_EQ(asked.valid, 1);
  EXPECT_EQ(asked.physical_address, kData);
  file_.close();
  ASSERT_EQ(call(vcpu_, KVM_TRANSLATE, &asked), 0);
  EXPECT_EQ(asked.valid, 1);
}

INSTANTIATE_TEST_SUITE_P(Level, GuestTable, testing::Values(1, 2, 3, 4, 5),
                         [](const auto& level) { return std::string(kNames[level.param]); });

}  // namespace
}  // namespace kvm_client
