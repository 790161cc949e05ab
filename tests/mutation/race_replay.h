// SPDX-License-Identifier: Apache-2.0
#pragma once

// One race, replayed: the schedule that breaks a scenario without its guard, printed as it happens,
// a column for each thread; and the same scenario with the guard, which holds. Each part runs in a
// child, because a schedule that fails leaves locks held and may end the process.
//
// Shown are what the scenario says (sched::note), the engine's trace events, and the accesses to
// words that have a name: the stage-2 entries on the way to the frames of the scenario.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/guard.h"
#include "base/trace.h"
#include "host/mmu_notifier.h"
#include "tests/sched/bell_scenarios.h"
#include "tests/sched/dirty_scenarios.h"
#include "tests/sched/interval_scenarios.h"
#include "tests/sched/mirror_scenarios.h"
#include "tests/sched/owners_scenarios.h"
#include "tests/sched/pins_scenarios.h"
#include "tests/sched/stage2_scenarios.h"
#include "tests/support/on_shared_page.h"

namespace stagetwo::test {

struct Replay {
  bool show;        // prints the schedule
  unsigned others;  // schedules that are to hold beside it, with the guards
};

struct Race {
  const char* name;
  const char* what;
  const char* upstream;  // hash and title where there is one
  std::vector<const char*> guards;
  std::vector<const char*> columns;  // what the threads are
  unsigned limit;                    // schedules to try
  // Searches without the guards, replays what was found, and tries others with them.
  bool (*replay)(const Race& race, Replay how);
};

namespace replay_detail {

constexpr size_t kColumn = 46;
inline const Race* shown = nullptr;
inline u64 last_record = 0;
inline std::string last_line[sched::kMaxThreads];
inline u32 thread_ids[sched::kMaxThreads];

inline void print_heads() {
  std::string line;
  for (const char* column : shown->columns) {
    std::string cell = column;
    cell.resize(kColumn, ' ');
    line += (line.empty() ? "  " : " | ") + cell;
  }
  std::printf("%s\n  %s\n", line.c_str(), std::string(line.size() - 2, '-').c_str());
}

inline void print(unsigned thread, const std::string& text) {
  if (text == last_line[thread]) return;  // a loop that waits
  last_line[thread] = text;
  std::string line;
  for (unsigned i = 0; i < shown->columns.size(); ++i) {
    std::string cell = i == thread ? text : "";
    cell.resize(kColumn, ' ');
    line += (i == 0 ? "  " : " | ") + cell;
  }
  line.erase(line.find_last_not_of(' ') + 1);
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

inline std::string hex(u64 value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%#llx", static_cast<unsigned long long>(value));
  return text;
}

// What the engine's own events tell. Those of rooms say nothing about the order of accesses.
inline void print_records() {
  struct Line {
    unsigned thread;
    std::string text;
  };
  u64 number = 0;
  std::vector<Line> lines;
  trace::for_each([&](const trace::Record& record) {
    if (++number <= last_record || record.event == trace::Event::st_room) return;
    Line line{0, std::string(trace::name_of(record.event))};
    while (line.thread + 1 < shown->columns.size() && thread_ids[line.thread] != record.tid) {
      ++line.thread;
    }
    for (unsigned i = 0; i < 2; ++i) line.text += " " + hex(record.arg[i]);
    lines.push_back(line);
  });
  last_record = number;
  for (const Line& line : lines) print(line.thread, line.text);
}

inline std::string meaning_of(Word word, unsigned level) {
  if (Format::is_frozen(word)) return "FROZEN";
  if (Format::is_table(word, level)) return "a table";
  if (!Format::is_present(word)) return Format::is_mmio(word) ? "no slot" : "nothing";
  std::string text = "a leaf";
  if (Format::is_writable(word)) text += ", writable";
  if (Format::is_dirty(word)) text += ", dirty";
  return text;
}

// "entry of frame 5, level 1", or empty.
inline bool name_entry(TdpMmu& mmu, MmuContext& context, const void* word,
                       std::initializer_list<u64> frames, std::string* name, unsigned* level) {
  if (TdpTestAccess::root(context) == nullptr) return false;
  for (const u64 frame : frames) {
    for (*level = 1; *level <= 4; ++*level) {
      const auto found = TdpTestAccess::find(mmu, context, Gfn(frame), *level);
      if (found.level != *level || found.entry != word) continue;
      *name = "entry(frame " + std::to_string(frame) + ", level " + std::to_string(*level) + ")";
      return true;
    }
  }
  return false;
}
inline bool name_word(TdpScenario& s, const void* word, std::string* name, unsigned* level) {
  return name_entry(s.world.mmu, s.context[2], word, {5, 512, 517}, name, level);
}
inline bool name_word(SmallVm& vm, const void* word, std::string* name, unsigned* level) {
  return name_entry(vm.memory->tdp(), *vm.contexts[0], word, {kGpa >> kPageShift}, name, level);
}

// Of what has no stage-2 entries the notes are shown, and the trace.
template <typename Scenario>
bool name_word(Scenario&, const void*, std::string*, unsigned*) {
  return false;
}

template <typename Scenario>
void observe(void* context, unsigned thread, const sched::Access& access) {
  thread_ids[thread] = static_cast<u32>(gettid());
  print_records();
  if (access.kind == sched::Access::Kind::kNote) {
    return print(thread, static_cast<const char*>(access.word));
  }
  std::string name;
  unsigned level = 0;
  if (!name_word(*static_cast<Scenario*>(context), access.word, &name, &level)) return;
  const bool load = access.kind == sched::Access::Kind::kLoad;
  print(thread, name + (load ? " is " : " := ") + meaning_of(access.value, level));
}

// One schedule. False: it broke the scenario, *why says how.
template <typename Scenario>
bool run_one(u64 seed, bool show, const char** why) {
  auto* scenario = new Scenario;
  sched::Options options;
  options.seed = seed;
  if (show) {
    static_cast<void>(trace::start());
    options.observer = &observe<Scenario>;
    options.observer_context = scenario;
  }
  const auto outcome =
      sched::run(options, Scenario::kThreads, [&](unsigned index) { scenario->thread(index); });
  *why = outcome.why;
  if (!outcome.finished()) return false;
  if constexpr (requires { scenario->after(); }) {
    scenario->after();
    *why = "at the end";
    if (::testing::Test::HasFailure()) return false;
  }
  delete scenario;
  return true;
}

// Runs `part` in a child of its own, and answers as it does. A child that dies answers nothing.
template <typename F>
std::optional<bool> in_child(F&& part) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    host::notifiers_after_fork_child();
    _exit(part() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) > 1) return std::nullopt;
  return WEXITSTATUS(status) == 0;
}

inline void be_quiet() {
  static_cast<void>(std::freopen("/dev/null", "w", stdout));
  static_cast<void>(std::freopen("/dev/null", "w", stderr));
}

}  // namespace replay_detail

template <typename Scenario>
bool replay_race(const Race& race, Replay how) {
  namespace d = replay_detail;
  // Where the search is, known to the parent even when a schedule ends the child.
  const OnSharedPage<u64> seed;
  const auto remove_guards = [&] {
    for (const char* guard : race.guards) mutation::remove(guard);
  };
  const auto survived = d::in_child([&] {
    d::be_quiet();
    remove_guards();
    const char* why = nullptr;
    for (*seed = 1; *seed <= race.limit; ++*seed) {
      if (!d::run_one<Scenario>(*seed, false, &why)) return false;
    }
    return true;
  });
  const u64 found = *seed;
  if (survived == true) return false;
  if (how.show) {
    const auto holds = d::in_child([&] {
      d::shown = &race;
      remove_guards();
      d::print_heads();
      const char* why = nullptr;
      // The process has tables that grow: what it was like when the search came here.
      for (u64 before = 1; before < found; ++before) d::run_one<Scenario>(before, false, &why);
      if (d::run_one<Scenario>(found, true, &why)) return true;
      std::printf("\n  broken: %s (schedule %llu)\n", why, static_cast<unsigned long long>(found));
      std::fflush(stdout);
      return false;
    });
    if (holds == true) return false;  // another schedule than the one that was found
    if (!holds) {
      std::printf("\n  broken: the check that failed ends the process (schedule %llu)\n",
                  static_cast<unsigned long long>(found));
    }
  }
  const auto holds = d::in_child([&] {
    d::be_quiet();
    const char* why = nullptr;
    if (!d::run_one<Scenario>(found, false, &why)) return false;
    for (u64 i = 1; i <= how.others; ++i) {
      if (!d::run_one<Scenario>(i, false, &why)) return false;
    }
    return true;
  });
  return holds == true;
}

}  // namespace stagetwo::test
