// SPDX-License-Identifier: Apache-2.0
// Goal: every call in every state of the guest and of the page it names answers what the rules say,
// and leaves what they say. The cells are data: tests/unit/uv/uv_table.txt, a rule on each line.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <fstream>
#include <functional>
#include <ostream>
#include <string>
#include <thread>

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

void PrintTo(const Cell& cell, std::ostream* to) {
  *to << cell.row.call << ", guest " << cell.row.guest << ", page " << cell.row.page << " ("
      << cell.row.rule << ")";
}

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(' ');
  return first == std::string::npos ? ""
                                    : text.substr(first, text.find_last_not_of(' ') - first + 1);
}

constexpr const char* kNoWay = "UNREACHABLE";

// All lines at both sizes: of calls, or of the pairs no way leads to.
std::vector<Cell> cells(bool reachable) {
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
      if ((words[3] == kNoWay) == reachable) continue;
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

// A guest in a state, with a page in a state. Page 1 is the one, page 9 is in no slot, and page 6
// is plugged into a guest that is secure (in_the_middle_of_a_plug): a secure guest has no other
// normal pages.
class World {
 public:
  World(const std::string& guest, const std::string& page, u64 page_bytes)
      : m(page_bytes, 16),
        plugs(guest == "secure" && page == "normal"),
        subject(page == "none" ? 9
                : plugs        ? kPlugged + 2
                               : 1) {
    m.plug(0, 0, 4);
    m.vmm_fill(0, 8);
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
  [[nodiscard]] u64 slot() const { return subject == 1 ? 0 : plugs ? 1 : 3; }

  // Memory is plugged into the secure guest: its second page is about to leave the process, the
  // third, the subject, is normal. `what` is done by another thread there. A change of the guest's
  // life waits until the plug is over; everything else answers.
  std::string in_the_middle_of_a_plug(const std::function<std::string()>& what) {
    std::string answer;
    std::atomic<bool> is_done{false};
    bool waits = false;
    std::thread other;
    m.normal.before_take = [&](Gpa page) {
      if (page != m.gpa(kPlugged + 1) || other.joinable()) return;
      EXPECT_EQ(m.guest.state(), GuestState::kSecure);
      EXPECT_EQ(m.hv_page(subject), PageState::kNormal);
      other = std::thread([&] {
        answer = what();
        is_done = true;
      });
      while (!is_done && m.guest.debug_life().wanted == 0) sync::yield_thread();
      waits = !is_done;
    };
    m.plug(1, kPlugged, 4);
    EXPECT_TRUE(other.joinable());
    if (other.joinable()) other.join();
    m.normal.before_take = nullptr;
    return waits ? "WAITS " + answer : answer;
  }

  static constexpr u64 kPlugged = 4;
  SecureMachine m;
  const bool plugs;
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
      return name_of(w.m.uv_call(Call::kUvUnregisterMemSlot, w.slot(), 0, 0, 0, caller));
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
    if (name == "PLUG") {
      return w.m.guest.add_slot(9, w.m.gpa(w.subject), w.m.page_bytes) ? "SUCCESS" : "REFUSED";
    }
    if (name == "UNPLUG") {
      w.m.guest.remove_slot(static_cast<u32>(w.slot()));
      return "DONE";
    }
    if (name == "PAGE_IN_ALTERED") {
      if (w.m.normal.is_absent(w.m.gpa(w.subject))) return "ABSENT";
      EXPECT_TRUE(w.m.vmm_write(w.subject, w.m.text(w.subject, 1)));
      return name_of(w.m.ultravisor.ask_page_in(w.m.kLpid, w.m.gpa(w.subject)));
    }
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
  World w(row().guest, row().page, GetParam().page_bytes);
  ASSERT_EQ(name_of(w.m.guest.state()), row().guest);
  const auto does = [&] { return do_it(w); };
  if (w.plugs) {
    EXPECT_EQ(w.in_the_middle_of_a_plug(does), row().answer);
  } else {
    ASSERT_EQ(name_of(w.m.hv_page(w.subject)), row().page);
    EXPECT_EQ(does(), row().answer);
  }
  EXPECT_EQ(name_of(w.m.guest.state()), row().guest_after);
  EXPECT_EQ(name_of(w.m.hv_page(w.subject)), row().hv_after);
  if (row().uv_after == "-") return;
  EXPECT_EQ(name_of(w.m.uv_page(w.subject)), row().uv_after);
}

INSTANTIATE_TEST_SUITE_P(Cells, UvTable, testing::ValuesIn(cells(true)),
                         [](const auto& cell) { return name_of(cell.param); });

using Pair = std::pair<std::string, std::string>;  // of the guest's state and the page's

std::map<std::string, std::map<Pair, Row>> lines_of_calls() {
  std::map<std::string, std::map<Pair, Row>> lines;
  for (const Cell& cell : cells(true))
    lines[cell.row.call][{cell.row.guest, cell.row.page}] = cell.row;
  return lines;
}
std::set<Pair> pairs(bool reachable) {
  std::set<Pair> all;
  for (const Cell& cell : cells(reachable)) all.insert({cell.row.guest, cell.row.page});
  return all;
}

// The file has a line for each call in each pair of states that can be, no line twice, and a line
// for each pair that cannot.
TEST(UvTableFile, HasEveryCellOfEveryCallOnce) {
  const std::set<Pair> can_be = pairs(true), cannot_be = pairs(false);
  EXPECT_EQ(can_be.size() + cannot_be.size(), 18U);
  for (const Pair& pair : cannot_be) EXPECT_FALSE(can_be.contains(pair)) << pair.second;
  const auto lines = lines_of_calls();
  EXPECT_GE(lines.size(), 45U);
  for (const auto& [call, of_pairs] : lines) EXPECT_EQ(of_pairs.size(), can_be.size()) << call;
  EXPECT_EQ(cells(true).size(), 2 * lines.size() * can_be.size());
  EXPECT_EQ(cells(false).size(), 2 * cannot_be.size());
  for (const Cell& cell : cells(true)) EXPECT_NE(cell.row.rule, "") << cell.row.call;
}

// A pair of states that cannot be. It is no cell of any call's, as no call can be made there; what
// is shown is that there is no way.
class UvTableNoWay : public testing::TestWithParam<Cell> {
 protected:
  [[nodiscard]] Pair pair() const { return {GetParam().row.guest, GetParam().row.page}; }

  // The pages of a normal guest are normal, also while somebody is on his way through them: looked
  // at with every message and before every page that is taken or thrown away.
  static void watch(World& w, u64* looks) {
    const auto look = [&w, looks] {
      ++*looks;
      if (w.m.guest.state() != GuestState::kNormal) return;
      for (u64 page = 0; page < 4; ++page) EXPECT_EQ(w.m.hv_page(page), PageState::kNormal) << page;
    };
    w.m.to_uv.watch(look);
    w.m.to_hv.watch(look);
    w.m.normal.before_take = w.m.normal.before_discard = [look](Gpa) { look(); };
  }
};

// From a guest whose page never was anything, calls lead from pair to pair. Each step is a case of
// UvTable, which every call has in every pair that can be; so who is not met here is never met.
TEST_P(UvTableNoWay, NoCallLeadsThere) {
  const auto lines = lines_of_calls();
  // What is plugged into a secure guest is normal while it is.
  std::set<Pair> met = {{"normal", "none"}, {"normal", "normal"}, {"secure", "normal"}};
  for (size_t before = 0; before != met.size();) {
    before = met.size();
    for (const auto& [call, of_pairs] : lines) {
      for (const Pair& from : std::set<Pair>(met)) {
        const Row& row = of_pairs.at(from);
        met.insert({row.guest_after, row.hv_after});
      }
    }
  }
  EXPECT_FALSE(met.contains(pair()));
  EXPECT_EQ(met, pairs(true)) << "and there is a way to each of the others";
}

// Who makes such a page in another guest does not in a normal one, and says so: its line has the
// code. UV_ESM makes the guest another first.
TEST_P(UvTableNoWay, WhoMakesSuchAPageIsRefused) {
  unsigned makers = 0;
  for (const auto& [call, of_pairs] : lines_of_calls()) {
    const bool makes = std::ranges::any_of(of_pairs, [&](const auto& line) {
      const auto& [from, row] = line;
      const bool plug_does = from == Pair{"secure", "normal"};
      return row.hv_after == pair().second && from.second != pair().second && !plug_does;
    });
    const Row& row = of_pairs.at({"normal", "normal"});
    if (!makes || row.guest_after != "normal") continue;
    ++makers;
    EXPECT_EQ(row.hv_after, "normal") << call;
    EXPECT_NE(row.answer, "SUCCESS") << call;
  }
  EXPECT_GT(makers, 0U);
}

TEST_P(UvTableNoWay, NotEvenOnTheWayOut) {
  for (const std::string guest : {"transient", "secure"}) {
    for (const std::string way : {"ABORT", "OFF", "UNPLUG", "TERMINATED"}) {
      SCOPED_TRACE(guest + " " + way);
      World w(guest, pair().second, GetParam().page_bytes);
      ASSERT_EQ(name_of(w.m.hv_page(1)), pair().second);
      u64 looks = 0;
      watch(w, &looks);
      if (way == "ABORT") {
        const Status done = w.m.h_svm(Call::kHSvmInitAbort);
        EXPECT_EQ(done, guest == "secure" ? Status::kState : Status::kParameter);
      }
      if (way == "TERMINATED") {
        EXPECT_EQ(w.m.uv_call(Call::kUvSvmTerminate), Status::kSuccess);
        EXPECT_EQ(name_of(w.m.hv_page(1)), pair().second);
      }
      if (way == "UNPLUG") w.m.guest.remove_slot(0);
      EXPECT_TRUE(w.m.guest.svm_off().has_value());
      EXPECT_GT(looks, 0U);
      EXPECT_EQ(w.m.guest.state(), GuestState::kNormal);
      EXPECT_EQ(w.m.hv_page(1), way == "UNPLUG" ? PageState::kNone : PageState::kNormal);
      EXPECT_EQ(w.m.uv_page(1), PageState::kNone);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Pairs, UvTableNoWay, testing::ValuesIn(cells(false)),
                         [](const auto& cell) { return name_of(cell.param); });

}  // namespace
}  // namespace stagetwo::uv
