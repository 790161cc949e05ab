// SPDX-License-Identifier: Apache-2.0
#include "reclaim/reclaim.h"

#include <algorithm>

#include "base/process_page.h"
#include "base/sys.h"
#include "host/budget_accounts.h"
#include "host/held_pages.h"
#include "host/memory_budget.h"
#include "host/mmu_notifier.h"
#include "host/page_owner.h"
#include "host/process_map.h"
#include "host/session.h"
#include "host/userfault.h"
#include "reclaim/guests.h"
#include "reclaim/reclaimer.h"
#include "sync/futex.h"

namespace stagetwo::reclaim {

constinit Guests guests;

namespace {

constexpr u64 kBusyNs = 0;
constexpr u64 kNearNs = 1'000'000;
constexpr u64 kFarNs = 10'000'000;
constexpr u64 kQuietNs = 100'000'000;
// Of the limit: a quarter of what is free when the worker begins (choosing.cc).
constexpr u64 kReserveShare = 128;

// Set under guests.lock; read there, or by who knows that it is active.
constinit sync::Atomic<Reclaimer*> the_reclaimer{nullptr};
constinit sync::Atomic<u32> reclaimer_of{0};  // the process that made it
constinit sync::Atomic<void (*)()> before_first_guest{nullptr};

void limit_guests(u64 bytes) {
  if (bytes != kNoLimit) host::expect_takes();
  const sync::MutexGuard guard(guests.lock);
  guests.limit = bytes;
  for (Guest* guest = guests.first; guest != nullptr; guest = GuestAccess::next(*guest)) {
    GuestAccess::set_limit(*guest, bytes);
  }
  guests.changes.fetch_add(1, sync::kRelaxed);
}

Reclaimer* own() {
  Reclaimer* const one = the_reclaimer.load(sync::kAcquire);
  return one != nullptr && reclaimer_of.load(sync::kRelaxed) == process_stamp() ? one : nullptr;
}

}  // namespace

// ---- the turn -------------------------------------------------------------------------------

Reclaimer::Reclaimer(const Settings& settings)
    : interval_ns_(settings.interval_ns),
      say_(settings.say),
      on_sample_(settings.on_sample),
      started_at_(sync::now_ns()),
      compressed_limit_(settings.compressed_limit),
      limit_(settings.memory_limit),
      swapper_(spans_, settings.say),
      last_sample_(started_at_),
      followed_(host::session_word(host::kLimitWord).load(sync::kRelaxed)),
      followed_guest_(host::session_word(host::kGuestLimitWord).load(sync::kRelaxed)) {}

Result<void> Reclaimer::init(const Settings& settings) {
  ST_TRY(swapper_.init());
  static_cast<void>(resident_now());  // opens its file, while the program stands where it began
  if (settings.swap_fd >= 0) ST_TRY(swapper_.use_file(settings.swap_fd));
  swapper_.store().set_file_limit(settings.swap_limit);
  set_limit(settings.memory_limit);
  return {};
}

// Compressed pages may have a quarter of the limit before the oldest go to the file; half of it
// where there is none. Without a limit of the process it is the guests' own together.
void Reclaimer::share_limit() {
  const u64 share = swapper_.file().get() >= 0 ? 4 : 2;
  const u64 own = limit_.load(sync::kRelaxed);
  const u64 guests_own = guests_limits_.load(sync::kRelaxed);
  const u64 limit = own == kNoLimit && guests_own != 0 ? guests_own : own;
  const u64 compressed = limit == kNoLimit ? kNoLimit : limit / share;
  swapper_.store().set_memory_limit(std::min(compressed_limit_, compressed));
}

void Reclaimer::set_limit(u64 bytes) {
  if (bytes != kNoLimit) host::expect_takes();
  limit_.store(bytes, sync::kRelaxed);
  share_limit();
  if (listed_) let_pay();
}

// Whoever makes a page resident pays while anything is limited; where the whole is not, there is
// always enough of that.
void Reclaimer::let_pay() {
  const sync::MutexGuard guard(report_);
  const u64 limit = limit_.load(sync::kRelaxed);
  if (limit == kNoLimit && guests_limits_.load(sync::kRelaxed) == 0) {
    host::budget::clear();
    return;
  }
  if (limit == kNoLimit) host::budget::grant(host::budget::kNoEnd);
  const u64 pages = limit == kNoLimit ? 0 : limit >> kPageShift;
  host::budget::limit(this, static_cast<s64>(pages / kReserveShare));
}

void Reclaimer::enter_list() {
  host::add_work(this);
  listed_ = true;
  set_limit(limit_.load(sync::kRelaxed));
}

// `stagetwo limit` writes it while programs run.
void Reclaimer::follow_session() {
  static_assert(host::kUnlimited == kNoLimit);
  const u64 wanted = host::session_word(host::kLimitWord).load(sync::kRelaxed);
  if (wanted != followed_) set_limit(wanted == 0 ? kNoLimit : wanted);
  followed_ = wanted;
  const u64 each = host::session_word(host::kGuestLimitWord).load(sync::kRelaxed);
  if (each != followed_guest_) limit_guests(each == 0 ? kNoLimit : each);
  followed_guest_ = each;
}

void Reclaimer::turn() {
  const u64 now = sync::now_ns();
  const u32 number = turns_begun_.fetch_add(1) + 1;
  run(now);
  turns_ended_.store(number);
  sync::futex_wake(turns_ended_, INT_MAX);
}

void Reclaimer::wait_for_turn() {
  constexpr u64 kPatienceNs = 20'000'000;  // a look at much memory takes as long
  const u32 wanted = turns_begun_.load() + 1;
  host::kick_worker(true);
  host::work_without_thread();
  const u64 until = sync::now_ns() + kPatienceNs;
  for (u32 ended = turns_ended_.load(); static_cast<s32>(ended - wanted) < 0;
       ended = turns_ended_.load()) {
    const u64 now = sync::now_ns();
    if (now >= until) return;
    sync::futex_wait(turns_ended_, ended, until - now);
  }
}

void Reclaimer::run(u64 now) {
  follow_session();
  spans_.prune();
  follow_guests();
  watch_growth(now);
  keep_limits(now);
  take_sample(now);
  if (sync::now_ns() - last_measure_ > kFarNs) {
    if (!limited_.empty()) look();
    measure_guests();
  }
  // A file system may write out first what it is to throw away: not while guests wait for pages.
  if (!busy_ && now - last_taken_ > kQuietNs) {
    swapper_.store().give_back(swapper_.file().get());
  }
  const sync::MutexGuard guard(report_);
  shown_.resident = look_.resident;
  shown_.huge_splits = huge_splits_;
  shown_.unmapped = unmapped_;
}

u64 Reclaimer::period_ns() {
  if (busy_) return kBusyNs;
  const u64 limit = limit_.load(sync::kRelaxed);
  if (guests_near_) return kNearNs;
  if (limit == kNoLimit) return interval_ns_ == 0 ? kFarNs : std::min(interval_ns_, kFarNs * 100);
  return look_.resident > limit / 2 || look_.at == 0 ? kNearNs : kFarNs;
}

Statistics Reclaimer::statistics() {
  Statistics now;
  {
    const sync::MutexGuard guard(report_);
    now = shown_;
  }
  now.limit = limit_.load(sync::kRelaxed);
  const mem::StoreUse use = swapper_.store().use();
  now.compressed = use.memory_bytes;
  now.account = use.account_bytes;
  now.on_disk = use.disk_bytes;
  now.same_filled = use.same_filled;
  now.write_errors = use.write_errors;
  const SwapCounts counts = swapper_.counts();
  now.taken = counts.taken;
  now.refaults = counts.refaults;
  now.too_early = counts.too_early;
  now.ahead = counts.ahead;
  now.discarded = counts.discarded;
  now.waits = host::budget::waits();
  now.not_stored = counts.not_stored;
  now.lost = counts.lost;
  now.absent = use.same_filled + use.in_memory + use.on_disk;
  now.private_absent = mem::private_pages::away();
  now.private_refaults = counts.private_refaults;
  const u64 ours = spans_.absent_pages();
  const host::OwnerCounts owners = host::owner_counts();
  now.with_others = owners.now - std::min(owners.now, ours + owners.lost_now);
  now.pinned = owners.refused_held;
  now.watched = owners.refused_watch;
  now.shared_away = owners.refused_shared;
  now.under_change = owners.refused_change;
  now.not_movable = owners.refused_owner;
  return now;
}

void Reclaimer::bring_everything_back() {
  for_each_span([](Span& span) { static_cast<void>(host::bring_back_range(span.range)); });
  if (growth_of_ != 0) host::budget::watch_growth(nullptr, 0);
}

// ---- the engine -----------------------------------------------------------------------------

namespace {

Result<Reclaimer*> make_reclaimer(const Settings& settings) {
  ST_TRY(host::userfault::open());
  Reclaimer* const fresh = ST_TRY(make<Reclaimer>("reclaim.engine", settings));
  const auto ready = fresh->init(settings);
  if (ready) return fresh;
  destroy(fresh);
  return refuse(ready.error());
}

// Guests that were there before. What has no memory is not reclaimed.
void add_all(Reclaimer& reclaimer) TA_REQ(guests.lock) {
  for (Guest* guest = guests.first; guest != nullptr; guest = GuestAccess::next(*guest)) {
    GuestAccess::ranges(*guest).for_each(
        [&](u32, auto& used) { used.known = reclaimer.spans().add(used.range).has_value(); });
  }
}

}  // namespace

Result<void> start(const Settings& settings) {
  const auto made = own() != nullptr ? Result<Reclaimer*>(refuse(EBUSY)) : make_reclaimer(settings);
  if (!made) {
    if (settings.swap_fd >= 0) static_cast<void>(sys::close(settings.swap_fd));
    return refuse(made.error());
  }
  {
    const sync::MutexGuard guard(guests.lock);
    add_all(**made);
    reclaimer_of.store(process_stamp(), sync::kRelaxed);
    the_reclaimer.store(*made, sync::kRelease);
  }
  // Of two engines in a process the first one has them.
  static_cast<void>(mem::private_pages::open(&(*made)->swapper()));
  (*made)->enter_list();
  limit_guests(settings.guest_limit);
  return {};
}

bool active() {
  return own() != nullptr;
}

void set_before_first_guest(void (*start)()) {
  before_first_guest.store(start, sync::kRelease);
}

void stop() {
  Reclaimer* const reclaimer = own();
  if (reclaimer == nullptr) return;
  host::budget::clear();
  host::remove_work(reclaimer);
  host::budget::clear();  // a turn that ran may have begun anew
  host::budget::clear_accounts();
  reclaimer->bring_everything_back();
  mem::private_pages::close();
  {
    const sync::MutexGuard guard(guests.lock);
    the_reclaimer.store(nullptr, sync::kRelease);
  }
  destroy(reclaimer);
}

void set_memory_limit(u64 bytes) {
  Reclaimer* const reclaimer = own();
  if (reclaimer == nullptr) return;
  reclaimer->set_limit(bytes);
  host::kick_worker(true);
}

void set_guest_limit(u64 bytes) {
  limit_guests(bytes);
  host::kick_worker(true);
}

Statistics statistics() {
  Reclaimer* const reclaimer = own();
  return reclaimer == nullptr ? Statistics{} : reclaimer->statistics();
}

bool keeps(Hva at) {
  Reclaimer* const reclaimer = own();
  return reclaimer != nullptr && reclaimer->spans().is_away(page_floor(at));
}

unsigned samples(u64* first, Sample* out, unsigned room) {
  Reclaimer* const reclaimer = own();
  return reclaimer == nullptr ? 0 : reclaimer->samples(first, out, room);
}

void before_fork() {
  mem::private_pages::before_fork();
}
void after_fork_parent() {
  mem::private_pages::after_fork_parent();
}
// The parent's arena is not ours to give back to; its items went with the worker.
void after_fork_child() {
  mem::private_pages::after_fork_child();
  std::construct_at(&guests);
  the_reclaimer.store(nullptr);
}

// ---- guests ---------------------------------------------------------------------------------

Guest::Guest() {
  // Taken out: once.
  void (*const start)() = before_first_guest.exchange(nullptr, sync::kAcquire);
  if (start != nullptr) start();
  const sync::MutexGuard guard(guests.lock);
  limit_ = guests.limit;
  next_ = guests.first;
  guests.first = this;
  guests.changes.fetch_add(1, sync::kRelaxed);
}

Guest::~Guest() {
  const sync::MutexGuard guard(guests.lock);
  Guest** link = &guests.first;
  // A child of fork has its parent's guests in no list.
  while (*link != nullptr && *link != this) link = &(*link)->next_;
  if (*link == nullptr) return;
  *link = next_;
  guests.changes.fetch_add(1, sync::kRelaxed);
  ranges_.for_each([&](u32, const Range& used) { let_go(used); });
}

void Guest::let_go(const Range& used) {
  Reclaimer* const reclaimer = own();
  if (used.known && reclaimer != nullptr) reclaimer->spans().remove(used.range);
}

Result<void> Guest::use(u32 name, HvaRange range) {
  const Result<void> done = enter_use(name, range);
  // It may fill at once, before the next turn.
  if (done && !range.empty() && host::budget::is_limited()) host::kick_worker(true);
  return done;
}

void wait_for_turn() {
  Reclaimer* const reclaimer = own();
  if (reclaimer == nullptr) return;
  if (!host::budget::is_limited()) {
    const sync::MutexGuard guard(guests.lock);
    if (guests.limit == kNoLimit) return;
  }
  reclaimer->wait_for_turn();
}

Result<void> Guest::enter_use(u32 name, HvaRange range) {
  const sync::MutexGuard guard(guests.lock);
  const Range* const now = ranges_.find(name);
  const Range old = now == nullptr ? Range{} : *now;
  if (old.range == range) return {};
  Result<void> done;
  Range fresh{range};
  Reclaimer* const reclaimer = own();
  if (reclaimer != nullptr && !range.empty()) {
    done = reclaimer->spans().add(range);
    fresh.known = done.has_value();
  }
  guests.changes.fetch_add(1, sync::kRelaxed);
  ranges_.erase(name);
  if (done && !range.empty()) {
    const auto entered = ranges_.insert(name, fresh);
    if (!entered) {
      let_go(fresh);
      done = refuse(entered.error());
    }
  }
  let_go(old);
  return done;
}

void Guest::set_limit(u64 bytes) {
  if (bytes != kNoLimit) host::expect_takes();
  {
    const sync::MutexGuard guard(guests.lock);
    limit_ = bytes;
    guests.changes.fetch_add(1, sync::kRelaxed);
  }
  host::kick_worker(true);
}

u64 Guest::limit() {
  const sync::MutexGuard guard(guests.lock);
  return limit_;
}

u64 Guest::resident_bytes() {
  const sync::MutexGuard guard(guests.lock);
  return resident_;
}

}  // namespace stagetwo::reclaim
