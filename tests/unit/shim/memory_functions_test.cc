// SPDX-License-Identifier: Apache-2.0
// The engine's own memcpy and friends against libc's, under names that do not replace them here.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/support/random_source.h"

#define memcpy st_memcpy
#define memmove st_memmove
#define memset st_memset
#define memcmp st_memcmp
#define bcmp st_bcmp
#define memchr st_memchr
#define strlen st_strlen
#define strnlen st_strnlen
#define strcmp st_strcmp
#define strncpy st_strncpy
#define find_char st_find_char
#define ST_NAME_OF_FIND_CHAR "st_find_char"
#include "shim/memory_functions.cc"
#undef memcpy
#undef memmove
#undef memset
#undef memcmp
#undef bcmp
#undef memchr
#undef strlen
#undef strnlen
#undef strcmp
#undef strncpy

namespace stagetwo::shim {
namespace {

using Bytes = std::vector<unsigned char>;
constexpr size_t kRoom = 512;

int sign(int value) {
  return (value > 0) - (value < 0);
}

class MemoryFunctions : public testing::Test {
 protected:
  Bytes random_bytes(unsigned kinds) {
    Bytes bytes(kRoom);
    for (unsigned char& b : bytes) b = static_cast<unsigned char>(random_.below(kinds));
    return bytes;
  }
  size_t below(size_t end) { return static_cast<size_t>(random_.below(end)); }
  test::RandomSource random_{test::seed()};
};

TEST_F(MemoryFunctions, CopyAndMoveAreLibcs) {
  for (int round = 0; round < 20000; ++round) {
    const size_t size = below(round % 4 == 0 ? 200 : 40);
    const size_t to = below(kRoom - size), from = below(kRoom - size);
    const Bytes source = random_bytes(256);
    Bytes ours = random_bytes(256), theirs = ours;
    ASSERT_EQ(st_memcpy(&ours[to], &source[from], size), &ours[to]);
    std::memcpy(&theirs[to], &source[from], size);
    ASSERT_EQ(ours, theirs);
    st_memmove(&ours[to], &ours[from], size);  // overlapping at random
    std::memmove(&theirs[to], &theirs[from], size);
    ASSERT_EQ(ours, theirs) << to << " " << from << " " << size;
  }
}

TEST_F(MemoryFunctions, SetIsLibcs) {
  for (int round = 0; round < 5000; ++round) {
    const size_t size = below(100), at = below(kRoom - size);
    const int byte = static_cast<int>(below(300));
    Bytes ours = random_bytes(256), theirs = ours;
    st_memset(&ours[at], byte, size);
    std::memset(&theirs[at], byte, size);
    ASSERT_EQ(ours, theirs);
  }
}

TEST_F(MemoryFunctions, CompareIsLibcs) {
  for (int round = 0; round < 20000; ++round) {
    const size_t size = below(40);
    Bytes left = random_bytes(2), right = left;
    if (round % 2 == 0) right[below(40)] = static_cast<unsigned char>(below(256));
    ASSERT_EQ(sign(st_memcmp(left.data(), right.data(), size)),
              sign(std::memcmp(left.data(), right.data(), size)));
    ASSERT_EQ(st_memchr(right.data(), 77, size), std::memchr(right.data(), 77, size));
  }
}

TEST_F(MemoryFunctions, StringFunctionsAreLibcs) {
  for (int round = 0; round < 20000; ++round) {
    Bytes left = random_bytes(3), right = random_bytes(3);
    left.back() = right.back() = 0;
    const char* a = reinterpret_cast<const char*>(&left[below(kRoom)]);
    const char* b = reinterpret_cast<const char*>(&right[below(kRoom)]);
    const size_t limit = below(8);
    ASSERT_EQ(st_strlen(a), std::strlen(a));
    ASSERT_EQ(st_strnlen(a, limit), ::strnlen(a, limit));
    ASSERT_EQ(sign(st_strcmp(a, b)), sign(std::strcmp(a, b)));
    ASSERT_EQ(st_find_char(a, 2), std::strchr(a, 2));
    ASSERT_EQ(st_find_char(a, 0), std::strchr(a, 0));
    char ours[8], theirs[8];
    st_strncpy(ours, a, sizeof(ours));
    std::strncpy(theirs, a, sizeof(theirs));
    ASSERT_EQ(std::memcmp(ours, theirs, sizeof(ours)), 0);
  }
}

}  // namespace
}  // namespace stagetwo::shim
