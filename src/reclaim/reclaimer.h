// SPDX-License-Identifier: Apache-2.0
#pragma once

// The turn: looks at what there is, ages it, and takes the coldest away until the limit is kept.
// Part of reclaim; not for other rooms. Analogue: kswapd and direct reclaim, and the walks of MGLRU
// (kernel file: mm/vmscan.c).
//
// One turn runs at a time, by the engine's worker or by the thread of a guest's fault that found
// nothing left of the budget (host/memory_budget.h).
//
//   look     which pages are resident: the kernel is asked, about 1 ms a gigabyte; in between the
//            process's resident set says by how much that may have grown
//   pass     which were used since the last pass: the bell is asked; a page's age is how many
//            passes it has not been
//   choose   the oldest ages that are enough; a clock hand goes round the spans; what was used
//            since the pass stays (look-around)
//   take     up to 64 neighbours at once; then they are compressed
//
// Locking: turn_ state is the turn's; `guests` (see reclaim.cc) is taken for short looks at ranges.

#include "host/worker.h"
#include "reclaim/limited.h"
#include "reclaim/reclaim.h"
#include "reclaim/span.h"
#include "reclaim/swapper.h"
#include "sync/atomic.h"
#include "sync/futex.h"

namespace stagetwo::reclaim {

class Reclaimer final : public host::WorkItem {
 public:
  explicit Reclaimer(const Settings& settings);
  [[nodiscard]] Result<void> init(const Settings& settings);

  void turn() override;
  u64 period_ns() override;

  void set_limit(u64 bytes);
  // Until a turn that begins from now on has ended; some milliseconds at most.
  void wait_for_turn();
  // Turns begin.
  void enter_list();
  [[nodiscard]] SpanTable& spans() { return spans_; }
  [[nodiscard]] Swapper& swapper() { return swapper_; }
  [[nodiscard]] Statistics statistics();
  [[nodiscard]] unsigned samples(u64* first, Sample* out, unsigned room) TA_EXCL(report_);
  // Everything is to come back.
  void bring_everything_back();

 private:
  void run(u64 now);
  void follow_session();
  void share_limit();
  void let_pay();
  // looking.cc
  void look();
  void look_if_due();
  // Of what is watched when less is free than that.
  static constexpr u64 kMostBetweenTurns = u64{64} << 20;
  void look_at(Span& span);
  [[nodiscard]] u64 resident_now();
  [[nodiscard]] u64 usage() { return resident_now() + kept_bytes(); }
  [[nodiscard]] u64 kept_bytes();
  void measure_guests();
  struct Parts {
    u64 resident = 0, hugetlb = 0, fixed = 0, private_holes = 0;  // pages
  };
  [[nodiscard]] Parts parts_of(HvaRange range);
  void watch_growth(u64 now);

  // guest_limits.cc
  void follow_guests();
  void measure_limited();
  [[nodiscard]] u64 usage_of(const Limited& guest);
  [[nodiscard]] u64 kept_part_of(const Limited& guest);
  [[nodiscard]] u32 account_of(const Limited& guest) const {
    return static_cast<u32>(&guest - limited_.begin());
  }
  [[nodiscard]] Scope scope_of(const Limited& of) const;
  void give_room(Limited& guest);
  void note_growth_of_guests();
  [[nodiscard]] bool grows(HvaRange span) const;
  void keep_guest_limit(Limited& guest, u64 until);

  // ageing.cc
  void pass();
  void age(Span& span);
  void take_sample(u64 now);
  [[nodiscard]] u64 clear_used();

  // choosing.cc
  void keep_limits(u64 now);
  void keep_guests_limits(u64 until);
  // The worker begins above `high` and stops at `low`.
  struct Marks {
    u64 limit, high, low;
  };
  [[nodiscard]] static Marks marks_of(u64 asked, u64 fixed);
  [[nodiscard]] Marks marks() const { return marks_of(limit_.load(sync::kRelaxed), whole_.fixed); }
  [[nodiscard]] Marks marks_of(const Limited& of) const {
    return &of == &whole_ ? marks() : marks_of(of.limit, of.fixed);
  }
  [[nodiscard]] u64 used_of(const Limited& of) { return &of == &whole_ ? usage() : usage_of(of); }
  void keep_under(Limited& of, u64 until);
  [[nodiscard]] Age choose_age(Limited& of, u64 wanted, u64 until);
  static void forget_taken(u64* histogram, Age from, u64 taken);
  void give_in(Limited& of);
  void say_stuck(const Limited& of);
  static constexpr s64 kUnkeptPages = 4096;
  void say_once(bool* said, const char* why);
  void give_in_full();  // nothing more goes to the store
  [[nodiscard]] bool unkept() const { return sync::now_ns() < whole_.unkept_until; }
  [[nodiscard]] bool unkept(const Limited& of) const {
    return unkept() || sync::now_ns() < of.unkept_until;
  }
  // The greatest age of which, and of older ones, there are so many pages.
  [[nodiscard]] static Age threshold(const u64* histogram, u64 wanted);
  void count_ages(const Scope& scope, u64* histogram);
  [[nodiscard]] u64 evict(const Scope& scope, Age oldest_to, u64 wanted);
  [[nodiscard]] u64 evict_from(Span& span, u64* index, Age from, u64 wanted);
  [[nodiscard]] u64 take_run(Span& span, u64 first, u64 pages);
  [[nodiscard]] bool may_split(Span& span, u64 index, Age from);
  [[nodiscard]] u64 take_private(Span& span, u64 first, HvaRange run);
  void give_budget(u64 used);

  template <typename F>
  void for_each_span(F&& fn) {
    for (Span* span = spans_.next(Hva(0)); span != nullptr; span = spans_.next(span->range.end())) {
      fn(*span);
    }
  }

  const u64 interval_ns_;
  const Say say_;
  void (*const on_sample_)(const Sample& sample);
  const u64 started_at_;
  const u64 compressed_limit_;
  sync::Atomic<u64> limit_;  // relaxed: the next turn sees it

  SpanTable spans_;
  Swapper swapper_;

  // The turn's.
  struct Look {
    u64 at = 0;
    u64 took = 0;      // nanoseconds
    u64 resident = 0;  // bytes
    u64 process = 0;   // the process's resident set then, without what is ours
  } look_;
  Limited whole_;
  // Guests with a limit, as of so many changes of guests.
  Vec<Limited> limited_{"reclaim.limited"};
  Vec<HvaRange> limited_ranges_{"reclaim.limited_ranges"};
  u64 limited_as_of_ = 0;
  bool measure_due_ = false;
  bool guests_near_ = false;  // one of them has half of its limit
  size_t next_guest_ = 0;
  u64 private_holes_ = 0;  // pages, as of the last look
  u64 passes_ = 0;
  u64 last_pass_ = 0;
  u64 last_sample_;
  u64 last_measure_ = 0;
  sync::Atomic<u64> guests_limits_{0};  // the sum of those that have one; relaxed
  u64 last_taken_ = 0;
  Hva hand_{};
  // Turns begun, and the number of the last that ended (release; read by who waits for it).
  sync::Atomic<u32> turns_begun_{0}, turns_ended_{0};
  sync::Atomic<u32> pause_{0};  // never changes: to sleep on
  u64 huge_splits_ = 0;
  u64 unmapped_ = 0;  // Statistics::unmapped
  // The spans of which first touches are reported: when that was asked for, and a word that differs
  // where they do; 0: of none.
  u64 growth_at_ = 0;
  u64 growth_of_ = 0;
  bool all_grow_ = false;  // not only those of guests with a limit
  u64 followed_;           // of the session's words
  u64 followed_guest_;
  bool listed_ = false;
  bool busy_ = false;  // over its mark when the last turn ended
  bool said_full_ = false;
  bool said_stuck_ = false;
  bool said_changing_ = false;
  u64 changing_ = 0;  // OwnerCounts::refused_change when pages went last
  bool said_guest_stuck_ = false;

  // What others may read.
  sync::Mutex report_{sync::Rank::kStats};
  Statistics shown_ TA_GUARDED(report_);
  static constexpr unsigned kKept = 4096;
  Vec<Sample> samples_ TA_GUARDED(report_){"reclaim.samples"};
  u64 sample_count_ TA_GUARDED(report_) = 0;
};

}  // namespace stagetwo::reclaim
