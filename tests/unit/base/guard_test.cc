// SPDX-License-Identifier: Apache-2.0
// A guard is its condition and nothing else, and no symbol of the switch is in any object that is
// shipped. The switch itself is tested in tests/mutation.

#include "base/guard.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <string>

namespace stagetwo {
namespace {

TEST(Guard, IsItsCondition) {
  int asked = 0;
  const auto stale = [&asked] { return ++asked == 1; };
  EXPECT_TRUE(ST_GUARD(stale_answer, stale()));
  EXPECT_FALSE(ST_GUARD(stale_answer, stale()));
  EXPECT_EQ(asked, 2);
}

#if !defined(ST_MUTATION)

std::string symbols_of(const std::filesystem::path& file) {
  std::string out;
  const std::string command = "nm -C " + file.string() + " 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return out;
  char line[4096];
  while (fgets(line, sizeof(line), pipe) != nullptr) out += line;
  pclose(pipe);
  return out;
}

TEST(Guard, NoShippedObjectHasASwitch) {
  int archives = 0;
  for (const char* top : {"src", "lib"}) {
    const std::filesystem::path folder = std::filesystem::path(ST_BINARY_DIR) / top;
    if (!std::filesystem::exists(folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (!name.ends_with(".a") && !name.ends_with(".so")) continue;
      const std::string symbols = symbols_of(entry.path());
      ++archives;
      EXPECT_EQ(symbols.find("stagetwo::mutation"), std::string::npos) << entry.path();
    }
  }
  EXPECT_GT(archives, 0);
  const std::string base =
      symbols_of(std::filesystem::path(ST_BINARY_DIR) / "src/base/libst_base.a");
  EXPECT_NE(base.find("stagetwo::alloc"), std::string::npos)
      << "nm does not see the symbols there are";
}

#endif

}  // namespace
}  // namespace stagetwo
