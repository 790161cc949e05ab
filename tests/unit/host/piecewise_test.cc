// SPDX-License-Identifier: Apache-2.0
// Calls that the kernel refuses in the middle, over pages that are resident, absent, a device's
// alone or pinned: errno and bytes are those of the same call made natively, and a pin has its
// page.
#include "host/piecewise.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "host/access.h"
#include "host/backstop.h"
#include "host/faultin.h"
#include "host/process_map.h"
#include "host/userfault.h"
#include "tests/support/absent_pages.h"
#include "tests/support/half_calls.h"

namespace stagetwo {
namespace {

using host::EventKind;

u64 number(const void* at) {
  return reinterpret_cast<u64>(at);
}

// ---- the library's way -------------------------------------------------------------------------

int unmap_by(void* at, size_t size) {
  return host::change(number(at), size, EventKind::kUnmap, [&] { return ::munmap(at, size); });
}
int advise_by(void* at, size_t size, int advice) {
  if (!host::loss_by_madvise(advice)) return ::madvise(at, size, advice);
  return host::discard(number(at), size, advice, [&](u64 start, u64 bytes) {
    return ::madvise(reinterpret_cast<void*>(start), bytes, advice);
  });
}
int protect_by(void* at, size_t size, int prot) {
  const auto go_on = [&] { return ::mprotect(at, size, prot); };
  const auto loss = host::loss_by_mprotect(prot);
  return loss ? host::change(number(at), size, *loss, go_on) : host::gain(number(at), size, go_on);
}
void* map_by(void* at, size_t size, int prot, int flags, int fd, off_t offset) {
  return host::change(number(at), size, EventKind::kUnmap,
                      [&] { return ::mmap(at, size, prot, flags, fd, offset); });
}
void* remap_by(void* at, size_t size, size_t new_size, int flags, void* to) {
  return host::remap(
      {number(at), size, new_size, flags, number(to)},
      [](const host::Remap& one) {
        return ::mremap(reinterpret_cast<void*>(one.from), one.size, one.new_size, one.flags,
                        reinterpret_cast<void*>(one.to));
      },
      [](void* there, u64) { return there; });
}
void* remap_natively(void* at, size_t size, size_t new_size, int flags, void* to) {
  return ::mremap(at, size, new_size, flags, to);
}

constexpr half_calls kByLibrary = {unmap_by, advise_by, protect_by, map_by, remap_by};
constexpr half_calls kNatively = {::munmap, ::madvise, ::mprotect, ::mmap, remap_natively};

int read_at(const char* at, char* byte) {
  u8 seen = 0;
  const bool is_there =
      host::faultin(Hva(number(at)), Access::kRead) && host::load(Hva(number(at)), &seen);
  *byte = static_cast<char>(seen);
  return is_there ? 1 : 0;
}
bool shows(const char* at, char wanted) {
  char byte = 0;
  return read_at(at, &byte) != 0 && byte == wanted;
}
int may_write_at(char* at) {
  return host::faultin(Hva(number(at)), Access::kWrite) ? 1 : 0;
}
constexpr half_look kLook = {read_at, may_write_at};

// ---- the table ---------------------------------------------------------------------------------

enum class State { kResident, kAbsent, kHidden, kExclusive, kPinned, kPinnedBefore };

std::string name_of(State state) {
  switch (state) {
    case State::kResident:
      return "Resident";
    case State::kAbsent:
      return "Absent";
    case State::kHidden:
      return "AbsentBehindNoRights";
    case State::kExclusive:
      return "Exclusive";
    case State::kPinned:
      return "Pinned";
    case State::kPinnedBefore:
      return "PinnedBeforeWhatIsInTheWay";
  }
  __builtin_unreachable();
}

struct Pinned {
  host::Frame frame;
  size_t page;
};

// Sixteen pages, made anew for each call.
class Area {
 public:
  Area() { half_fill(at, 0, kHalfPages); }
  ~Area() { unmap_by(at, kHalfPages * size_t{kHalfPage}); }
  Area(const Area&) = delete;
  Area& operator=(const Area&) = delete;

  [[nodiscard]] HvaRange page(size_t i) const {
    return HvaRange(Hva(number(half_page(at, i))), kHalfPage);
  }
  [[nodiscard]] std::string described() const {
    char text[4 * kHalfPages];
    half_describe(&kLook, at, text);
    return text;
  }

  char* at = static_cast<char*>(::mmap(nullptr, kHalfPages* size_t{kHalfPage},
                                       PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
};

std::string run(const half_case& which, const half_calls* by, const Area& area) {
  errno = 0;
  const long answer = which.call(by, area.at);
  const std::string error = answer == 0 ? "done" : ::strerrorname_np(errno);
  return error + " " + area.described();
}

std::string natively(const half_case& which) {
  const Area area;
  which.lay(area.at);
  which.cut(&kNatively, area.at);
  return run(which, &kNatively, area);
}

class HalfCall : public testing::TestWithParam<State> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    host::userfault::debug_deny(GetParam() == State::kHidden);
    const bool watches = GetParam() == State::kAbsent || GetParam() == State::kExclusive;
    if (watches && !host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
  }
  void TearDown() override { host::userfault::debug_deny(false); }

  // Every page the state can have. What is locked, or no longer there, stays as it is.
  void put_into_state(const Area& area, test::Keeper* keeper) {
    const State state = GetParam();
    for (size_t i = 0; i < kHalfPages; ++i) {
      if (state == State::kPinned || state == State::kPinnedBefore) pin(area, i);
      const bool takes = state == State::kAbsent || state == State::kHidden;
      if (takes) static_cast<void>(host::take_away(area.page(i), keeper, this, host::Which::kAll));
      if (state == State::kExclusive) {
        static_cast<void>(host::take_away(area.page(i), keeper, this, host::Which::kPresent));
      }
    }
  }
  void pin(const Area& area, size_t i) {
    host::FrameRun one;
    const auto done = host::pin_pages(area.page(i), {}, &one, 1);
    if (done && done->pages == 1) pins_.push_back({one.first, i});
  }
  // The bytes are those of the page that was pinned, wherever the client has it now.
  void check_pins(const half_case& which, const Area& area) {
    for (const Pinned& pin : pins_) {
      u8 byte = 0;
      ASSERT_TRUE(host::read_frame(pin.frame, 0, &byte, 1)) << which.name << " page " << pin.page;
      if (byte == 'F') continue;  // of the file
      EXPECT_EQ(half_letter(pin.page), byte) << which.name << " page " << pin.page;
      for (size_t i = 0; i < kHalfPages; ++i) {
        char* const at = half_page(area.at, i);
        if (!shows(at, half_letter(pin.page)) || may_write_at(at) == 0) continue;
        ASSERT_TRUE(host::store(Hva(number(at) + 8), u8{0x77}));
        EXPECT_TRUE(host::read_frame(pin.frame, 8, &byte, 1));
        EXPECT_EQ(0x77, byte) << which.name << ": not the page the client has at " << i;
      }
    }
    for (const Pinned& pin : pins_) host::unpin_pages({pin.frame, 1});
    pins_.clear();
  }

  std::vector<Pinned> pins_;
};

TEST_P(HalfCall, LeavesTheBytesAndTheErrnoThatTheKernelLeaves) {
  for (const half_case& which : kHalfCases) {
    const std::string expected = natively(which);
    Area area;
    test::Keeper keeper(Hva(number(area.at)));
    which.lay(area.at);
    if (GetParam() == State::kPinnedBefore) put_into_state(area, &keeper);
    which.cut(&kByLibrary, area.at);
    if (GetParam() != State::kPinnedBefore) put_into_state(area, &keeper);
    EXPECT_EQ(expected, run(which, &kByLibrary, area)) << which.name;
    check_pins(which, area);
  }
}
INSTANTIATE_TEST_SUITE_P(Over, HalfCall,
                         testing::Values(State::kResident, State::kAbsent, State::kHidden,
                                         State::kExclusive, State::kPinned, State::kPinnedBefore),
                         [](const auto& state) { return name_of(state.param); });

}  // namespace
}  // namespace stagetwo
