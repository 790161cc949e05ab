// SPDX-License-Identifier: Apache-2.0
// How long ago pages were used. A pass asks the bell about every span and makes all of it old; who
// was used is of age 0, the others are a pass older. The vCPUs' soft TLBs are flushed a little
// later (stage2/ageing.cc), so a page used all the time may miss one pass and not two.

#include "reclaim/reclaimer.h"

#include <algorithm>
#include <bit>

#include "host/mmu_notifier.h"
#include "sync/futex.h"

namespace stagetwo::reclaim {
namespace {

constexpr u64 kChunkPages = 4096;

}  // namespace

void Reclaimer::age(Span& span) {
  for (u64 first = 0; first < span.pages; first += kChunkPages) {
    const u64 count = std::min(kChunkPages, span.pages - first);
    const u64 words = (count + 63) / 64;
    u64 young[kChunkPages / 64] = {};
    host::collect_young(HvaRange(span.at(first), count << kPageShift), young);
    for (u64 w = 0; w < words; ++w) {
      const u64 resident = span.resident[first / 64 + w];
      if (young[w] != 0) span.used[first / 64 + w].fetch_or(young[w], sync::kRelaxed);
      for (u64 left = resident; left != 0; left &= left - 1) {
        const unsigned bit = static_cast<unsigned>(std::countr_zero(left));
        sync::Atomic<Age>& age = span.ages[first + w * 64 + bit];
        const Age was = age.load(sync::kRelaxed);
        Age now = static_cast<Age>(was < kOldest ? was + 1 : kOldest);
        if ((young[w] >> bit & 1) != 0) now = std::min<Age>(was, 0);
        if (now != was) age.store(now, sync::kRelaxed);
        if (now >= 0) ++whole_.histogram[now];
      }
    }
  }
}

void Reclaimer::pass() {
  std::fill_n(whole_.histogram, kOldest + 1, u64{0});
  for_each_span([&](Span& span) {
    if (span.can_leave()) age(span);
  });
  ++passes_;
  last_pass_ = sync::now_ns();
  const sync::MutexGuard guard(report_);
  shown_.passes = passes_;
  shown_.ages[0] = whole_.histogram[0];
  shown_.ages[1] = whole_.histogram[1];
  shown_.ages[2] = shown_.ages[3] = 0;
  for (int age = 2; age <= kOldest; ++age) shown_.ages[age < 8 ? 2 : 3] += whole_.histogram[age];
}

// Pages that were used in this interval; the next one begins.
u64 Reclaimer::clear_used() {
  u64 pages = 0;
  for_each_span([&](Span& span) {
    for (u64 w = 0; w < span.words(); ++w) {
      if (span.used[w].load(sync::kRelaxed) == 0) continue;
      pages += static_cast<u64>(std::popcount(span.used[w].exchange(0, sync::kRelaxed)));
    }
  });
  return pages;
}

void Reclaimer::take_sample(u64 now) {
  if (interval_ns_ == 0 || now - last_sample_ < interval_ns_) return;
  last_sample_ = now;
  look();
  pass();
  const mem::StoreUse use = swapper_.store().use();
  const Sample sample{now - started_at_, clear_used() << kPageShift, look_.resident,
                      use.memory_bytes, use.disk_bytes};
  if (on_sample_ != nullptr) on_sample_(sample);
  const sync::MutexGuard guard(report_);
  shown_.working_set = sample.working_set;
  if (samples_.size() < kKept) {
    if (!samples_.push_back(sample)) return;
  } else {
    samples_[sample_count_ % kKept] = sample;
  }
  ++sample_count_;
}

unsigned Reclaimer::samples(u64* first, Sample* out, unsigned room) {
  const sync::MutexGuard guard(report_);
  const u64 oldest = sample_count_ > kKept ? sample_count_ - kKept : 0;
  *first = std::max(*first, oldest);
  unsigned count = 0;
  for (u64 n = *first; n < sample_count_ && count < room; ++n) out[count++] = samples_[n % kKept];
  return count;
}

}  // namespace stagetwo::reclaim
