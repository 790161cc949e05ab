// SPDX-License-Identifier: Apache-2.0
#include "base/text.h"

#include <gtest/gtest.h>

#include <limits>

namespace stagetwo {
namespace {

TEST(Text, AppendsNumbersAndText) {
  FixedString<128> text;
  text.append("a=").append_int(-5).append_char(' ').append_hex(0xbeef, 8).append(" ").append_int(
      7u);
  EXPECT_EQ(text.view(), "a=-5 0x0000beef 7");
  EXPECT_STREQ(text.c_str(), "a=-5 0x0000beef 7");
  EXPECT_FALSE(text.cut());
}

TEST(Text, TheSmallestNumberIsNotLost) {
  FixedString<64> text;
  text.append_int(std::numeric_limits<s64>::min());
  EXPECT_EQ(text.view(), "-9223372036854775808");
}

TEST(Text, WhatDoesNotFitIsCutAndSaid) {
  FixedString<8> text;
  text.append("0123456789");
  EXPECT_EQ(text.view(), "0123456");
  EXPECT_TRUE(text.cut());
  text.append("x");
  EXPECT_EQ(text.size(), 7u);
  text.clear();
  EXPECT_EQ(text.view(), "");
  EXPECT_FALSE(text.cut());
}

TEST(Text, ParsesDecimalAndHexadecimal) {
  u64 value = 1;
  EXPECT_TRUE(parse_u64("0", &value));
  EXPECT_EQ(value, 0u);
  EXPECT_TRUE(parse_u64("18446744073709551615", &value));
  EXPECT_EQ(value, ~u64{0});
  EXPECT_TRUE(parse_u64("0xFf", &value));
  EXPECT_EQ(value, 255u);
}

TEST(Text, RefusesWhatIsNotANumber) {
  u64 value = 77;
  for (const char* text : {"", "0x", "12a", "-1", " 1", "1 ", "18446744073709551616", "0xg"}) {
    EXPECT_FALSE(parse_u64(text, &value)) << text;
  }
  EXPECT_EQ(value, 77u);
}

struct Written {
  std::string_view text;
  int error;  // 0: it is the number
  u64 value = 0;
};

// lib/kstrtox.c, row by row: its order of refusals is seen where two would fit.
TEST(Text, ReadsAnUnsignedNumberAsTheKernelDoes) {
  const Written rows[] = {
      {"0", 0, 0},
      {"+7", 0, 7},
      {"7\n", 0, 7},
      {"0x1F", 0, 31},
      {"0X1f\n", 0, 31},
      {"010", 0, 8},
      {"4294967295", 0, 0xffffffff},
      {{"5\0junk", 6}, 0, 5},
      {"", EINVAL},
      {"+", EINVAL},
      {"\n", EINVAL},
      {"++1", EINVAL},
      {"-1", EINVAL},
      {" 1", EINVAL},
      {"1 ", EINVAL},
      {"1\n\n", EINVAL},
      {"\n1", EINVAL},
      {"0x", EINVAL},
      {"0xg", EINVAL},
      {"0x+1", EINVAL},
      {"08", EINVAL},
      {"12a", EINVAL},
      {"4294967296", ERANGE},
      {"4294967296x", EINVAL},  // 64 bits hold it: what follows is seen before the bound
      {"18446744073709551616", ERANGE},
      {"18446744073709551616x", ERANGE},  // they do not: what follows is not looked at
  };
  for (const Written& row : rows) {
    const auto got = parse_kernel_unsigned(row.text, 0xffffffff);
    EXPECT_EQ(row.error, got ? 0 : to_int(got.error())) << row.text;
    EXPECT_EQ(row.value, got.value_or(0)) << row.text;
  }
}

TEST(Text, ReadsInTheBaseItsReaderAsksFor) {
  EXPECT_EQ(10u, parse_kernel_unsigned("010", ~u64{0}, 10));
  EXPECT_EQ(~u64{0}, parse_kernel_unsigned("18446744073709551615", ~u64{0}, 10));
  EXPECT_EQ(16u, parse_kernel_unsigned("10", ~u64{0}, 16));
  EXPECT_EQ(16u, parse_kernel_unsigned("0x10", ~u64{0}, 16));
  EXPECT_FALSE(parse_kernel_unsigned("0x10", ~u64{0}, 10));
}

TEST(Text, ReadsASignedNumberAsTheKernelDoes) {
  constexpr s64 kLeast = std::numeric_limits<s64>::min(), kMost = std::numeric_limits<s64>::max();
  EXPECT_EQ(-5, parse_kernel_signed("-5\n"));
  EXPECT_EQ(5, parse_kernel_signed("+5"));
  EXPECT_EQ(0, parse_kernel_signed("-0"));
  EXPECT_EQ(-16, parse_kernel_signed("-0x10"));
  EXPECT_EQ(kMost, parse_kernel_signed("0x7fffffffffffffff"));
  EXPECT_EQ(kLeast, parse_kernel_signed("-0x8000000000000000"));
  for (const char* text : {"", "-", "-+5", "+-5", "--5", "- 5"}) {
    const auto got = parse_kernel_signed(text);
    EXPECT_EQ(EINVAL, got ? 0 : to_int(got.error())) << text;
  }
  for (const char* text : {"0x8000000000000000", "-0x8000000000000001", "99999999999999999999"}) {
    const auto got = parse_kernel_signed(text);
    EXPECT_EQ(ERANGE, got ? 0 : to_int(got.error())) << text;
  }
}

}  // namespace
}  // namespace stagetwo
