// SPDX-License-Identifier: Apache-2.0
#include "mem/guest_memfd.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>

#include "base/alloc.h"
#include "base/bits.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/sys.h"
#include "base/trace.h"
#include "mem/private_table.h"
#include "mem/sealed_pages.h"

// A fault takes no lock of the object. What a punch and a fault may do to each other is decided by
// the observer's own snapshot (stage2: the gate), as for any change of an address:
//
//   vCPU, fault                            | punch
//   snapshot; page of the binding          |
//   makes it present (allocates)           |
//                                          | going(): count up, zap, flush, wait
//                                          | the pages go
//   asks again: count up, or the sequence  | gone(): sequence up, count down
//   moved -> retry                         |
//
//   snapshot                               | punch: going(), pages go, gone()
//   makes it present: a fresh page         |
//   the sequence moved -> retry; the page  |
//   stays, and is zero                     |
//
//   is_open(): yes                         | release: closes the bindings
//                                          | going() of everything: count up, zap, flush
//                                          | the mapping is replaced by nothing; gone()
//   makes it present: EFAULT, or the old   |
//   page; asks again: stale -> retry       |
//   is_open(): no -> EFAULT                |

namespace stagetwo::mem {
namespace {

constexpr int kPunch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;

// What is refused before anything is looked at, in the kernel's order.
Result<void> check_modes(int mode, u64 offset, u64 size) {
  if ((mode & FALLOC_FL_KEEP_SIZE) == 0 || (mode & ~kPunch) != 0) return refuse(EOPNOTSUPP);
  if (((offset | size) & ~kPageMask) != 0) return refuse(EINVAL);
  return {};
}

Result<void> check_range(u64 file_size, u64 offset, u64 size) {
  if (offset + size > file_size) return refuse(EINVAL);
  return {};
}

Result<void> allocate(int fd, u64 file_size, u64 offset, u64 size) {
  ST_TRY(check_range(file_size, offset, size));
  if (fd < 0) return {};
  if (failpoint::should_fail("mem.guest_memfd_pages")) return refuse(ENOMEM);
  const Result<void> done =
      sys::fallocate(fd, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(size));
  // Shared memory has a limit of its own, and another name for it.
  if (!done && to_int(done.error()) == ENOSPC) return refuse(ENOMEM);
  return done;
}

Result<void> punch(int fd, u64 file_size, u64 offset, u64 size) {
  if (offset >= file_size || fd < 0) return {};
  const u64 bytes = std::min(size, file_size - offset);
  return sys::fallocate(fd, kPunch, static_cast<off_t>(offset), static_cast<off_t>(bytes));
}

}  // namespace

Result<void> GuestMemfd::check_size(u64 size) {
  if (static_cast<s64>(size) <= 0 || (size & ~kPageMask) != 0) return refuse(EINVAL);
  return {};
}

GuestMemfd::~GuestMemfd() {
  const sync::MutexGuard guard(lock_);
  ST_CHECK(bindings_.empty());
}

template <typename F>
void GuestMemfd::for_each_binding(PageRange pages, F&& fn) {
  bindings_.for_each(pages.first, pages.end, [&](auto entry) {
    fn(**entry.value,
       PageRange{std::max(entry.start, pages.first), std::min(entry.end, pages.end)});
  });
}

Result<void> GuestMemfd::fallocate(int mode, u64 offset, u64 size) {
  ST_TRY(check_modes(mode, offset, size));
  // Where pages may be taken, one that nobody has written is taken first, and nothing is kept of
  // it. So none is made, of however many one call asks for: whoever touches one makes it, and pays.
  const bool makes_pages = !private_pages::is_open();
  if (mode != kPunch) return allocate(makes_pages ? file_.use().get() : -1, size_, offset, size);
  const PageRange pages{offset >> kPageShift, (offset + size) >> kPageShift};
  if (!private_pages::is_open()) return punch_pages(pages);
  // What is away of them dies with them, and nothing of them is taken meanwhile.
  const sync::MutexGuard guard(private_table.lock);
  const Result<void> done = punch_pages(pages);
  if (done) private_table.forget(*this, pages);
  return done;
}

Result<void> GuestMemfd::check_allocation(u64 offset, u64 size) const {
  ST_TRY(check_modes(FALLOC_FL_KEEP_SIZE, offset, size));
  return check_range(size_, offset, size);
}

Result<void> GuestMemfd::punch_pages(PageRange pages) {
  const sync::MutexGuard guard(lock_);
  for_each_binding(pages, [](Binding& b, PageRange part) { b.observer_->going(part); });
  // The number is held for the system call alone: observers wait for threads that may want it.
  const Result<void> done =
      punch(file_.use().get(), size_, pages.first << kPageShift, pages.count() << kPageShift);
  for_each_binding(pages, [](Binding& b, PageRange part) { b.observer_->gone(part); });
  trace::emit(trace::Event::st_memfd_punch, trace::Room::mem, pages.first, pages.end);
  return done;
}

Result<void> GuestMemfd::fallocate_unbound(int fd, u64 file_size, int mode, u64 offset, u64 size) {
  ST_TRY(check_modes(mode, offset, size));
  return mode == kPunch ? punch(fd, file_size, offset, size)
                        : allocate(fd, file_size, offset, size);
}

Result<void> GuestMemfd::bind(u64 offset, u64 size, ObjectObserver& observer, Binding* binding,
                              Pages under_limit) {
  ST_DCHECK(binding->object_ == nullptr && size != 0);
  if (((offset | size) & ~kPageMask) != 0 || offset + size < offset || offset + size > size_) {
    return refuse(EINVAL);
  }
  const PageRange pages{offset >> kPageShift, (offset + size) >> kPageShift};
  const sync::MutexGuard guard(private_table.lock);
  ST_TRY(map(pages, observer, binding));
  if (under_limit == Pages::kMayLeave) private_table.enter(*this, file_.use().get(), *binding);
  return {};
}

Result<void> GuestMemfd::map(PageRange pages, ObjectObserver& observer, Binding* binding) {
  const u64 size = pages.count() << kPageShift;
  const sync::MutexGuard guard(lock_);
  if (bindings_.overlaps(pages.first, pages.end)) return refuse(EINVAL);
  ST_TRY(bindings_.reserve());
  void* const at =
      ST_TRY(map_file(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_.use().get(),
                      static_cast<long>(pages.first << kPageShift), "mem.guest_memfd_map"));
  // Where a kernel refuses, the pages are dumped, or inherited, and nothing else.
  static_cast<void>(sys::madvise(at, size, MADV_DONTDUMP));
  static_cast<void>(sys::madvise(at, size, MADV_DONTFORK));
  binding->pages_ = pages;
  binding->observer_ = &observer;
  binding->object_ = this;
  binding->at_ = Hva(reinterpret_cast<u64>(at));
  binding->open_.store(true, sync::kRelease);
  bindings_.assign_reserved(pages.first, pages.end, binding);
  return {};
}

void GuestMemfd::remove(const Binding& binding) {
  const sync::MutexGuard guard(lock_);
  // Exactly one range: nothing is cut, so nothing is needed.
  bindings_.erase_reserved(binding.pages_.first, binding.pages_.end);
}

void GuestMemfd::unbind(Binding* binding) {
  if (binding->at_.raw() == 0) return;
  const sync::MutexGuard guard(private_table.lock);
  private_table.leave(*binding);
  if (binding->object_ != nullptr) binding->object_->remove(*binding);
  unmap_pages(reinterpret_cast<void*>(binding->at_.raw()), binding->pages_.count() << kPageShift);
  binding->object_ = nullptr;
  binding->at_ = {};
  binding->open_.store(false, sync::kRelease);
}

void GuestMemfd::release() {
  const sync::MutexGuard whole(private_table.lock);
  const sync::MutexGuard guard(lock_);
  const PageRange all{0, size_ >> kPageShift};
  for_each_binding(all, [](Binding& b, PageRange) { b.open_.store(false, sync::kRelease); });
  for_each_binding(all, [](Binding& b, PageRange part) { b.observer_->going(part); });
  for_each_binding(all, [](Binding& b, PageRange) {
    // The last hold on the file: its pages go with it. The addresses stay taken until unbind(), so
    // that a fault on its way finds nothing there. Where no memory is left even for that, the pages
    // go then.
    static_cast<void>(sys::mmap(reinterpret_cast<void*>(b.at_.raw()),
                                b.pages_.count() << kPageShift, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0));
  });
  for_each_binding(all, [](Binding& b, PageRange part) { b.observer_->gone(part); });
  for_each_binding(all, [](Binding& b, PageRange) TA_NO_ANALYSIS {
    private_table.leave(b);
    b.object_ = nullptr;
  });
  bindings_.clear();
  private_table.forget(*this, all);
  private_table.leave(*this);
}

private_pages::Taken GuestMemfd::take(PageRange pages, PrivateSwap::Bench* bench) {
  private_pages::Taken taken;
  const sync::MutexGuard guard(lock_);
  for_each_binding(pages, [](Binding& b, PageRange part) { b.observer_->leaving(part); });
  for (u64 page = pages.first; page < pages.end && taken.refusal == 0; ++page) {
    const bool was_here = !sealed_->is_away(page);
    // Of one that is away already, what a late touch has made in its place.
    const auto done = was_here ? sealed_->take(page, bench) : sealed_->drop_from_file(page);
    if (done && was_here) ++taken.pages;
    if (!done) taken.refusal = to_int(done.error());
  }
  for_each_binding(pages, [](Binding& b, PageRange part) { b.observer_->left(part); });
  return taken;
}

u64 GuestMemfd::binding_count() {
  const sync::MutexGuard guard(lock_);
  return bindings_.size();
}

}  // namespace stagetwo::mem
