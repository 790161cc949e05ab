// SPDX-License-Identifier: Apache-2.0
#include "base/function_table.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <link.h>

namespace stagetwo {
namespace {

struct Symbol {
  u64 base = 0;
  CodeSpan span;
};
// A function of libc with the size its symbol gives it.
Symbol libc_function(const char* name) {
  void* const libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
  void* const at = dlsym(libc, name);
  dlclose(libc);
  Dl_info about{};
  const ElfW(Sym)* symbol = nullptr;
  if (dladdr1(at, &about, reinterpret_cast<void**>(const_cast<ElfW(Sym)**>(&symbol)),
              RTLD_DL_SYMENT) == 0) {
    return {};
  }
  return {reinterpret_cast<u64>(about.dli_fbase), {reinterpret_cast<u64>(at), symbol->st_size}};
}

TEST(FunctionTable, SaysWhatTheSymbolsOfLibcSay) {
  for (const char* name : {"munmap", "mprotect", "madvise", "getpid", "open", "getenv"}) {
    const Symbol symbol = libc_function(name);
    const auto table = FunctionTable::of_object(symbol.base);
    ASSERT_TRUE(table);
    for (const u64 pc :
         {symbol.span.start, symbol.span.start + symbol.span.size / 2, symbol.span.end() - 1}) {
      const auto found = table->function_at(pc);
      ASSERT_TRUE(found) << name;
      EXPECT_EQ(found->start, symbol.span.start) << name;
      EXPECT_EQ(found->size, symbol.span.size) << name;
    }
  }
}
TEST(FunctionTable, KnowsNothingOutsideTheText) {
  const Symbol symbol = libc_function("munmap");
  const auto table = FunctionTable::of_object(symbol.base);
  ASSERT_TRUE(table);
  EXPECT_FALSE(table->function_at(0));
  EXPECT_FALSE(table->function_at(table->text().start - 1));
  EXPECT_FALSE(table->function_at(table->text().end()));
  EXPECT_FALSE(table->function_at(~u64{0}));
}
TEST(FunctionTable, IsRefusedForWhatIsNoObject) {
  alignas(64) static const char text[4096] = "not an object";
  EXPECT_FALSE(FunctionTable::of_object(reinterpret_cast<u64>(text)));
}

}  // namespace
}  // namespace stagetwo
