// SPDX-License-Identifier: Apache-2.0
#include "base/size_text.h"

#include <gtest/gtest.h>

namespace stagetwo {
namespace {

TEST(SizeText, ReadsSizes) {
  EXPECT_EQ(0U, *parse_size("0"));
  EXPECT_EQ(4096U, *parse_size("4096"));
  EXPECT_EQ(4096U, *parse_size("4096B"));
  EXPECT_EQ(u64{256} << 20, *parse_size("256M"));
  EXPECT_EQ(u64{256} << 20, *parse_size("256m"));
  EXPECT_EQ(u64{256} << 20, *parse_size("256MiB"));
  EXPECT_EQ(u64{3} << 10, *parse_size("3K"));
  EXPECT_EQ(u64{1} << 30, *parse_size("1G"));
  EXPECT_EQ(u64{2} << 40, *parse_size("2T"));
}
TEST(SizeText, RefusesWhatIsNoSize) {
  for (const char* text : {"", "M", "x", "-1", "1X", "1MB", "1.5G", "1 M", "1MiBx", " 1"}) {
    const auto size = parse_size(text);
    ASSERT_FALSE(size) << text;
    EXPECT_EQ(EINVAL, to_int(size.error())) << text;
  }
  for (const char* text : {"18446744073709551616", "16777216T", "99999999999999999999G"}) {
    const auto size = parse_size(text);
    ASSERT_FALSE(size) << text;
    EXPECT_EQ(ERANGE, to_int(size.error())) << text;
  }
}
TEST(SizeText, ReadsIntervals) {
  EXPECT_EQ(u64{2'000'000'000}, *parse_interval("2"));
  EXPECT_EQ(u64{2'000'000'000}, *parse_interval("2s"));
  EXPECT_EQ(u64{250'000'000}, *parse_interval("250ms"));
  EXPECT_EQ(u64{60'000'000'000}, *parse_interval("1min"));
  for (const char* text : {"", "s", "1h", "1.5s", "-1s"})
    EXPECT_FALSE(parse_interval(text)) << text;
}

}  // namespace
}  // namespace stagetwo
