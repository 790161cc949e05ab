// SPDX-License-Identifier: Apache-2.0
// The races this engine knows by name. As a test: each breaks its scenario without its guard, and
// does not with it. As a command (`make race NAME=…`): prints the schedule.
#include "tests/mutation/race_replay.h"

#include <algorithm>
#include <cstring>

namespace stagetwo::test {
namespace {

const std::vector<Race>& races() {
  static const auto& all = *new std::vector<Race>{
      {"lookup-install",
       "a page is looked up, its address is unmapped and mapped anew, the old page is installed",
       "cddb8a5c14aa, 2.6.27: mmu notifiers are merged, and KVM's sequence is tested with a retry, "
       "where the posted #v7 only noticed the difference",
       {"stale_fault"},
       {"vCPU: fault", "munmap, mmap"},
       20'000,
       &replay_race<LookupAgainstChange>},
      {"registered-before-ready",
       "a subscriber registers, and then makes ready the count and the sequence its callbacks use: "
       "it forgets a change that is under way",
       "cddb8a5c14aa, 2.6.27: weakness (a) of the posted #v7, which registered before its seqlock "
       "was initialised",
       {"ready_before_it_registers"},
       {"subscriber: registers, faults", "munmap, mmap"},
       20'000,
       &replay_race<ReadyAgainstChange>},
      {"fault-spins",
       "a fault waits in a loop for as long as a whole range is taken away",
       "cddb8a5c14aa, 2.6.27: weakness (b) of the posted #v7, whose readers spin while a writer of "
       "the seqlock is active; count plus sequence answers retry",
       {"retry_instead_of_spinning"},
       {"vCPU: fault", "munmap of a range"},
       5'000,
       &replay_race<SpinAgainstRange>},
      {"change-pte",
       "a page is replaced by an equal one and change_pte alone says so: a fault that looked up "
       "the "
       "old page has no entry yet, and installs it afterwards",
       "828502d30073: change_pte for KSM; 6bdb913f0a70, 3.7: the replacement stands between start "
       "and end, which zap, so that change_pte finds nothing; 997308f9ae72, 6.10: it is removed",
       {"replaced_in_a_pair"},
       {"device: fault, use", "KSM: replaces the page"},
       5'000,
       &replay_race<FaultAgainstReplacement>},
      {"told-after-the-change",
       "invalidate_page comes after the address has lost its page, which somebody else has by then",
       "none by hash: 4.14 removes invalidate_page, atomic for some callers and not for others; "
       "start comes before, end after",
       {"told_before_the_change"},
       {"device: use", "munmap, mmap"},
       5'000,
       &replay_race<UseAgainstLateCall>},
      {"newcomer-in-a-change",
       "a subscriber registers while a change goes on that rang without it, and looks up what goes",
       "none by hash: registration takes every lock of the mm, 2.6.27",
       {"register_waits"},
       {"subscriber: registers, faults", "munmap, mmap"},
       20'000,
       &replay_race<RegisterAgainstChange>},
      {"interval-reader",
       "who reads an interval's number in the middle of a change looks up what goes, and nothing "
       "tells it afterwards",
       "99cb252f5e68, 5.5: interval notifiers; mmu_interval_read_begin waits while the number is "
       "odd",
       {"interval_read_waits"},
       {"device: fault", "munmap, mmap"},
       5'000,
       &replay_race<ReaderAgainstChange>},
      {"interval-newcomer",
       "an interval is inserted while a change goes on that found nobody there",
       "99cb252f5e68, 5.5: what is inserted during a change begins with a number that is not idle",
       {"interval_settles"},
       {"device: inserts, faults", "munmap, mmap"},
       5'000,
       &replay_race<NewcomerAgainstChange>},
      {"mirror-lookup-install",
       "a device looks a page up, the address changes, and it keeps an entry of what is going",
       "99cb252f5e68, 5.5: mmu_interval_read_retry under the driver's lock before an entry is made",
       {"mirror_gate"},
       {"device: fault, use", "munmap, mmap"},
       20'000,
       &replay_race<MirrorFaultAgainstChange>},
      {"absent-page-filled-twice",
       "a page is brought back by everybody who touches it at once",
       "none by hash: the kernel's page lock around a swap-in",
       {"owners_filling"},
       {"toucher", "toucher", "toucher"},
       5'000,
       &replay_race<ManyTouchers>},
      {"absent-page-after-munmap",
       "a page is taken, or comes back, in the middle of an munmap that gives it up",
       "none by hash: the page table lock and the mmap lock in the kernel's place",
       {"owners_change"},
       {"munmap, mmap", "toucher", "reclaim"},
       20'000,
       &replay_race<ChangeAgainstTouchAndTake>},
      {"taken-under-a-system-call",
       "a page leaves that a system call is about to use",
       "none by hash: the reference that get_user_pages takes",
       {"owners_hold"},
       {"system call", "toucher", "reclaim"},
       5'000,
       &replay_race<HoldAgainstTaker>},
      {"pin-in-a-change",
       "a page is pinned while its address changes: the pin stands for what is there afterwards",
       "none by hash: FOLL_PIN holds the page, not the address",
       {"pins_disturbed"},
       {"device: pin", "munmap, mmap"},
       5'000,
       &replay_race<PinAgainstChange>},
      {"count-before-sequence",
       "the end of a change drops the count before it raises the sequence: a fault between the two "
       "sees neither",
       "cddb8a5c14aa, 2.6.27: count plus sequence with retry, in this order, replaces the seqlock",
       {"sequence_first"},
       {"vCPU: fault", "munmap, mmap"},
       20'000,
       &replay_race<InstallAgainstChange>},
      {"frozen-goal",
       "the entry a fault aims at is frozen by a zap on its way: a leaf is put over it",
       "f5d16bb9be68, patch 1 of the TDP MMU fixes for 6.2: test for frozen before the goal level "
       "(the bug came with 63d28a25e04c)",
       {"frozen_before_leaf"},
       {"vCPU: fault", "zap under the shared lock"},
       5'000,
       &replay_race<FrozenGoal>},
      {"walk-ends-high",
       "the table above the goal goes between two reads: a small leaf is put where a table belongs",
       "80a3e4ae962d, patch 2: map only if the goal level was reached",
       {"leaf_only_at_goal"},
       {"vCPU: fault", "zap of the table"},
       5'000,
       &replay_race<ParentGoes>},
      {"listed-after-zap",
       "a table is linked, taken out by another thread, and then put on the list of NX candidates",
       "21a36ac6b6c7, patch 3: look at the reason again under the list's lock (fixes 61f94478547b)",
       {"nx_recheck_under_lock"},
       {"vCPU: fetch", "zap of the table"},
       5'000,
       &replay_race<ListedAfterItWent>},
      {"unexpected-level",
       "a walk meets a table of another level than its place says and goes on",
       "50a9ac25985c, patch 4: warn once and retry",
       {"leaf_only_at_goal", "unexpected_level"},
       {"vCPU: fault", "zap of the table"},
       5'000,
       &replay_race<ParentGoesAudited>},
      {"vcpu-not-waited-for",
       "a change goes on while a vCPU still uses what it translated",
       "none by hash: the wait of the kernel's remote TLB flush",
       {"ack_wait"},
       {"vCPU: access", "munmap, mmap"},
       5'000,
       &replay_race<LongBlockAgainstChange>},
      {"slots-swapped-in-a-change",
       "a slot goes between the start and the end of a change",
       "none by hash: mn_active_invalidate_count holds a swap of the slots back",
       {"swap_waits"},
       {"slots", "vCPU: access", "changes"},
       20'000,
       &replay_race<SlotsAgainstChange>},
      {"unflushed-removal",
       "a second removal finds the entry gone, and the first has not flushed yet",
       "none by hash: the rule for deferred flushes",
       {"pending_flush"},
       {"vCPU: access", "first removal", "second removal"},
       20'000,
       &replay_race<TwoZaps>},
      {"table-reused",
       "a table is given back and used again under a walk",
       "none by hash: the grace period of zapped tables",
       {"tdp_grace"},
       {"vCPU: walk", "zap of the table"},
       5'000,
       &replay_race<WalkAgainstRelease>},
      {"linked-below-zapped",
       "a table is linked below one that is being taken out, and leaks",
       "none by hash: removed entries stay frozen",
       {"sweep_freezes"},
       {"vCPU: fault", "zap of the table"},
       5'000,
       &replay_race<LinkedBelowWhatGoes>},
      {"marked-before-write",
       "a page is marked before the right to store is there: a harvest in between loses the store",
       "none by hash: dirty logging marks after the entry was made writable",
       {"mark_after_write"},
       {"vCPU: store", "harvest"},
       20'000,
       &replay_race<HarvestAgainstRestore>},
  };
  return all;
}

// How many threads the rows below the line of dashes are of.
int columns_used(const std::string& shown) {
  constexpr size_t kWidth = replay_detail::kColumn + 3;
  bool used[sched::kMaxThreads] = {};
  size_t at = shown.find("--\n");
  while (at != std::string::npos && (at = shown.find('\n', at)) != std::string::npos) {
    const size_t text = shown.find_first_not_of(" |", at + 1);
    if (text == std::string::npos || shown.compare(text, 6, "broken") == 0) break;
    used[std::min<size_t>((text - at - 1) / kWidth, sched::kMaxThreads - 1)] = true;
    at = text;
  }
  return static_cast<int>(std::count(std::begin(used), std::end(used), true));
}

// Each breaks its scenario without its guard, and the schedule that did holds with it.
class RaceReplay : public testing::TestWithParam<const Race*> {};

TEST_P(RaceReplay, BreaksWithoutItsGuardAndNotWithIt) {
  testing::internal::CaptureStdout();
  const bool replayed = GetParam()->replay(*GetParam(), {.show = true, .others = 20});
  const std::string shown = testing::internal::GetCapturedStdout();
  EXPECT_TRUE(replayed) << shown;
  EXPECT_LE(2, columns_used(shown)) << "one thread alone is no race\n" << shown;
}
std::vector<const Race*> all_of_them() {
  std::vector<const Race*> all;
  for (const Race& race : races()) all.push_back(&race);
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, RaceReplay, testing::ValuesIn(all_of_them()), [](const auto& race) {
  std::string name = race.param->name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(Races, HaveNamesOfTheirOwnAndSayWhereTheyComeFrom) {
  for (const Race& race : races()) {
    EXPECT_EQ(std::string_view::npos, std::string_view(race.name).find('_')) << "a test's name";
    EXPECT_GT(std::strlen(race.what), 0U);
    EXPECT_GT(std::strlen(race.upstream), 0U);
    int called_so = 0;
    for (const Race& other : races()) called_so += std::strcmp(race.name, other.name) == 0;
    EXPECT_EQ(1, called_so);
  }
}

int list() {
  for (const Race& race : races()) {
    std::printf("%-26s %s\n%-26s %s\n", race.name, race.what, "", race.upstream);
  }
  return 0;
}

int show(const char* name) {
  for (const Race& race : races()) {
    if (std::strcmp(race.name, name) != 0) continue;
    std::printf("%s: %s\nupstream: %s\nwithout ", race.name, race.what, race.upstream);
    for (const char* guard : race.guards) std::printf("ST_GUARD(%s) ", guard);
    std::printf("\n\n");
    const bool replayed = race.replay(race, {.show = true, .others = 200});
    std::printf("  with the guard: %s\n",
                replayed ? "this schedule and 200 others hold" : "NOT REPLAYED");
    std::printf("%d passed, %d failed, 0 skipped\n", replayed ? 1 : 0, replayed ? 0 : 1);
    return replayed ? 0 : 1;
  }
  std::printf("race: there is none called %s\n", name);
  return 2;
}

}  // namespace

int replay_main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "list") == 0) return list();
  if (argc == 2 && argv[1][0] != '-') return show(argv[1]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

}  // namespace stagetwo::test

int main(int argc, char** argv) {
  return stagetwo::test::replay_main(argc, argv);
}
