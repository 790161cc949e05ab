// SPDX-License-Identifier: Apache-2.0
// The preload library as an object: what it needs, what it shows, what it does when it is loaded.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

std::set<std::string> words(const std::string& text) {
  std::istringstream in(text);
  std::set<std::string> result;
  for (std::string word; in >> word;) result.insert(word);
  return result;
}

std::string shell(const std::string& line) {
  const Outcome outcome = run_program({"sh", "-c", line});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return outcome.out;
}

TEST(Object, NeedsLibcAndTheLoaderAlone) {
  const auto needed =
      words(shell("readelf -dW " + engine() + " | sed -n 's/.*(NEEDED).*\\[\\(.*\\)\\]/\\1/p'"));
  for (const std::string& name : needed) {
    EXPECT_TRUE(name == "libc.so.6" || name == "ld-linux-x86-64.so.2") << name;
  }
  EXPECT_TRUE(needed.contains("libc.so.6"));
}

// The names between "global:" and "local:".
std::set<std::string> names_of_map() {
  std::ifstream file(ST_BINARY_DIR "/src/shim/exports.map");
  std::stringstream text;
  text << file.rdbuf();
  std::string all = text.str();
  const size_t from = all.find("global:") + 7;
  all = all.substr(from, all.find("local:") - from);
  for (char& c : all) {
    if (c == ';') c = ' ';
  }
  return words(all);
}

TEST(Object, ExportsTheNamesItStandsInFrontOfAndNothingElse) {
  const auto exported =
      words(shell("nm -D --defined-only " + engine() + " | awk '{print $3}' | sed 's/@.*//'"));
  EXPECT_EQ(exported, names_of_map());
  EXPECT_GT(exported.size(), 70u);
}

TEST(Object, HasNoNameOfTheCppRunTime) {
  const std::string undefined =
      shell("nm -D --undefined-only " + engine() + " | awk '{print $2}' | sed 's/@.*//'");
  for (const std::string& name : words(undefined)) {
    EXPECT_FALSE(name.starts_with("_ZN") || name.starts_with("_Zn") || name.starts_with("_Unwind"))
        << name;
    EXPECT_FALSE(name == "malloc" || name == "calloc" || name == "realloc" || name == "free")
        << name;
    EXPECT_FALSE(name.starts_with("mem") || name == "strlen" || name == "strnlen") << name;
  }
}

TEST(Object, MakesSystemCallsInOnePlace) {
  // The other one is the way back from a signal handler, which the kernel wants to exist.
  const std::string found = shell("objdump -d --no-show-raw-insn " + engine() +
                                  " | awk '/^[0-9a-f]+ </{f=$2} $2==\"syscall\"{print f}'");
  EXPECT_EQ(words(found), (std::set<std::string>{"<stagetwo_syscall>:", "<stagetwo_sigreturn>:"}));
  EXPECT_EQ(std::count(found.begin(), found.end(), '\n'), 2);
}

TEST(Object, HasFewThreadLocalBytesAndOneConstructor) {
  const std::string tls = shell("readelf -lW " + engine() + " | awk '$1==\"TLS\"{print $6}'");
  // A quarter of it is what host/footing.cc knows of the thread, another fifth what saves a page's
  // map two system calls (base/this_thread.h, host/pin_account.cc).
  EXPECT_LE(std::stoul(tls, nullptr, 16), 120u);
  // Two entries: the compiler's own frame_dummy, and the look at what exec left (shim/received.h).
  const std::string init = shell("readelf -dW " + engine() + " | awk '/INIT_ARRAYSZ/{print $3}'");
  EXPECT_EQ(std::stoi(init), 16);
}

TEST(Object, AllocatesNothingWhenLoaded) {
  const Outcome alone = run_program({program("counted_malloc")});
  const Outcome under = run_program({program("counted_malloc")}, {"LD_PRELOAD=" + engine()});
  EXPECT_EQ(alone.out, "0\n");
  EXPECT_EQ(under.out, "0\n");
}

TEST(Object, AwakeItUsesNothingOfTheClientsHeap) {
  // Its own arena: between two looks at the heap a machine is made, run and destroyed.
  const Outcome outcome = run_under("descriptors", {"own_arena"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

}  // namespace
}  // namespace stagetwo::test
