// SPDX-License-Identifier: Apache-2.0
#pragma once

// The client's thread that changes the mappings under an AddressSpaceModel, with the bells the shim
// rings around the same calls (shim/memory.cc). What is unmapped and can still be reached by
// another way (a page of a file, a page that mremap took away) is poisoned after the call returned,
// and looked at again before it is used again: nobody may have written there since.

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <vector>

#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "tests/stress/address_space_model.h"
#include "tests/support/random_source.h"

namespace stagetwo::test {

class Mutator {
 public:
  Mutator(AddressSpaceModel& model, u64 seed) : model_(model), random_(seed ^ 0x6d757461746f72) {
    file_ = ::memfd_create("stress", MFD_CLOEXEC);
    if (::ftruncate(file_, kFilePages * kPageSize) != 0) std::abort();
    alias_ = map_words(kFilePages, MAP_SHARED, file_);
    graves_ = map_words(kGraves, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (unsigned i = 0; i < kFilePages; ++i) free_.push_back(i);
    for (unsigned i = 0; i < kModelPages; ++i) model_.renew(i, 0, random_.small(kWriters));
  }
  ~Mutator() {
    ::munmap(alias_, kFilePages * kPageSize);
    ::munmap(graves_, kGraves * kPageSize);
    ::close(file_);
  }
  Mutator(const Mutator&) = delete;
  Mutator& operator=(const Mutator&) = delete;

  u64 steps = 0;

  // One change, and some accesses of the process itself.
  void step() {
    const unsigned first = random_.small(kModelPages);
    const unsigned count = 1 + random_.small(std::min(4U, kModelPages - first));
    model_.begin(first, count);
    change(first, count);
    model_.end(first, count);
    ++steps;
    for (int i = 0; i < 4; ++i) access();
    if (random_.one_in(16)) ::usleep(random_.small(200));
  }

  void check_all_poison() {
    for (unsigned i = 0; i < kGraves; ++i) {
      if (buried_[i]) expect_poison(graves_ + i * kModelWords);
    }
    for (const unsigned page : free_) {
      if (poisoned_[page]) expect_poison(alias_ + page * kModelWords);
    }
  }

 private:
  static constexpr unsigned kFilePages = 3 * kModelPages;
  static constexpr unsigned kGraves = 64;
  static constexpr int kNoFile = -1;

  static u64* map_words(unsigned pages, int flags, int fd) {
    void* at = ::mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) std::abort();
    return static_cast<u64*>(at);
  }

  void change(unsigned first, unsigned count) {
    switch (random_.small(11)) {
      case 0:
        return unmap(first, count);
      case 1:
        return map_anonymous(first, count);
      case 2:
      case 3:
        return map_file(first, count);
      case 4:
        return move_away(first, count);
      case 5:
        return move_here(first, count);
      case 6:
        return discard(first, count);
      case 7:
        return shrink(first, count);
      case 8:
        return lose_single_rights();
      default:
        return protect(first, count);
    }
  }

  // ---- the calls, with their bells ----
  template <typename F>
  bool unmapping(unsigned first, unsigned count, F&& call) {
    return host::change(model_.page_at(first).raw(), count * kPageSize, host::EventKind::kUnmap,
                        call) == 0;
  }
  int map_over(unsigned page, int flags, int fd, off_t offset) {
    return ::mmap(model_.bytes_at(page), kPageSize, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd,
                  offset) == MAP_FAILED;
  }

  void unmap(unsigned first, unsigned count) {
    ASSERT_TRUE(unmapping(first, count,
                          [&] { return ::munmap(model_.bytes_at(first), count * kPageSize); }));
    for (unsigned i = first; i < first + count; ++i) {
      model_.set_rights(i, Rights::kNone);
      gone(i);
    }
  }
  void map_anonymous(unsigned first, unsigned count) {
    ASSERT_TRUE(unmapping(first, count, [&] {
      int failed = 0;
      for (unsigned i = first; i < first + count; ++i) {
        failed |= map_over(i, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      }
      return failed;
    }));
    for (unsigned i = first; i < first + count; ++i) came(i, 0, kNoFile);
  }
  void map_file(unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count; ++i) {
      const unsigned page = free_.front();
      free_.pop_front();
      u64* words = alias_ + page * kModelWords;
      if (poisoned_[page]) expect_poison(words);
      poisoned_[page] = false;
      const u64 base = ++bases_;
      AddressSpaceModel::fill(words, base);
      ASSERT_TRUE(unmapping(i, 1, [&] {
        return map_over(i, MAP_SHARED, file_, static_cast<off_t>(page * kPageSize));
      }));
      came(i, base, static_cast<int>(page));
    }
  }
  // A page with bytes of its own comes to the place.
  void move_here(unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count; ++i) {
      u64* from = map_words(1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
      const u64 base = ++bases_;
      AddressSpaceModel::fill(from, base);
      ASSERT_TRUE(unmapping(i, 1, [&] {
        return ::mremap(from, kPageSize, kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED,
                        model_.bytes_at(i)) == MAP_FAILED;
      }));
      came(i, base, kNoFile);
    }
  }
  // The page itself goes elsewhere, where it is poisoned.
  void move_away(unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count; ++i) {
      if (file_page_[i] != kNoFile || unmapped_[i]) continue;
      const unsigned grave = next_grave_++ % kGraves;
      u64* to = graves_ + grave * kModelWords;
      if (buried_[grave]) expect_poison(to);
      ASSERT_TRUE(host::change(model_.page_at(i).raw(), kPageSize, host::EventKind::kUnmap,
                               host::Announced::kMoves, [&] {
                                 return ::mremap(model_.bytes_at(i), kPageSize, kPageSize,
                                                 MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED;
                               }) == 0);
      ASSERT_EQ(0, ::mprotect(to, kPageSize, PROT_READ | PROT_WRITE));
      poison(to);
      buried_[grave] = true;
      model_.set_rights(i, Rights::kNone);
      gone(i);
    }
  }
  // mremap without moving: the tail of the mapping goes. EFAULT: it was not one mapping.
  void shrink(unsigned first, unsigned count) {
    if (count < 2) return;
    const unsigned tail = first + 1;
    if (!unmapping(tail, count - 1, [&] {
          return ::mremap(model_.bytes_at(first), count * kPageSize, kPageSize, 0) == MAP_FAILED;
        })) {
      return;
    }
    for (unsigned i = tail; i < first + count; ++i) {
      model_.set_rights(i, Rights::kNone);
      gone(i);
    }
  }
  void protect(unsigned first, unsigned count) {
    constexpr int kProts[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
    const auto rights = static_cast<Rights>(random_.small(3));
    const int prot = kProts[static_cast<unsigned>(rights)];
    for (unsigned i = first; i < first + count; ++i) {
      if (unmapped_[i]) continue;
      const auto call = [&] { return ::mprotect(model_.bytes_at(i), kPageSize, prot); };
      const auto loss = host::loss_by_mprotect(prot);
      const u64 at = model_.page_at(i).raw();
      ASSERT_EQ(0,
                loss ? host::change(at, kPageSize, *loss, call) : host::gain(at, kPageSize, call));
      model_.set_rights(i, rights);
    }
  }
  void discard(unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count; ++i) {
      if (unmapped_[i]) continue;
      // A file's page stays what it is, unless a hole is made of it.
      const bool file = file_page_[i] != kNoFile;
      const bool hole = file && model_.rights_of(i) == Rights::kWrite && random_.one_in(2);
      if (hole || random_.one_in(2) || !discard_without_waiting(i)) {
        ASSERT_EQ(0, host::change(model_.page_at(i).raw(), kPageSize, host::EventKind::kClear, [&] {
                    return ::madvise(model_.bytes_at(i), kPageSize,
                                     hole ? MADV_REMOVE : MADV_DONTNEED);
                  }));
      }
      if (hole || !file) model_.renew(i, 0, random_.small(kWriters));
    }
  }

  // False: somebody was busy, and nothing is discarded.
  bool discard_without_waiting(unsigned i) {
    const HvaRange page(model_.page_at(i), kPageSize);
    const host::InvalidateSection section({page, host::EventKind::kClear, nullptr, false});
    if (!section.begun()) return false;
    host::OwnedChange absent(page, host::Announced::kClears);
    host::PinnedChange pinned(page, host::Announced::kClears, host::kWholeRange);
    EXPECT_EQ(0, ::madvise(model_.bytes_at(i), kPageSize, MADV_DONTNEED));
    absent.succeeded();
    pinned.succeeded(page.start());
    return true;
  }
  // What a fork and a write to clear_refs ring: everybody asks again, nothing has changed.
  void lose_single_rights() {
    if (random_.one_in(2)) return host::announce_fork();
    host::clear_soft_dirty([] { return 0; });
  }

  // ---- what the model is told ----
  void came(unsigned page, u64 base, int file_page) {
    gone(page);
    unmapped_[page] = false;
    file_page_[page] = file_page;
    model_.renew(page, base, random_.small(kWriters));
    model_.set_rights(page, Rights::kWrite);
  }
  // What was there is nobody's.
  void gone(unsigned page) {
    if (file_page_[page] != kNoFile) {
      const auto old = static_cast<unsigned>(file_page_[page]);
      poison(alias_ + old * kModelWords);
      poisoned_[old] = true;
      free_.push_back(old);
    }
    file_page_[page] = kNoFile;
    unmapped_[page] = true;
  }
  static void poison(u64* words) {
    for (unsigned i = 0; i < kModelWords; ++i) words[i] = kPoison;
  }
  static void expect_poison(const u64* words) {
    for (unsigned i = 0; i < kModelWords; ++i) {
      if (words[i] == kPoison) continue;
      ADD_FAILURE() << "a page was written after it was unmapped: word " << i << " is " << std::hex
                    << words[i] << std::dec << ", seed " << seed();
      return;
    }
  }

  // The process touches its pages like anybody.
  void access() {
    const unsigned page = random_.small(kModelPages);
    const unsigned word = random_.small(kModelWords);
    const Rights rights = model_.rights_of(page);
    auto* at = reinterpret_cast<volatile u64*>(model_.bytes_at(page)) + word;
    if (rights == Rights::kWrite && model_.writer_of(page) == kWriters - 1) {
      WordsWrite write(model_, page, kWriters - 1, word, 1);
      *at = write.value();
      write.finish(true);
    } else if (rights != Rights::kNone) {
      const WordRead read(model_, page, word);
      read.finish(true, *at);
    }
  }

  AddressSpaceModel& model_;
  RandomSource random_;
  int file_ = -1;
  u64* alias_ = nullptr;   // the whole file, at an address no slot has
  u64* graves_ = nullptr;  // where pages go that mremap takes away
  std::deque<unsigned> free_;
  std::vector<bool> poisoned_ = std::vector<bool>(kFilePages);
  std::vector<bool> buried_ = std::vector<bool>(kGraves);
  std::vector<int> file_page_ = std::vector<int>(kModelPages, kNoFile);
  std::vector<bool> unmapped_ = std::vector<bool>(kModelPages);
  unsigned next_grave_ = 0;
  u64 bases_ = 0;
};

}  // namespace stagetwo::test
