// SPDX-License-Identifier: Apache-2.0
#pragma once

// What every word of a range of pages may be, while one thread changes the mappings and others read
// and write through translations of their own.
//
// A page has one writer at a time, and content, which moves with it. A word that was written says
// which content and word it is and carries a stamp that only grows; one that was not is the
// content's base. Whoever accesses notes the page's turn before and after, as a reader of a
// sequence lock does:
//
//   the turn is even and the same       no change came between: the model must agree exactly
//   else                                a change overlapped: the access may have gone either way
//   the value is poison                 wrong in any case: it was written after the unmap returned
//
// Invariants: I1  the turn is odd while the mapping of the page changes.
//             I2  pending_ is raised before a write, done_ after one that no change overlapped: the
//                 word is what was done, or anything begun since.
//             I3  a write that a change overlapped may meet what came to the page: it is noted
//             (late).

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>

#include "addr/addr.h"
#include "tests/support/seeds.h"

namespace stagetwo::test {

inline constexpr unsigned kModelPages = 24;
inline constexpr unsigned kModelWords = kPageSize / 8;
inline constexpr unsigned kWriters = 5;  // four subscribers and the process
inline constexpr u64 kPoison = 0xdeaddeaddeaddead;

enum class Rights : u8 { kNone, kRead, kWrite };

// Far below where the kernel puts what has no address of its own: a hole is nobody else's. (The
// thread sanitizer has its shadow at most addresses.)
#if defined(__SANITIZE_THREAD__)
#define STAGETWO_MODEL_IS_LOW
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define STAGETWO_MODEL_IS_LOW
#endif
#endif
#if defined(STAGETWO_MODEL_IS_LOW)
inline constexpr u64 kModelBase = 0x60'0000'0000;
#else
inline constexpr u64 kModelBase = 0x2000'0000'0000;
#endif
// The same memory once more, with the same around it, which nobody but the mutator touches
// (tests/stress/address_space_twin.h).
inline constexpr u64 kTwinBase = kModelBase + (u64{1} << 32);

class AddressSpaceModel {
 public:
  AddressSpaceModel() {
    for (unsigned i = 0; i < kModelPages; ++i) pages_[i].content = i;
    void* at = ::mmap(bytes_at(0), kModelPages * kPageSize, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (at != bytes_at(0)) std::abort();
  }
  ~AddressSpaceModel() { ::munmap(bytes_at(0), kModelPages * kPageSize); }
  AddressSpaceModel(const AddressSpaceModel&) = delete;
  AddressSpaceModel& operator=(const AddressSpaceModel&) = delete;

  [[nodiscard]] Hva page_at(unsigned page) const { return Hva(kModelBase + page * kPageSize); }
  [[nodiscard]] u8* bytes_at(unsigned page) const {
    return reinterpret_cast<u8*>(page_at(page).raw());
  }
  [[nodiscard]] unsigned writer_of(unsigned page) const { return pages_[page].writer.load(); }
  [[nodiscard]] Rights rights_of(unsigned page) const { return pages_[page].rights.load(); }

  // The mutator, around a change.
  void begin(unsigned first, unsigned count) {
    for (unsigned i = 0; i < count; ++i) pages_[first + i].turn.fetch_add(1);
  }
  // Waits for writes that overlapped: one may land late, but not in a later change's page.
  void end(unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count; ++i) {
      while (pages_[i].writing.load() != 0) std::this_thread::yield();
    }
    for (unsigned i = first; i < first + count; ++i) {
      Page& page = pages_[i];
      for (unsigned n = 0; n < page.late_count; ++n) {
        content_of(i).words[page.late_first + n].late = page.late[n];
      }
      page.late_count = 0;
      page.turn.fetch_add(1);
    }
  }
  // Between them. Other bytes from now on: zeros (base 0), or those of fill().
  void renew(unsigned page, u64 base, unsigned writer) {
    Content& content = content_of(page);
    content.base = base;
    for (Word& word : content.words) word.late = 0;
    pages_[page].writer = writer;
    content.generation.fetch_add(1);
  }
  // The page's content is now this one. Pre: no two pages have the same when the change ends.
  void set_content(unsigned page, unsigned content) { pages_[page].content = content; }
  [[nodiscard]] unsigned content_at(unsigned page) const { return pages_[page].content.load(); }
  void set_writer(unsigned page, unsigned writer) { pages_[page].writer = writer; }
  void set_rights(unsigned page, Rights rights) { pages_[page].rights = rights; }

  // The bytes of a page with this base.
  static u64 base_word(u64 base, unsigned word) {
    return base == 0 ? 0 : kBaseTag | base << 9 | word;
  }
  static void fill(u64* words, u64 base) {
    for (unsigned i = 0; i < kModelWords; ++i) words[i] = base_word(base, i);
  }

  void lost_race() { lost_races_.fetch_add(1); }
  [[nodiscard]] u64 lost_races() const { return lost_races_.load(); }
  void stale_translation(unsigned page) const {
    ADD_FAILURE() << "a translation of page " << page << " leads to no memory, seed " << seed();
  }

 private:
  friend class WordRead;
  friend class WriteTurn;
  friend class WordsWrite;
  static constexpr u64 kStampBits = 40;
  static constexpr u64 kStampMask = (u64{1} << kStampBits) - 1;
  static constexpr u64 kBaseTag = u64{1} << 63 | u64{1} << 61;
  static constexpr u64 kStampTag = u64{1} << 62;

  static u64 stamped(unsigned content, unsigned word, u64 stamp) {
    return kStampTag | u64{content} << (kStampBits + 9) | u64{word} << kStampBits | stamp;
  }

  struct Word {
    std::atomic<u64> pending{0};  // stamp
    std::atomic<u64> done{0};     // generation << 40 | stamp
    std::atomic<u64> late{0};     // a value that may stand there, too
  };
  struct Content {
    std::atomic<u64> generation{1};
    std::atomic<u64> base{0};
    Word words[kModelWords];
  };
  struct Page {
    std::atomic<u64> turn{0};
    std::atomic<unsigned> content{0};
    std::atomic<unsigned> writer{0};
    std::atomic<u32> writing{0};  // raised before the turn is looked at
    std::atomic<Rights> rights{Rights::kWrite};
    // Of its writer, while `writing` is raised.
    unsigned late_first = 0;
    unsigned late_count = 0;
    u64 late[kModelWords];
  };
  Content& content_of(unsigned page) { return contents_[content_at(page)]; }

  Page pages_[kModelPages];
  Content contents_[kModelPages];
  std::atomic<u64> lost_races_{0};
};

// One word that is read. Made before the access.
class WordRead {
 public:
  WordRead() = default;
  WordRead(AddressSpaceModel& model, unsigned page, unsigned word)
      : model_(&model), page_(page), word_(word) {
    turn_ = of_page().turn.load();
    content_ = of_page().content.load();
    generation_ = of_content().generation.load();
    base_ = of_content().base.load();
    rights_ = of_page().rights.load();
    done_ = of_content().words[word].done.load();
    late_ = of_content().words[word].late.load();
  }
  void finish(bool allowed, u64 value) const {
    const u64 pending = of_content().words[word_].pending.load();
    const bool at_rest = turn_ % 2 == 0 && of_page().turn.load() == turn_;
    if (at_rest && allowed != (rights_ != Rights::kNone)) {
      ADD_FAILURE() << "reading page " << page_ << (allowed ? " was allowed" : " was refused")
                    << ", seed " << seed();
    } else if (allowed && !(at_rest ? is_exact(value, pending) : is_possible(value))) {
      ADD_FAILURE() << (value == kPoison ? "poison" : "a stale word") << " in page " << page_
                    << ", word " << word_ << std::hex << ": " << value << ", done " << done_
                    << ", pending " << pending << ", generation " << generation_ << ", base "
                    << base_ << std::dec << ", seed " << seed();
    }
  }

 private:
  [[nodiscard]] AddressSpaceModel::Page& of_page() const { return model_->pages_[page_]; }
  [[nodiscard]] AddressSpaceModel::Content& of_content() const {
    return model_->contents_[content_];
  }
  [[nodiscard]] bool is_stamped(u64 value, u64 first, u64 last) const {
    const u64 stamp = value & AddressSpaceModel::kStampMask;
    return value == AddressSpaceModel::stamped(content_, word_, stamp) && stamp >= first &&
           stamp <= last;
  }
  [[nodiscard]] bool is_exact(u64 value, u64 pending) const {
    const u64 stamp = done_ & AddressSpaceModel::kStampMask;
    if (value == late_ && late_ != 0) return true;
    if (done_ >> AddressSpaceModel::kStampBits == generation_) {
      return is_stamped(value, stamp, pending);
    }
    return value == AddressSpaceModel::base_word(base_, word_) ||
           is_stamped(value, stamp + 1, pending);
  }
  // Of any content, but of this word.
  [[nodiscard]] bool is_possible(u64 value) const {
    using Model = AddressSpaceModel;
    const bool is_base = (value & Model::kBaseTag) == Model::kBaseTag &&
                         value % kModelWords == word_ && value != kPoison;
    const bool is_write = value >> 62 == 1 && (value >> Model::kStampBits) % kModelWords == word_;
    return value == 0 || is_base || is_write;
  }

  AddressSpaceModel* model_ = nullptr;
  unsigned page_ = 0;
  unsigned word_ = 0;
  unsigned content_ = 0;
  u64 turn_ = 0;
  u64 generation_ = 0;
  u64 base_ = 0;
  Rights rights_ = Rights::kNone;
  u64 done_ = 0;
  u64 late_ = 0;
};

// A page that its writer writes to, while this lives. No new write begins during a change.
class WriteTurn {
 public:
  WriteTurn(AddressSpaceModel& model, unsigned page, unsigned writer) : page_(model.pages_[page]) {
    page_.writing.fetch_add(1);
    turn_ = page_.turn.load();
    may_write_ = turn_ % 2 == 0 && page_.writer.load() == writer;
  }
  ~WriteTurn() { page_.writing.fetch_sub(1); }
  WriteTurn(const WriteTurn&) = delete;
  WriteTurn& operator=(const WriteTurn&) = delete;

  [[nodiscard]] bool may_write() const { return may_write_; }

 protected:
  [[nodiscard]] bool overlapped() const { return page_.turn.load() != turn_; }

  AddressSpaceModel::Page& page_;

 private:
  u64 turn_ = 0;
  bool may_write_ = false;
};

// Words that are written. Made before the access.
class WordsWrite : public WriteTurn {
 public:
  WordsWrite(AddressSpaceModel& model, unsigned page, unsigned writer, unsigned first,
             unsigned count)
      : WriteTurn(model, page, writer),
        number_(page),
        content_(page_.content.load()),
        of_content_(model.contents_[content_]),
        first_(first),
        count_(count) {
    generation_ = of_content_.generation.load();
    rights_ = page_.rights.load();
    if (!may_write()) return;
    for (unsigned i = 0; i < count; ++i) {
      stamps_[i] = of_content_.words[first + i].pending.fetch_add(1) + 1;
    }
  }
  // The word that is to be written `i` behind the first one.
  [[nodiscard]] u64 value(unsigned i = 0) const {
    return AddressSpaceModel::stamped(content_, first_ + i, stamps_[i]);
  }
  void finish(bool allowed) {
    if (overlapped()) return note_late();
    if (allowed != (rights_ == Rights::kWrite)) {
      ADD_FAILURE() << "writing page " << number_ << (allowed ? " was allowed" : " was refused")
                    << ", seed " << seed();
    }
    if (!allowed) return;
    for (unsigned i = 0; i < count_; ++i) {
      of_content_.words[first_ + i].done =
          generation_ << AddressSpaceModel::kStampBits | stamps_[i];
    }
  }

 private:
  void note_late() {
    page_.late_first = first_;
    page_.late_count = count_;
    for (unsigned i = 0; i < count_; ++i) page_.late[i] = value(i);
  }

  unsigned number_;
  unsigned content_;
  AddressSpaceModel::Content& of_content_;
  unsigned first_;
  unsigned count_;
  u64 generation_ = 0;
  Rights rights_ = Rights::kNone;
  u64 stamps_[kModelWords];
};

// A whole page.
class PageRead {
 public:
  PageRead(AddressSpaceModel& model, unsigned page) {
    for (unsigned i = 0; i < kModelWords; ++i) words_[i] = WordRead(model, page, i);
  }
  void finish(bool allowed, const u64* values) const {
    for (unsigned i = 0; i < kModelWords && !testing::Test::HasFailure(); ++i) {
      words_[i].finish(allowed, values[i]);
    }
  }

 private:
  WordRead words_[kModelWords];
};

}  // namespace stagetwo::test
