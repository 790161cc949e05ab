// SPDX-License-Identifier: Apache-2.0
#pragma once

// The client's thread that changes the mappings under an AddressSpaceModel, with the bells the shim
// rings around the same calls (shim/memory.cc). Each call is made on the twin first: what the
// kernel answers there, and does there, is what has to come of it here, to the errno. What is
// unmapped and can still be reached by another way (a page of a file, a page that mremap took away)
// is poisoned after the call returned, and looked at again before it is used again: nobody may have
// written there since.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/piecewise.h"
#include "tests/stress/address_space_model.h"
#include "tests/stress/address_space_twin.h"
#include "tests/support/random_source.h"

#if !defined(MREMAP_DONTUNMAP)
#define MREMAP_DONTUNMAP 4
#endif

namespace stagetwo::test {

class Mutator {
 public:
  Mutator(AddressSpaceModel& model, u64 seed) : model_(model), random_(seed ^ 0x6d757461746f72) {
    void* alias = ::mmap(nullptr, kFilePages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED,
                         mine_.file(), 0);
    if (alias == MAP_FAILED) std::abort();
    alias_ = static_cast<u64*>(alias);
    for (unsigned i = 0; i < kModelPages; ++i) {
      *reinterpret_cast<volatile u64*>(model_.bytes_at(i)) = 0;
      model_.renew(i, 0, random_.small(kWriters));
      ids_[i] = zero_id();
      twin_.name(i, ids_[i]);
    }
  }
  ~Mutator() { ::munmap(alias_, kFilePages * kPageSize); }
  Mutator(const Mutator&) = delete;
  Mutator& operator=(const Mutator&) = delete;

  u64 steps = 0;
  u64 moved = 0;    // calls of mremap that succeeded
  u64 refused = 0;  // calls that the kernel refused, as here

  // One change, and some accesses of the process itself.
  void step() {
    change();
    ++steps;
    for (int i = 0; i < 4; ++i) access();
    if (random_.one_in(16)) ::usleep(random_.small(200));
  }

  // The last ones of a run that failed.
  void print_calls() const {
    for (const std::string& call : last_calls_) std::printf("  %s\n", call.c_str());
  }
  void check_all_poison() {
    for (unsigned i = 0; i < kGravePages; ++i) {
      if (buried_[i]) expect_poison(mine_.words_at(kGraves + i));
    }
    for (unsigned i = 0; i < kFilePages; ++i) {
      if (poisoned_[i]) expect_poison(alias_ + i * kModelWords);
    }
  }

 private:
  static constexpr u64 kZeroId = u64{1} << 63;  // of a page of zeros; of others it is their base
  static constexpr int kMayMove = MREMAP_MAYMOVE, kFixed = MREMAP_MAYMOVE | MREMAP_FIXED;

  struct Pages {
    unsigned first, count;
    [[nodiscard]] unsigned end() const { return first + count; }
    [[nodiscard]] u64 bytes() const { return count * kPageSize; }
  };
  // What a call answered: where its memory is, or why there is none.
  struct Answer {
    long value;
    int error;
    friend bool operator==(const Answer&, const Answer&) = default;
  };

  Pages some() {
    const unsigned first = random_.small(kModelPages);
    return {first, 1 + random_.small(std::min(8U, kModelPages - first))};
  }
  u64 fresh_id() { return ++last_id_; }
  u64 zero_id() { return kZeroId | fresh_id(); }
  static u64 base_of(u64 id) { return (id & kZeroId) != 0 ? 0 : id; }

  void change() {
    switch (random_.small(16)) {
      case 0:
        return unmap(some());
      case 1:
      case 2:
        return map_anonymous(some());
      case 3:
      case 4:
        return map_file(some());
      case 5:
        return move_away(some());
      case 6:
        return move_here(some());
      case 7:
      case 8:
        return move_within(some());
      case 9:
        return resize(some(), 0);
      case 10:
        return resize(some(), kMayMove);
      case 11:
      case 12:
        return discard(some());
      case 13:
        return lose_single_rights(some());
      default:
        return protect(some());
    }
  }

  // ---- one call on the twin, then here ----
  template <typename F>
  static Answer answer_of(F&& call) {
    errno = 0;
    const long value = call();
    return {value, value == -1 ? errno : 0};
  }
  // `there(world)` is the call by itself, `here` the same with its bells; what they change is in
  // `first` and `second`, and the twin says how.
  template <typename F, typename G>
  void both(const std::string& what, Pages first, Pages second, F&& there, G&& here) {
    note(what, first, second);
    model_.begin(first.first, first.count);
    model_.begin(second.first, second.count);
    const Answer wanted = answer_of([&] { return there(twin_); });
    const Answer got = answer_of(here);
    EXPECT_EQ(wanted.value, got.value) << what << ", seed " << seed();
    EXPECT_STREQ(::strerrorname_np(wanted.error), ::strerrorname_np(got.error))
        << what << ", seed " << seed();
    if (wanted.error != 0)
      last_calls_.back() += std::string(", ") + ::strerrorname_np(wanted.error);
    refused += wanted.error != 0 ? 1 : 0;
    learn(first, second);
    model_.end(first.first, first.count);
    model_.end(second.first, second.count);
  }
  template <typename F, typename G>
  void both(const std::string& what, Pages pages, F&& there, G&& here) {
    both(what, pages, {0, 0}, there, here);
  }
  void note(const std::string& what, Pages first, Pages second) {
    if (last_calls_.size() == kLastCalls) last_calls_.pop_front();
    last_calls_.push_back(what);
    for (const Pages pages : {first, second}) {
      std::string& line = last_calls_.back() += ";";
      for (unsigned i = pages.first; i < pages.end(); ++i) {
        line += " " + std::to_string(i);
        if (file_page_[i]) line += "f" + std::to_string(*file_page_[i]);
        line += ids_[i] == 0                            ? "-"
                : model_.rights_of(i) == Rights::kWrite ? "w"
                : model_.rights_of(i) == Rights::kRead  ? "r"
                                                        : "n";
      }
    }
  }
  static std::string text(const char* call, Pages pages) {
    return call + (" of " + std::to_string(pages.first)) + "+" + std::to_string(pages.count);
  }

  template <typename F>
  static long unmapping(u64 at, u64 size, F&& call) {
    return host::change(at, size, host::EventKind::kUnmap, call);
  }
  void unmap(Pages pages) {
    const auto call = [&](const World& in) { return ::munmap(in.at(pages.first), pages.bytes()); };
    both(text("munmap", pages), pages, call, [&] {
      return unmapping(mine_.address(pages.first), pages.bytes(), [&] { return call(mine_); });
    });
  }
  // A mapping is touched at once: what the kernel makes one mapping of later depends on that.
  static long touched(const World& in, Pages pages) {
    for (unsigned i = pages.first; i < pages.end(); ++i) {
      *reinterpret_cast<volatile u64*>(in.at(i)) = 0;
    }
    return 0;
  }
  void map_anonymous(Pages pages) {
    const auto call = [&](const World& in) -> long {
      const void* at = in.map(pages.first, pages.count, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      return at == MAP_FAILED ? -1 : 0;
    };
    const auto here = [&] {
      const long made = host::replace(mine_.address(pages.first), pages.bytes(),
                                      [&] { return static_cast<int>(call(mine_)); });
      host::join_watched(range_of(mine_, pages), true);
      return made == 0 ? touched(mine_, pages) : made;
    };
    const auto there = [&](const World& in) { return call(in) == 0 ? touched(in, pages) : -1; };
    both(text("mmap", pages), pages, there, here);
  }
  void map_file(Pages pages) {
    const std::optional<unsigned> from = free_run(pages.count);
    if (!from) return;
    for (unsigned i = 0; i < pages.count; ++i) {
      u64* const words = alias_ + (*from + i) * kModelWords;
      if (poisoned_[*from + i]) expect_poison(words);
      poisoned_[*from + i] = false;
      const u64 id = fresh_id();
      AddressSpaceModel::fill(words, id);
      const off_t at = static_cast<off_t>((*from + i) * kPageSize);
      if (::pwrite(twin_.file(), &id, sizeof(id), at) != sizeof(id)) std::abort();
    }
    const auto call = [&](const World& in) -> long {
      return in.map(pages.first, pages.count, MAP_SHARED, in.file(), *from) == MAP_FAILED ? -1 : 0;
    };
    both(text("mmap of a file", pages), pages, call, [&] {
      return host::replace(mine_.address(pages.first), pages.bytes(),
                           [&] { return static_cast<int>(call(mine_)); });
    });
  }
  void protect(Pages pages) {
    constexpr int kProts[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
    const int prot = kProts[random_.small(3)];
    const auto call = [&](const World& in) {
      return ::mprotect(in.at(pages.first), pages.bytes(), prot);
    };
    const auto here = [&] {
      const auto loss = host::loss_by_mprotect(prot);
      const u64 at = mine_.address(pages.first);
      const auto go_on = [&] { return call(mine_); };
      const int result = loss ? host::change(at, pages.bytes(), *loss, go_on)
                              : host::gain(at, pages.bytes(), go_on);
      const int error = errno;
      if (result == 0) host::join_watched(range_of(mine_, pages), false);
      errno = error;
      return result;
    };
    both(text("mprotect", pages) + " to " + std::to_string(prot), pages, call, here);
  }
  void discard(Pages pages) {
    constexpr int kAdvices[] = {MADV_DONTNEED, MADV_DONTNEED, MADV_REMOVE};
    const int advice = kAdvices[random_.small(3)];
    const auto call = [&](const World& in) {
      return ::madvise(in.at(pages.first), pages.bytes(), advice);
    };
    const auto here = [&]() -> int {
      if (advice == MADV_DONTNEED && pages.count == 1 && random_.one_in(2)) {
        return discard_without_waiting(pages.first);
      }
      return host::discard(
          mine_.address(pages.first), pages.bytes(), advice,
          [&](u64 at, u64 size) { return ::madvise(reinterpret_cast<void*>(at), size, advice); });
    };
    both(text("madvise", pages) + " " + std::to_string(advice), pages, call, here);
  }
  // As who must not sleep; somebody who is busy is waited for after all.
  int discard_without_waiting(unsigned i) {
    const HvaRange page(model_.page_at(i), kPageSize);
    const auto call = [&] { return ::madvise(model_.bytes_at(i), kPageSize, MADV_DONTNEED); };
    {
      const host::InvalidateSection section({page, host::EventKind::kClear, nullptr, false});
      if (section.begun()) {
        host::OwnedChange absent(page, host::Announced::kClears);
        host::PinnedChange pinned(page, host::Announced::kClears, host::kWholeRange);
        const int result = call();
        if (result == 0) absent.succeeded();
        if (result == 0) pinned.succeeded(page.start());
        return result;
      }
    }
    return host::discard(page.start().raw(), kPageSize, MADV_DONTNEED,
                         [&](u64, u64) { return call(); });
  }
  // What a fork and a write to clear_refs ring: everybody asks again, nothing has changed.
  void lose_single_rights(Pages pages) {
    const auto call = [](const World&) { return 0; };
    both("no change", pages, call, [&] {
      if (random_.one_in(2)) {
        host::announce_fork();
      } else {
        host::clear_soft_dirty([] { return 0; });
      }
      return 0;
    });
  }

  // ---- mremap ----
  struct Move {
    unsigned from;
    u64 size, new_size;
    int flags;
    unsigned to;
  };
  static std::string text(const Move& call) {
    return "mremap of " + std::to_string(call.from) + ", " + std::to_string(call.size) + " to " +
           std::to_string(call.new_size) + " bytes, flags " + std::to_string(call.flags) + " to " +
           std::to_string(call.to);
  }
  static void* remap_natively(const World& in, const Move& call) {
    return ::mremap(in.at(call.from), call.size, call.new_size, call.flags, in.at(call.to));
  }
  void* remap_here(const Move& call) const {
    return host::remap(
        {mine_.address(call.from), call.size, call.new_size, call.flags, mine_.address(call.to)},
        [](const host::Remap& one) {
          return ::mremap(reinterpret_cast<void*>(one.from), one.size, one.new_size, one.flags,
                          reinterpret_cast<void*>(one.to));
        },
        [](void* made, u64 size) {
          const int error = errno;
          const Hva at(reinterpret_cast<u64>(made));
          if (made != MAP_FAILED) host::owners_see_mapping(HvaRange(at, size));
          errno = error;
          return made;
        });
  }
  // Where it is, in pages of its world; -2: it went where the kernel wanted, and is nobody's now.
  template <typename F>
  static long place_in(const World& in, void* there, u64 size, F&& unmap) {
    if (there == MAP_FAILED) return -1;
    const u64 at = reinterpret_cast<u64>(there);
    if (at >= in.address(0) && at < in.address(kWorldPages)) {
      return static_cast<long>((at - in.address(0)) / kPageSize);
    }
    unmap(at, size);
    return -2;
  }
  void remap(const Move& call, Pages first, Pages second) {
    const auto there = [&](const World& in) {
      return place_in(in, remap_natively(in, call), call.new_size,
                      [](u64 at, u64 size) { ::munmap(reinterpret_cast<void*>(at), size); });
    };
    const auto here = [&] {
      return place_in(mine_, remap_here(call), call.new_size, [](u64 at, u64 size) {
        unmapping(at, size, [&] { return ::munmap(reinterpret_cast<void*>(at), size); });
      });
    };
    const u64 before = refused;
    both(text(call), first, second, there, here);
    moved += refused == before ? 1 : 0;
  }
  // The kernel rounds sizes up.
  u64 uneven(u64 bytes) { return random_.one_in(2) ? bytes : bytes - random_.small(kPageSize); }
  // Of a file's page there would be two.
  int leaving(Pages pages) {
    bool files = random_.one_in(2);
    for (unsigned i = pages.first; i < pages.end(); ++i) files = files || file_page_[i].has_value();
    return files ? 0 : MREMAP_DONTUNMAP;
  }
  void move_within(Pages pages) {
    const unsigned to = random_.small(kModelPages - pages.count + 1);
    const Pages target{to, pages.count};
    const bool overlaps = to < pages.end() && pages.first < target.end();
    Move call{pages.first, uneven(pages.bytes()), uneven(pages.bytes()), kFixed | leaving(pages),
              to};
    // To less, or to more: of one mapping only, and of no file, which has more pages.
    const unsigned less = random_.small(4);
    if (less == 0 && pages.count > 1) call.new_size -= kPageSize;
    if (less == 1 && !overlaps && pages.count > 1 && !file_page_[pages.end() - 2]) {
      call.size -= kPageSize;
    }
    if (!overlaps) return remap(call, pages, target);
    const unsigned first = std::min(to, pages.first);
    remap(call, {first, std::max(target.end(), pages.end()) - first}, {0, 0});
  }
  // In place or wherever there is room.
  void resize(Pages pages, int flags) {
    Move call{pages.first, uneven(pages.bytes()), uneven(pages.bytes()), flags, kYard};
    const unsigned how = random_.small(3);
    if (how == 0 && pages.count > 1) call.new_size -= kPageSize;
    const bool grows = how == 1 && pages.count > 1 && !file_page_[pages.end() - 2];
    if (grows) call.size -= kPageSize;
    if (flags != 0 && !grows && random_.one_in(4)) call.flags |= leaving(pages);
    remap(call, pages, {0, 0});
  }
  // Pages with bytes of their own come to the place.
  void move_here(Pages pages) {
    Pages yard{kYard, pages.count};
    for (const World* in : {static_cast<const World*>(&twin_), static_cast<const World*>(&mine_)}) {
      in->map(yard.first, yard.count, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    for (unsigned i = 0; i < pages.count; ++i) {
      const u64 id = fresh_id();
      AddressSpaceModel::fill(mine_.words_at(kYard + i), id);
      twin_.name(kYard + i, id);
    }
    remap({kYard, uneven(yard.bytes()), uneven(yard.bytes()), kFixed, pages.first}, pages, {0, 0});
  }
  // The pages themselves go elsewhere, where they are poisoned.
  void move_away(Pages pages) {
    if (next_grave_ + pages.count > kGravePages) next_grave_ = 0;
    const Pages graves{next_grave_, pages.count};
    next_grave_ += pages.count;
    for (unsigned i = graves.first; i < graves.end(); ++i) {
      if (buried_[i]) expect_poison(mine_.words_at(kGraves + i));
    }
    remap({pages.first, uneven(pages.bytes()), uneven(pages.bytes()), kFixed | leaving(pages),
           kGraves + graves.first},
          pages, {0, 0});
    for (unsigned i = graves.first; i < graves.end(); ++i) bury(i);
  }
  void bury(unsigned grave) {
    const unsigned page = kGraves + grave;
    const std::optional<TwinPage> arrived = twin_.look(page);
    buried_[grave] = arrived && !arrived->file_page;
    const auto each = [&](auto&& call) {
      for (const World* in : {static_cast<const World*>(&twin_), static_cast<const World*>(&mine_)})
        ASSERT_EQ(0, call(in->at(page)));
    };
    if (arrived && arrived->file_page) each([](u8* at) { return ::munmap(at, kPageSize); });
    if (!buried_[grave]) return;
    each([](u8* at) { return ::mprotect(at, kPageSize, PROT_READ | PROT_WRITE); });
    poison(mine_.words_at(page));
  }

  // ---- what the model is told ----
  // What has become of the pages says the twin. Content that has moved is followed.
  void learn(Pages first, Pages second) {
    std::vector<unsigned> pages;
    for (unsigned i = first.first; i < first.end(); ++i) pages.push_back(i);
    for (unsigned i = second.first; i < second.end(); ++i) pages.push_back(i);
    std::vector<unsigned> free;  // contents that nobody has yet
    for (const unsigned page : pages) free.push_back(model_.content_at(page));
    const auto old_ids = ids_;
    std::array<unsigned, kModelPages> contents{}, writers{};
    for (const unsigned page : pages) contents[page] = model_.content_at(page);
    for (const unsigned page : pages) writers[page] = model_.writer_of(page);
    std::vector<unsigned> renewed;
    for (const unsigned page : pages) {
      const std::optional<TwinPage> now = twin_.look(page);
      model_.set_rights(page, now ? now->rights : Rights::kNone);
      file_page_[page] = now ? now->file_page : std::nullopt;
      ids_[page] = now ? now->id : 0;
      const auto was = std::find_if(pages.begin(), pages.end(), [&](unsigned old) {
        return ids_[page] != 0 && old_ids[old] == ids_[page];
      });
      if (was == pages.end()) {
        renewed.push_back(page);
        continue;
      }
      model_.set_content(page, contents[*was]);
      model_.set_writer(page, writers[*was]);
      std::erase(free, contents[*was]);
    }
    for (const unsigned page : renewed) {
      model_.set_content(page, free.back());
      free.pop_back();
      const bool mapped = model_.rights_of(page) != Rights::kNone || twin_.look(page);
      if (mapped && ids_[page] == 0) {
        twin_.name(page, ids_[page] = zero_id());
        touch_private(page);
      }
      model_.renew(page, base_of(ids_[page]), random_.small(kWriters));
    }
    give_up_file_pages();
  }
  // As naming it has touched the twin's. (A mapping that mremap has emptied begins anew.)
  void touch_private(unsigned page) {
    if (file_page_[page]) return;
    const Hva at(mine_.address(page));
    if (model_.rights_of(page) == Rights::kWrite) {
      u64 any = 0;
      static_cast<void>(host::fetch_add(at, u64{0}, &any));
    } else {
      twin_.put_zero(at.raw());  // nobody else may write there
    }
  }
  // Those that no page of the model shows any more.
  void give_up_file_pages() {
    std::array<bool, kFilePages> shown{};
    for (const auto& page : file_page_) {
      if (page) shown[*page] = true;
    }
    for (unsigned i = 0; i < kFilePages; ++i) {
      if (in_file_[i] && !shown[i]) {
        poison(alias_ + i * kModelWords);
        poisoned_[i] = true;
      }
      in_file_[i] = shown[i];
    }
  }
  // Neighbours in the file that nobody has; not those that were given up last.
  std::optional<unsigned> free_run(unsigned count) {
    for (unsigned tries = 0; tries < kFilePages; ++tries) {
      if (next_free_ + count > kFilePages) next_free_ = 0;
      const unsigned from = next_free_++;
      bool free = true;
      for (unsigned i = from; i < from + count; ++i) free = free && !in_file_[i];
      if (!free) continue;
      next_free_ = from + count;
      return from;
    }
    return std::nullopt;
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
  static HvaRange range_of(const World& in, Pages pages) {
    return HvaRange(Hva(in.address(pages.first)), pages.bytes());
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

  static constexpr size_t kLastCalls = 24;
  std::deque<std::string> last_calls_;

  AddressSpaceModel& model_;
  RandomSource random_;
  World mine_{kModelBase};
  Twin twin_;
  u64* alias_ = nullptr;  // the whole file, at an address no slot has
  std::array<bool, kFilePages> in_file_{}, poisoned_{};
  std::array<bool, kGravePages> buried_{};
  std::array<std::optional<unsigned>, kModelPages> file_page_{};
  std::array<u64, kModelPages> ids_{};
  unsigned next_grave_ = 0;
  unsigned next_free_ = 0;
  u64 last_id_ = 0;
};

}  // namespace stagetwo::test
