// SPDX-License-Identifier: Apache-2.0
// Goal: every call in every state of the guest and of the page it names answers what the rules say,
// and leaves what they say. The cells are data: tests/unit/uv/uv_table.txt, a rule on each line.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <functional>
#include <string>

#include "tests/support/secure_machine.h"
#include "uv/page_states.h"

namespace stagetwo::uv {
namespace {

using test::Bytes;
using test::SecureMachine;

struct Row {
  std::string call, guest, page, answer, guest_after, hv_after, uv_after, rule;
};
struct Cell {
  Row row;
  u64 page_bytes;
};

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(' ');
  return first == std::string::npos ? ""
                                    : text.substr(first, text.find_last_not_of(' ') - first + 1);
}

std::vector<Cell> cells() {
  std::vector<Cell> all;
  for (const u64 page_bytes : {u64{4096}, u64{65536}}) {
    std::ifstream file(ST_SOURCE_DIR "/tests/unit/uv/uv_table.txt");
    for (std::string line; std::getline(file, line);) {
      if (line.empty() || line[0] == '#') continue;
      std::vector<std::string> words;
      for (size_t at = 0; at != std::string::npos;) {
        const size_t bar = line.find('|', at);
        words.push_back(trimmed(line.substr(at, bar == std::string::npos ? bar : bar - at)));
        at = bar == std::string::npos ? bar : bar + 1;
      }
      words.resize(8);
      all.push_back(
          {{words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7]},
           page_bytes});
    }
  }
  return all;
}

constexpr const char* kPageNames[kPageStates] = {"none",      "normal", "secure",
                                                 "paged_out", "shared", "lost"};
std::string name_of(PageState state) {
  return kPageNames[static_cast<unsigned>(state)];
}
std::string name_of(GuestState state) {
  return state == GuestState::kNormal      ? "normal"
         : state == GuestState::kTransient ? "transient"
                                           : "secure";
}
std::string name_of(Status status) {
  switch (status) {
    case Status::kSuccess:
      return "SUCCESS";
    case Status::kBusy:
      return "BUSY";
    case Status::kNotAvailable:
      return "NOT_AVAILABLE";
    case Status::kHardware:
      return "HARDWARE";
    case Status::kFunction:
      return "FUNCTION";
    case Status::kParameter:
      return "PARAMETER";
    case Status::kRetry:
      return "RETRY";
    case Status::kAuthority:
      return "AUTHORITY";
    case Status::kPermission:
      return "PERMISSION";
    case Status::kP2:
      return "P2";
    case Status::kP3:
      return "P3";
    case Status::kP4:
      return "P4";
    case Status::kP5:
      return "P5";
    case Status::kBadMode:
      return "BAD_MODE";
    case Status::kUnsupported:
      return "UNSUPPORTED";
    case Status::kState:
      return "STATE";
  }
  return "?";
}

// A guest in a state, with a page in a state. Page 1 is the one; page 9 is in no slot.
class World {
 public:
  World(const std::string& guest, const std::string& page, u64 page_bytes)
      : m(page_bytes, 16), subject(page == "none" ? 9 : 1) {
    m.plug(0, 0, 4);
    m.vmm_fill(0, 4);
    Status begun = Status::kSuccess;
    if (guest == "transient") begun = m.ultravisor.esm_begin(m.kLpid);
    if (guest == "secure") begun = m.esm();
    EXPECT_EQ(begun, Status::kSuccess);
    if (page == "none" || page == "normal") return;
    if (page == "shared") {
      EXPECT_EQ(m.ultravisor.ask_share(m.kLpid, m.gpa(1)), Status::kSuccess);
      return;
    }
    EXPECT_EQ(m.ultravisor.ask_page_in(m.kLpid, m.gpa(1)), Status::kSuccess);
    if (page == "secure") return;
    EXPECT_EQ(m.ultravisor.ask_page_out(m.kLpid, m.gpa(1)), Status::kSuccess);
    if (page == "paged_out") return;
    EXPECT_TRUE(m.vmm_write(1, m.text(1)));
    EXPECT_EQ(m.ultravisor.ask_page_in(m.kLpid, m.gpa(1)), Status::kParameter);
  }

  SecureMachine m;
  const u64 subject;
};

std::string name_of(const Cell& cell) {
  std::string name = cell.row.call + "_guest_" + cell.row.guest + "_page_" + cell.row.page +
                     (cell.page_bytes == 4096 ? "_4K" : "_64K");
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

class UvTable : public testing::TestWithParam<Cell> {
 protected:
  [[nodiscard]] const Row& row() const { return GetParam().row; }

  // No way leads there: a guest that is normal again has normal pages, a secure one has none. The
  // call is made where the way ends.
  void expect_unreachable() {
    if (row().guest == "normal") {
      World w("secure", row().page, GetParam().page_bytes);
      EXPECT_EQ(name_of(w.m.hv_page(1)), row().page);
      ASSERT_TRUE(w.m.guest.svm_off().has_value());
      EXPECT_EQ(w.m.hv_page(1), PageState::kNormal);
      EXPECT_EQ(w.m.uv_page(1), PageState::kNone);
      expect_of_pair(w, "normal");
      return;
    }
    World w("transient", "normal", GetParam().page_bytes);
    ASSERT_EQ(w.m.ultravisor.esm_finish(w.m.kLpid), Status::kSuccess);
    for (u64 page = 0; page < 4; ++page) {
      EXPECT_EQ(w.m.hv_page(page), PageState::kSecure);
      EXPECT_EQ(w.m.uv_page(page), PageState::kSecure);
    }
    expect_of_pair(w, "secure");
  }

  // What the line of this call says where the guest is as this row has it and the page is `page`.
  void expect_of_pair(World& w, const std::string& page) {
    static const std::vector<Cell> all = cells();
    const auto found = std::ranges::find_if(all, [&](const Cell& cell) {
      return cell.row.call == row().call && cell.row.guest == row().guest && cell.row.page == page;
    });
    ASSERT_NE(found, all.end());
    ASSERT_NE(found->row.answer, "UNREACHABLE");
    expect_row(w, found->row);
  }
  void expect_row(World& w, const Row& said) {
    EXPECT_EQ(do_it(w), said.answer);
    EXPECT_EQ(name_of(w.m.guest.state()), said.guest_after);
    EXPECT_EQ(name_of(w.m.hv_page(w.subject)), said.hv_after);
    if (said.uv_after == "-") return;
    EXPECT_EQ(name_of(w.m.uv_page(w.subject)), said.uv_after);
  }

  static std::string touch(World& w) {
    const Bytes seen = w.m.vmm_read(w.subject);
    if (w.m.hv_page(w.subject) == PageState::kNone && w.m.guest.state() != GuestState::kNormal) {
      return "NOTHING";
    }
    if (seen.empty()) return "BUS_ERROR";
    if (w.m.hv_page(w.subject) == PageState::kLost) return "GARBAGE";
    const bool clear = seen == w.m.text(w.subject) || seen == Bytes(seen.size());
    return clear ? "CLEAR" : "SEALED";
  }
  static std::string unmap(World& w) {
    const u64 before = w.m.to_uv.count(Call::kUvPageInval);
    w.m.normal.unmap(&w.m.guest, w.m.gpa(w.subject), false);
    return w.m.to_uv.count(Call::kUvPageInval) != before ? "INVAL" : "QUIET";
  }
  static std::string guest_touch(World& w) {
    Bytes got;
    switch (w.m.guest_read(w.subject, &got)) {
      case GuestAccess::kDone: {
        const bool right = got == w.m.text(w.subject) || got == Bytes(got.size());
        return right ? "DONE" : "WRONG";
      }
      case GuestAccess::kMmio:
        return "MMIO";
      case GuestAccess::kRetry:
        return "RETRY";
      case GuestAccess::kFault:
        return "FAULT";
      case GuestAccess::kStopped:
        return "STOPPED";
    }
    return "?";
  }

  std::string service(World& w, const std::string& name, Caller caller) {
    const u64 gpa = w.m.gpa(w.subject).raw(), order = order_of(w.m.page_bytes);
    const std::map<std::string, Call> plain = {{"H_SVM_INIT_START", Call::kHSvmInitStart},
                                               {"H_SVM_INIT_DONE", Call::kHSvmInitDone},
                                               {"H_SVM_INIT_ABORT", Call::kHSvmInitAbort},
                                               {"H_SVM_TPM_COMM", Call::kHSvmTpmComm}};
    w.m.to_uv.agree(true);
    Status answer{};
    if (const auto found = plain.find(name); found != plain.end()) {
      answer = w.m.h_svm(found->second, 0, 0, 0, caller);
    } else {
      const bool out = name == "H_SVM_PAGE_OUT", shared = name == "H_SVM_PAGE_IN_SHARED";
      answer = w.m.h_svm(out ? Call::kHSvmPageOut : Call::kHSvmPageIn, gpa, shared ? 1 : 0, order,
                         caller);
    }
    w.m.to_uv.agree(false);
    return name_of(answer);
  }

  std::string ultracall(World& w, const std::string& name, Caller caller) {
    const u64 gpa = w.m.gpa(w.subject).raw(), order = order_of(w.m.page_bytes);
    if (name == "UV_SHARE_PAGES_TO_A_HOLE") {
      w.m.normal.unmap(&w.m.guest, w.m.gpa(w.subject + 1), true);
      return name_of(w.m.guest_call(Call::kUvSharePage, w.subject, 2, caller));
    }
    const bool guests = name == "UV_ESM" || name.find("SHARE") != std::string::npos;
    if (guests) {
      const Call call = name == "UV_ESM"            ? Call::kUvEsm
                        : name == "UV_SHARE_PAGE"   ? Call::kUvSharePage
                        : name == "UV_UNSHARE_PAGE" ? Call::kUvUnsharePage
                                                    : Call::kUvUnshareAllPages;
      const u64 first = call == Call::kUvEsm ? 1 : w.subject;
      return name_of(w.m.guest_call(call, first, 1, caller));
    }
    u64 frame = 0;
    if (name == "UV_PAGE_IN") {
      // What the process has there: bytes, sealed bytes.
      frame = w.m.memory.make();
      const Bytes bytes = w.m.hv_page(w.subject) == PageState::kSecure ? Bytes(w.m.page_bytes)
                                                                       : w.m.vmm_read(w.subject);
      EXPECT_TRUE(w.m.memory.write(frame, bytes.data(), bytes.size()));
      return name_of(w.m.uv_call(Call::kUvPageIn, frame, gpa, 0, order, caller));
    }
    if (name == "UV_PAGE_OUT") {
      frame = w.m.memory.make();
      return name_of(w.m.uv_call(Call::kUvPageOut, frame, gpa, 0, order, caller));
    }
    if (name == "UV_PAGE_INVAL") {
      return name_of(w.m.uv_call(Call::kUvPageInval, gpa, order, 0, 0, caller));
    }
    if (name == "UV_REGISTER_MEM_SLOT") {
      return name_of(
          w.m.uv_call(Call::kUvRegisterMemSlot, w.m.gpa(100).raw(), w.m.page_bytes, 0, 5, caller));
    }
    if (name == "UV_UNREGISTER_MEM_SLOT") {
      return name_of(
          w.m.uv_call(Call::kUvUnregisterMemSlot, w.subject == 1 ? 0 : 3, 0, 0, 0, caller));
    }
    const std::map<std::string, Call> plain = {
        {"UV_SVM_TERMINATE", Call::kUvSvmTerminate},
        {"UV_WRITE_PATE", Call::kUvWritePate},
        {"UV_RESTRICTED_SPR_WRITE", Call::kUvRestrictedSprWrite},
        {"UV_RESTRICTED_SPR_READ", Call::kUvRestrictedSprRead},
        {"UV_READ_SCOM", Call::kUvReadScom},
        {"UV_WRITE_SCOM", Call::kUvWriteScom},
        {"UV_RETURN", Call::kUvReturn},
        {"UV_READ_MEM", Call::kUvReadMem},
        {"UV_WRITE_MEM", Call::kUvWriteMem},
        {"UV_ESMB_GET_FILE", Call::kUvEsmbGetFile},
        {"UV_SEND_SBE", Call::kUvSendSbe}};
    return name_of(w.m.uv_call(plain.at(name), 0, 0, 0, 0, caller));
  }

  std::string do_it(World& w) {
    const size_t at = row().call.find('@');
    const std::string name = row().call.substr(0, at);
    const std::string who = at == std::string::npos ? "" : row().call.substr(at + 1);
    const Caller guest = row().guest == "secure" ? Caller::kSecureGuest : Caller::kGuest;
    if (name == "TOUCH") return touch(w);
    if (name == "UNMAP") return unmap(w);
    if (name == "GUEST_TOUCH") return guest_touch(w);
    if (name == "KVM_PPC_SVM_OFF") return w.m.guest.svm_off() ? "SUCCESS" : "REFUSED";
    if (name.starts_with("H_")) {
      return service(w, name, who == "GUEST" ? guest : Caller::kUltravisor);
    }
    const bool of_guest = name == "UV_ESM" || name.find("SHARE") != std::string::npos;
    const bool by_guest = (of_guest && who.empty()) || who == "GUEST";
    return ultracall(w, name, by_guest ? guest : Caller::kHypervisor);
  }
};

TEST_P(UvTable, AnswersAndLeavesWhatTheRuleSays) {
  SCOPED_TRACE(row().rule);
  if (row().answer == "UNREACHABLE") {
    expect_unreachable();
    return;
  }
  World w(row().guest, row().page, GetParam().page_bytes);
  ASSERT_EQ(name_of(w.m.guest.state()), row().guest);
  ASSERT_EQ(name_of(w.m.hv_page(w.subject)), row().page);
  expect_row(w, row());
}

INSTANTIATE_TEST_SUITE_P(Cells, UvTable, testing::ValuesIn(cells()),
                         [](const auto& cell) { return name_of(cell.param); });

// The file has a line for each call in each of 3 x 6 states, and no line twice.
TEST(UvTableFile, HasEveryCellOfEveryCallOnce) {
  std::map<std::string, std::set<std::string>> seen;
  for (const Cell& cell : cells()) {
    if (cell.page_bytes != 4096) continue;
    const Row& row = cell.row;
    EXPECT_TRUE(seen[row.call].insert(row.guest + " " + row.page).second) << row.call;
    EXPECT_NE(row.rule, "") << row.call;
  }
  EXPECT_GE(seen.size(), 45u);
  for (const auto& [call, states] : seen) EXPECT_EQ(states.size(), 18u) << call;
}

}  // namespace
}  // namespace stagetwo::uv
