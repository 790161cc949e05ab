// SPDX-License-Identifier: Apache-2.0
// The races this engine knows by name. As a test: each breaks its scenario without its guard, and
// does not with it. As a command (`make race NAME=…`): prints the schedule.
#include "tests/mutation/race_replay.h"

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
       5'000,
       &replay_race<SlotsAgainstChange>},
      {"unflushed-removal",
       "a second removal finds the entry gone, and the first has not flushed yet",
       "none by hash: the rule for deferred flushes",
       {"pending_flush"},
       {"vCPU: access", "first removal", "second removal"},
       10'000,
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

// Those that are found soon; each has a test of its own guard besides (docs/checks.md).
TEST(Races, BreakWithoutTheirGuardAndNotWithIt) {
  for (const Race& race : races()) {
    const std::string_view name(race.name);
    if (name != "frozen-goal" && name != "unexpected-level" && name != "linked-below-zapped")
      continue;
    EXPECT_TRUE(race.replay(race, false)) << race.name;
  }
}

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
    const bool replayed = race.replay(race, true);
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
