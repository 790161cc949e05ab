// SPDX-License-Identifier: Apache-2.0
#include "vfio/uuid.h"

#include <gtest/gtest.h>

namespace stagetwo::vfio {
namespace {

constexpr std::string_view kText = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

int error_of(std::string_view text) {
  const auto uuid = parse_uuid(text);
  return uuid ? 0 : to_int(uuid.error());
}

TEST(Uuid, IsWrittenAsItWasReadInLowerCase) {
  FixedString<40> text;
  parse_uuid("83B8F4F2-509F-382F-3C1E-E6BFE0FA1001")->append(text);
  EXPECT_EQ(text.view(), kText);
}

TEST(Uuid, WhatIsBehindItsCharactersIsNotLookedAt) {
  EXPECT_EQ(error_of(kText), 0);
  EXPECT_EQ(error_of("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n"), 0);
  EXPECT_EQ(*parse_uuid("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001x"), *parse_uuid(kText));
}

TEST(Uuid, OtherTextIsRefused) {
  EXPECT_EQ(error_of(""), EINVAL);
  EXPECT_EQ(error_of(kText.substr(1)), EINVAL);
  EXPECT_EQ(error_of("83b8f4f2+509f-382f-3c1e-e6bfe0fa1001"), EINVAL);
  EXPECT_EQ(error_of("83b8f4f2-509f-382f-3c1e-e6bfe0fa100g"), EINVAL);
  EXPECT_EQ(error_of("83b8f4f25-09f-382f-3c1e-e6bfe0fa1001"), EINVAL);
}

}  // namespace
}  // namespace stagetwo::vfio
