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

}  // namespace
}  // namespace stagetwo
