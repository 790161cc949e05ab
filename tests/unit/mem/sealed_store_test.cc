// SPDX-License-Identifier: Apache-2.0
// Goal: a sealed page opens to the bytes that were sealed, for the guest, the address, the size,
// the life and the version it was sealed for, and for nothing else; nothing comes out of one that
// does not open.
#include "mem/sealed_store.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "addr/addr.h"
#include "base/failpoint.h"
#include "mem/cipher_library.h"
#include "tests/support/random_source.h"

namespace stagetwo::mem {
namespace {

using Bytes = std::vector<u8>;

Bytes noise(u64 seed, u64 size) {
  test::RandomSource random(seed);
  Bytes bytes(size);
  for (u8& byte : bytes) byte = random.byte();
  return bytes;
}

class SealedPages : public testing::TestWithParam<u64> {
 protected:
  void SetUp() override {
    const auto begun = store.begin();
    ASSERT_TRUE(begun.has_value()) << to_int(begun.error());
  }
  [[nodiscard]] u64 size() const { return GetParam(); }
  [[nodiscard]] SealedIdentity identity(u64 address = 0x10000) const {
    return {1, 1, address, size()};
  }
  Bytes seal(const Bytes& page, const SealedIdentity& who, SealedRecord* record) {
    Bytes sealed(page.size());
    EXPECT_TRUE(store.seal(who, page.data(), sealed.data(), record).has_value());
    return sealed;
  }
  // Nothing of a refused page gets out.
  void expect_refused(const SealedIdentity& who, const SealedRecord& record, const Bytes& sealed) {
    Bytes opened(sealed.size(), 0xee);
    EXPECT_EQ(store.open(who, record, sealed.data(), opened.data()).error(), Errno{EBADMSG});
    EXPECT_EQ(opened, Bytes(sealed.size()));
  }
  SealedStore store;
};
INSTANTIATE_TEST_SUITE_P(Sizes, SealedPages, testing::Values(kPageSize, 16 * kPageSize));

TEST_P(SealedPages, OpenToTheBytesThatWereSealed) {
  SealedRecord record;
  const Bytes page = noise(1, size());
  const Bytes sealed = seal(page, identity(), &record);
  EXPECT_NE(sealed, page);
  Bytes opened(size());
  ASSERT_TRUE(store.open(identity(), record, sealed.data(), opened.data()).has_value());
  EXPECT_EQ(opened, page);
}

TEST_P(SealedPages, LookLikeNoiseWhateverWasSealed) {
  SealedRecord record;
  const Bytes sealed = seal(Bytes(size()), identity(), &record);
  std::array<double, 256> seen{};
  for (const u8 byte : sealed) ++seen[byte];
  const double want = static_cast<double>(size()) / 256;
  double chi = 0;
  for (const double count : seen) chi += (count - want) * (count - want) / want;
  EXPECT_LT(chi, 400);  // 255 degrees of freedom: beyond one in a hundred million
}

TEST_P(SealedPages, HaveAnotherCiphertextAndAHigherVersionEachTime) {
  std::set<Bytes> seen;
  SealedRecord record;
  const Bytes page(size(), 3);
  u64 before = 0;
  for (int i = 0; i < 200; ++i) {
    EXPECT_TRUE(seen.insert(seal(page, identity(), &record)).second);
    EXPECT_GT(record.version, before);
    before = record.version;
  }
}

TEST_P(SealedPages, AreRefusedWithAnyBitFlipped) {
  SealedRecord record;
  Bytes sealed = seal(noise(2, size()), identity(), &record);
  test::RandomSource random(test::announced_seed("AreRefusedWithAnyBitFlipped"));
  for (int i = 0; i < 300; ++i) {
    // The first and the last 16 bytes as often as the rest.
    u64 at = random.below(size());
    if (i % 3 == 1) at %= 16;
    if (i % 3 == 2) at = size() - 1 - at % 16;
    const u8 bit = static_cast<u8>(1U << random.small(8));
    sealed[at] ^= bit;
    expect_refused(identity(), record, sealed);
    sealed[at] ^= bit;
  }
  SealedRecord tampered = record;
  tampered.tag[15] ^= 1;
  expect_refused(identity(), tampered, sealed);
}

TEST_P(SealedPages, AreRefusedAsAnOlderCopy) {
  SealedRecord old, now;
  const Bytes first = seal(noise(3, size()), identity(), &old);
  const Bytes second = seal(noise(3, size()), identity(), &now);
  expect_refused(identity(), now, first);
  Bytes opened(size());
  EXPECT_TRUE(store.open(identity(), now, second.data(), opened.data()).has_value());
}

TEST_P(SealedPages, AreRefusedInAnotherPlaceGuestLifeOrSize) {
  SealedRecord record;
  const Bytes sealed = seal(noise(4, size()), identity(), &record);
  for (int field = 0; field < 3; ++field) {
    SealedIdentity other = identity();
    (field == 0 ? other.guest : field == 1 ? other.incarnation : other.address) += size();
    expect_refused(other, record, sealed);
  }
  SealedIdentity half = identity();
  half.bytes /= 2;
  expect_refused(half, record,
                 Bytes(sealed.begin(), sealed.begin() + static_cast<long>(size() / 2)));
}

TEST_P(SealedPages, AreRefusedUnderAnotherKeyAndAfterTheKeyIsForgotten) {
  SealedRecord record;
  const Bytes sealed = seal(noise(5, size()), identity(), &record);
  SealedStore other;
  ASSERT_TRUE(other.begin().has_value());
  Bytes opened(size());
  EXPECT_FALSE(other.open(identity(), record, sealed.data(), opened.data()).has_value());
  store.forget();
  ASSERT_TRUE(store.begin().has_value());
  expect_refused(identity(), record, sealed);
}

TEST_P(SealedPages, OfNoVersionAreRefused) {
  expect_refused(identity(), SealedRecord{}, Bytes(size()));
}

TEST_P(SealedPages, AreSealedByManyThreadsUnderDifferentNonces) {
  constexpr unsigned kThreads = 6, kEach = 50;
  std::vector<std::vector<SealedRecord>> records(kThreads);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (unsigned i = 0; i < kEach; ++i) {
        const Bytes page = noise(t * 1000 + i, size());
        SealedRecord record;
        const SealedIdentity who = identity(u64{t} << 20);
        const Bytes sealed = seal(page, who, &record);
        Bytes opened(size());
        EXPECT_TRUE(store.open(who, record, sealed.data(), opened.data()).has_value());
        EXPECT_EQ(opened, page);
        records[t].push_back(record);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<u64> versions;
  for (const auto& of : records) {
    for (const SealedRecord& record : of) EXPECT_TRUE(versions.insert(record.version).second);
  }
  EXPECT_EQ(versions.size(), kThreads * kEach);
}

TEST(SealedStore, RefusesToSealWithAKeyThatIsUsedUp) {
  SealedStore store;
  ASSERT_TRUE(store.begin().has_value());
  const SealedIdentity who{1, 1, 0, kPageSize};
  Bytes page(kPageSize), sealed(kPageSize, 9);
  SealedRecord record;
  store.debug_set_version(SealedStore::kMostVersions - 1);
  EXPECT_TRUE(store.seal(who, page.data(), sealed.data(), &record).has_value());
  const SealedRecord kept = record;
  const Bytes last = sealed;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(store.seal(who, page.data(), sealed.data(), &record).error(), Errno{EOVERFLOW});
  }
  EXPECT_EQ(record.version, kept.version);
  EXPECT_EQ(sealed, last);
  EXPECT_TRUE(store.open(who, kept, last.data(), page.data()).has_value());
}

TEST(SealedStore, IsRefusedCleanlyWhenMemoryRunsOut) {
  SealedStore store;
  ASSERT_TRUE(store.begin().has_value());
  const u64 ways = failpoint::sweep([&] {
    const auto begun = store.begin();
    EXPECT_TRUE(begun.has_value() || begun.error() == Errno{ENOMEM});
    store.forget();
  });
  EXPECT_GE(ways, 2u);
}

// ---- the second object --------------------------------------------------------------------------

TEST(CipherLibrary, IsLoadedOnceAndIsTheSameEverAfter) {
  const auto first = cipher_library();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(*cipher_library(), *first);
  EXPECT_EQ((*first)->version, unsigned{STAGETWO_CIPHER_VERSION});
}

// McGrew and Viega, "The Galois/Counter Mode of Operation", test case 16.
TEST(CipherLibrary, IsAes256Gcm) {
  const auto hex = [](const std::string& text) {
    Bytes bytes;
    for (size_t i = 0; i < text.size(); i += 2) {
      bytes.push_back(static_cast<u8>(std::stoi(text.substr(i, 2), nullptr, 16)));
    }
    return bytes;
  };
  const Bytes key = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
  const Bytes nonce = hex("cafebabefacedbaddecaf888");
  const Bytes associated = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
  const Bytes plain =
      hex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e24"
          "49a6b5"
          "25b16aedf5aa0de657ba637b39");
  const Bytes sealed =
      hex("522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b10"
          "56828838"
          "c5f61e6393ba7a0abcc9f662");
  const auto cipher = cipher_library();
  ASSERT_TRUE(cipher.has_value());
  void* const context = (*cipher)->new_key(key.data());
  ASSERT_NE(context, nullptr);
  Bytes out(plain.size()), tag(16);
  stagetwo_cipher_run run{nonce.data(), associated.data(), associated.size(), plain.data(),
                          out.data(),   plain.size(),      tag.data()};
  EXPECT_EQ((*cipher)->seal(context, &run), 0);
  EXPECT_EQ(out, sealed);
  EXPECT_EQ(tag, hex("76fc6ece0f4e1768cddf8853bb2d551b"));
  (*cipher)->free_key(context);
}

TEST(CipherLibrary, TellsNobodyElseThatLibcryptoIsThere) {
  ASSERT_TRUE(cipher_library().has_value());
  std::ifstream maps("/proc/self/maps");
  std::string path;
  for (std::string line; std::getline(maps, line);) {
    EXPECT_EQ(line.find("libcrypto.so"), std::string::npos) << line;
    if (line.find("libstagetwo_crypto.so") != std::string::npos) path = line;
  }
  EXPECT_NE(path, "");
}

}  // namespace
}  // namespace stagetwo::mem
