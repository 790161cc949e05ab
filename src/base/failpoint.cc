// SPDX-License-Identifier: Apache-2.0
#include "base/failpoint.h"

#include "base/leaf_lock.h"

namespace stagetwo::failpoint {
namespace detail {
bool active = false;
}  // namespace detail

namespace {

struct Site {
  const char* name;
  u64 asked;
  u64 failed;
};

// All below `lock`.
u32 lock = 0;
Site sites[kMaxSites];
size_t site_count = 0;
u64 total_asked = 0;
u64 total_failed = 0;
const char* armed_site = nullptr;  // nullptr: any
u64 first_failing = 0;             // 0: only counting
u64 last_failing = 0;

Site* find_or_add(const char* name) {
  for (size_t i = 0; i < site_count; ++i) {
    if (sites[i].name == name || std::string_view(sites[i].name) == name) return &sites[i];
  }
  if (site_count == kMaxSites) return nullptr;
  sites[site_count] = {name, 0, 0};
  return &sites[site_count++];
}

void restart(const char* site, u64 first, u64 last, bool on) {
  const LeafGuard guard(&lock);
  site_count = 0;
  total_asked = total_failed = 0;
  armed_site = site;
  first_failing = first;
  last_failing = last;
  __atomic_store_n(&detail::active, on, __ATOMIC_RELAXED);
}

}  // namespace

bool detail::should_fail_slow(const char* name) {
  const LeafGuard guard(&lock);
  if (!__atomic_load_n(&active, __ATOMIC_RELAXED)) return false;
  Site* site = find_or_add(name);
  ++total_asked;
  if (site != nullptr) ++site->asked;
  if (first_failing == 0) return false;
  u64 n = total_asked;
  if (armed_site != nullptr) {
    if (std::string_view(armed_site) != name) return false;
    n = site != nullptr ? site->asked : 0;
  }
  if (n < first_failing || n > last_failing) return false;
  ++total_failed;
  if (site != nullptr) ++site->failed;
  return true;
}

void arm(const char* site, u64 nth, u64 times) {
  const u64 last = times > kForever - nth ? kForever : nth + times - 1;
  restart(site, nth, last, true);
}

void count_only() {
  restart(nullptr, 0, 0, true);
}

void disarm() {
  const LeafGuard guard(&lock);
  __atomic_store_n(&detail::active, false, __ATOMIC_RELAXED);
}

u64 asked() {
  const LeafGuard guard(&lock);
  return total_asked;
}

u64 asked(std::string_view name) {
  const LeafGuard guard(&lock);
  for (size_t i = 0; i < site_count; ++i) {
    if (name == sites[i].name) return sites[i].asked;
  }
  return 0;
}

u64 failed() {
  const LeafGuard guard(&lock);
  return total_failed;
}

void for_each_site(void (*fn)(void*, const char*, u64, u64), void* context) {
  for (size_t i = 0;; ++i) {
    Site copy{};
    {
      const LeafGuard guard(&lock);
      if (i >= site_count) return;
      copy = sites[i];
    }
    fn(context, copy.name, copy.asked, copy.failed);
  }
}

}  // namespace stagetwo::failpoint
