// SPDX-License-Identifier: Apache-2.0
#include "shim/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/memfd.h>
#include <sys/syscall.h>

#include <algorithm>
#include <bit>
#include <optional>

#include "abi/vfio/region_changes.h"
#include "base/kernel_numbers.h"
#include "base/own_memory.h"
#include "base/sys.h"
#include "base/text.h"
#include "base/trace.h"
#include "host/access.h"
#include "host/change.h"
#include "host/descriptor.h"
#include "host/hugetlb_standin.h"
#include "host/piecewise.h"
#include "host/pin.h"
#include "host/placed_io.h"
#include "host/run_section.h"
#include "shim/absent_buffers.h"
#include "shim/announce.h"
#include "shim/behind.h"
#include "shim/engine.h"
#include "shim/files.h"
#include "shim/next.h"
#include "shim/shared_files.h"
#include "shim/virtual_files.h"

namespace stagetwo::shim {
namespace {

namespace hugetlb = host::hugetlb;

constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1: of one mapping only

bool succeeded(int result) {
  return result == 0;
}
bool succeeded(const void* mapped) {
  return mapped != MAP_FAILED;
}

// The calls themselves: the next library's, or the kernel's for libc's own (shim/libc_calls.h),
// which the next library never sees.
void* do_map(Via via, const hugetlb::MapCall& call) {
  if (via == Via::kNext) {
    return next::mmap(call.at, call.size, call.prot, call.flags, call.fd, call.offset);
  }
  return reinterpret_cast<void*>(
      as_libc(sys::call(SYS_mmap, sys::arg(call.at), static_cast<long>(call.size), call.prot,
                        call.flags, call.fd, call.offset)));
}
int do_unmap(Via via, void* at, size_t size) {
  if (via == Via::kNext) return next::munmap(at, size);
  return static_cast<int>(as_libc(sys::call(SYS_munmap, sys::arg(at), static_cast<long>(size))));
}
void* do_remap(Via via, void* old_at, size_t old_size, size_t new_size, int flags, void* new_at) {
  if (via == Via::kNext) return next::mremap(old_at, old_size, new_size, flags, new_at);
  return reinterpret_cast<void*>(
      as_libc(sys::call(SYS_mremap, sys::arg(old_at), static_cast<long>(old_size),
                        static_cast<long>(new_size), flags, sys::arg(new_at))));
}
int do_protect(Via via, void* at, size_t size, int prot, int key) {
  if (via == Via::kKernel) {
    return static_cast<int>(
        as_libc(sys::call(SYS_mprotect, sys::arg(at), static_cast<long>(size), prot)));
  }
  return key < 0 ? next::mprotect(at, size, prot) : next::pkey_mprotect(at, size, prot, key);
}
int do_advise(Via via, void* at, size_t size, int advice) {
  if (via == Via::kNext) return next::madvise(at, size, advice);
  return static_cast<int>(
      as_libc(sys::call(SYS_madvise, sys::arg(at), static_cast<long>(size), advice)));
}

// What the kernel refuses of the file before it asks it, in its order.
int refusal_before_file(int fd, const host::DescriptionRef& ref, const host::MapRequest& request) {
  const auto flags = sys::fcntl(fd, F_GETFL);
  const int access = flags ? static_cast<int>(*flags) & O_ACCMODE : O_RDWR;
  const bool shared = (request.flags & MAP_TYPE) != MAP_PRIVATE;
  if (access == O_WRONLY) return EACCES;
  if (shared && (request.prot & PROT_WRITE) != 0 && access == O_RDONLY) return EACCES;
  const bool anonymous = ref.spec().shape != host::FileShape::kCharDevice;
  // Anonymous inodes live on a mount without execution.
  if (anonymous && (request.prot & PROT_EXEC) != 0) return EPERM;
  return 0;
}

// What stands against an mmap of `fd`, -errno; 0: nothing. Post: request->offset is where it begins
// in what is behind `fd`, and *behind says what that was: zeroes where the number was not open.
long refusal_of_map(int fd, host::MapRequest* request, struct ::stat* behind) {
  if (!may_be_ours(fd, behind)) return 0;
  host::EngineSection section(host::Touches::kNothing);
  long answer = 0;
  {
    host::DescriptionRef ref = host::find(fd, *behind);
    const auto opened = sys::fcntl(fd, F_GETFL);
    if (ref && (!opened || (*opened & O_PATH) != 0)) ref.reset();  // EBADF, as the kernel says
    if (ref) answer = -refusal_before_file(fd, ref, *request);
    if (ref && answer == 0 && ref.foreign() && ref.spec().shape != host::FileShape::kMemory) {
      answer = -ENODEV;
    } else if (ref && answer == 0) {
      const auto checked = ref->check_mmap(*request);
      if (!checked) answer = -static_cast<long>(to_int(checked.error()));
      if (checked) {
        request->offset = ref->map_offset(*request);
        note_mapped();
      }
    }
  }
  section.leave();
  return answer;
}

// A map that the file refuses. What the kernel looks at before the file is asked of it, by the same
// call on a file that nobody can map. Nothing is mapped or unmapped.
void* refused_map(const hugetlb::MapCall& call, long refusal) {
  if (const auto blank = blank_file()) {
    const auto asked =
        sys::mmap(call.at, call.size, call.prot, call.flags, blank->get(), call.offset);
    const int error = asked ? ENODEV : to_int(asked.error());
    if (error != ENODEV && error != EPERM) refusal = -error;
  }
  as_libc(refusal);
  return MAP_FAILED;
}

// Tells what is behind `fd`, if it is ours, that it was mapped. -errno: it takes that back.
long tell_mapped(int fd, const void* at, const host::MapRequest& request) {
  struct ::stat behind{};
  if (at == MAP_FAILED || !may_be_ours(fd, &behind)) return 0;
  long answer = 0;
  host::EngineSection section;
  if (const host::DescriptionRef ref = host::find(fd, behind); ref && !ref.foreign()) {
    ref->mapped(Hva(number_of(at)), request.size);
    if (auto* const maps = dynamic_cast<host::PlacedMaps*>(ref.get())) {
      const auto placed = maps->mapped_at(Hva(number_of(at)), request);
      if (!placed) answer = -static_cast<long>(to_int(placed.error()));
    }
  }
  section.leave();
  return answer;
}

// Would the call cut a page of the stand-in in two?
bool cuts_huge_page(const void* at, size_t size) {
  return hugetlb::any() && size != 0 && hugetlb::cuts(number_of(at), size);
}

// What is unmapped or mapped over is no longer the stand-in's.
template <typename F>
auto forgetting(const void* at, size_t size, bool replaces, F&& system_call) {
  auto result = system_call();
  if (hugetlb::any() && replaces && succeeded(result)) hugetlb::forget(number_of(at), size);
  return result;
}

// An mmap the stand-in answers. False: it is not its business.
bool map_huge(const hugetlb::MapCall& call, void** mapped) {
  const bool wanted = wants_hugetlb_standin();
  const bool anonymous = (call.flags & MAP_ANONYMOUS) != 0;
  const unsigned level = wanted ? hugetlb::level_of_map(call) : 0;
  if (level == 0) {
    const bool replaces = host::mmap_replaces(call.flags);
    const bool refused = (wanted && anonymous && (call.flags & MAP_HUGETLB) != 0) ||
                         (replaces && cuts_huge_page(call.at, call.size));
    if (refused) {
      as_libc(-EINVAL);
      *mapped = MAP_FAILED;
    }
    return refused;
  }
  const auto go_on = [&] { return hugetlb::map(call, level); };
  const bool rings = awake() && host::mmap_replaces(call.flags);
  const Result<void*> result =
      rings ? announce(call.at, call.size, host::EventKind::kUnmap, go_on) : go_on();
  *mapped = result ? *result : MAP_FAILED;
  if (!result) as_libc(-static_cast<long>(to_int(result.error())));
  return true;
}

// The call, and what the stand-in has to know of it.
void* remap_noting(void* old_at, size_t old_size, size_t new_size, int flags, void* new_at,
                   Via via) {
  void* const there = do_remap(via, old_at, old_size, new_size, flags, new_at);
  if (hugetlb::any() && there != MAP_FAILED) {
    if (there != old_at) hugetlb::forget(number_of(there), new_size);
    hugetlb::moved(number_of(old_at), old_size, number_of(there), new_size);
  }
  return there;
}

// A madvise that takes contents, in a section. `advise(start, size)` is the call.
template <typename F>
int discard(const void* at, size_t size, int advice, F&& advise) {
  host::EngineSection section(host::Touches::kNothing);
  trace::enter_room(trace::Room::shim, 1, number_of(at));
  const int result = host::discard(number_of(at), size, advice, advise);
  section.leave();
  return result;
}

template <typename F>
int gain(const void* at, size_t size, F&& protect) {
  host::EngineSection section(host::Touches::kNothing);
  const int result = host::gain(number_of(at), size, protect);
  section.leave();
  return result;
}

// One that puts small pages together, in one mapping.
template <typename F>
int collapse(const void* at, size_t size, F&& advise) {
  host::EngineSection section(host::Touches::kNothing);
  const int result = host::undivided(number_of(at), size, advise);
  section.leave();
  return result;
}

// MADV_REMOVE where files of ours may be mapped: a gap is an error when all the rest is done.
int remove_parts(u64 start, u64 size, Via via) {
  const auto native = [&](u64 at, u64 bytes) {
    return do_advise(via, reinterpret_cast<void*>(at), bytes, MADV_REMOVE);
  };
  const auto range = host::pages_of(start, size);
  if (!range || start != range->start().raw()) return native(start, size);
  long gap = 0;
  for (HvaRange left = *range; !left.empty();) {
    const host::MappedPart part = host::first_part(left);
    const u64 at = part.range.start().raw();
    const u64 bytes = part.range.size();
    if (!part.mapped) {
      gap = -ENOMEM;
    } else if (const auto error = remove_behind(at, bytes); error && *error != 0) {
      return static_cast<int>(as_libc(-static_cast<long>(*error)));
    } else if (!error && discard(reinterpret_cast<void*>(at), bytes, MADV_REMOVE, native) != 0) {
      return -1;
    }
    left = HvaRange(part.range.end(), left.end() - part.range.end());
  }
  return static_cast<int>(as_libc(gap));
}

bool read_part(const iovec* at, iovec* part) {
  host::EngineSection section(host::Touches::kClientMemory);
  const bool read = host::read_struct(Hva(number_of(at)), part);
  section.leave();
  return read;
}

// An mmap over what may be mapped there.
template <typename F>
void* map_over(void* at, size_t size, F&& system_call) {
  host::EngineSection section(host::Touches::kNothing);
  trace::enter_room(trace::Room::shim, 1, number_of(at));
  void* const mapped = host::replace(number_of(at), size, system_call);
  section.leave();
  return mapped;
}

// What fell between two mappings of which we watch one is the kernel's one with the other now. It
// is mapped once more, over itself, while it finds both alike: nobody has it yet.
void* map_evenly(Via via, const hugetlb::MapCall& call, void* mapped) {
  constexpr int kOtherKinds = MAP_GROWSDOWN | MAP_HUGETLB;
  const bool anonymous = (call.flags & MAP_ANONYMOUS) != 0 && (call.flags & kOtherKinds) == 0;
  if (mapped == MAP_FAILED || !anonymous || !host::owners_active()) return mapped;
  const auto range = host::pages_of(number_of(mapped), call.size);
  if (!range) return mapped;
  host::EngineSection section(host::Touches::kNothing);
  const bool differ = host::sides_differ(*range, true);
  section.leave();
  if (!differ) return mapped;
  constexpr int kFixedNoreplace = 0x100000;
  hugetlb::MapCall again = call;
  again.at = mapped;
  again.flags = (call.flags & ~kFixedNoreplace) | MAP_FIXED;
  void* const made = map_over(mapped, call.size, [&] { return do_map(via, again); });
  if (made != MAP_FAILED) return made;
  // Whether the first one is still there is not known.
  do_unmap(via, mapped, call.size);
  as_libc(-ENOMEM);
  return MAP_FAILED;
}

// One more mapping of shared memory of which pages are absent. It is made without rights, so that
// the kernel fills nothing of it and nobody stores there before its touches are seen. MAP_FAILED:
// it is to be made as any other; errno says nothing.
void* map_unseen(Via via, const hugetlb::MapCall& call) {
  if (!may_join_views(call.fd, call.prot, call.flags)) [[likely]]
    return MAP_FAILED;
  hugetlb::MapCall bare = call;
  bare.prot = PROT_NONE;
  void* const made = do_map(via, bare);
  if (made == MAP_FAILED) return MAP_FAILED;
  const auto allow = [&] { return sys::mprotect(made, call.size, call.prot) ? 0 : -1; };
  const bool joined = joins_views(made, call.size, call.prot);
  if (joined && (call.prot == PROT_NONE || gain(made, call.size, allow) == 0)) return made;
  unmap(made, call.size, via);
  return MAP_FAILED;
}

// Another thread gave the number to another file, which may be one of ours that is not to be
// mapped: it ends before its pages do. What is at a place that was named stays until it is
// replaced, so that nobody else gets that.
void* map_again(void* mapped, const hugetlb::MapCall& call, Via via) {
  const bool replaces = host::mmap_replaces(call.flags);
  if (!replaces) do_unmap(via, mapped, call.size);
  void* const made = map(call.at, call.size, call.prot, call.flags, call.fd, call.offset, via);
  if (replaces && made == MAP_FAILED) {
    const int error = errno;
    do_unmap(via, mapped, call.size);
    errno = error;
  }
  return made;
}

}  // namespace

void* map(void* at, size_t size, int prot, int flags, int fd, off_t offset, Via via) {
  if ((flags & MAP_HUGETLB) != 0 || hugetlb::any()) [[unlikely]] {
    void* mapped = nullptr;
    if (map_huge({at, size, prot, flags, fd, offset}, &mapped)) return mapped;
  }
  host::MapRequest request{size, prot, flags, offset};
  const auto go_on = [&] { return do_map(via, {at, size, prot, flags, fd, request.offset}); };
  const bool anonymous = (flags & MAP_ANONYMOUS) != 0;
  const bool shared_memory = anonymous && (flags & MAP_TYPE) != MAP_PRIVATE;
  if (!awake() && !(shared_memory && sees_shared_memory())) [[likely]]
    return forgetting(at, size, host::mmap_replaces(flags), go_on);
  // Libc's own: what comes here is the call below, judged and placed already.
  const bool judges = via == Via::kNext && fd >= 0 && !anonymous;
  struct ::stat judged{};
  if (judges) {
    if (engines_refused(fd)) return MAP_FAILED;
    const long refusal = refusal_of_map(fd, &request, &judged);
    if (refusal != 0) return refused_map({at, size, prot, flags, fd, offset}, refusal);
  }
  const int error = errno;
  void* const unseen =
      anonymous ? MAP_FAILED : map_unseen(via, {at, size, prot, flags, fd, request.offset});
  errno = error;
  if (unseen != MAP_FAILED) return unseen;
  std::optional<ViewToCome> view(std::in_place, anonymous ? -1 : fd, request.offset, size);
  if (view->refused()) return MAP_FAILED;
  void* mapped = host::mmap_replaces(flags)
                     ? map_over(at, size, [&] { return forgetting(at, size, true, go_on); })
                     : go_on();
  if (judges && mapped != MAP_FAILED && !stands_behind(fd, judged)) [[unlikely]] {
    view.reset();
    return map_again(mapped, {at, size, prot, flags, fd, offset}, via);
  }
  if (const long refusal = fd >= 0 && !anonymous ? tell_mapped(fd, mapped, request) : 0) {
    do_unmap(via, mapped, size);
    as_libc(refusal);
    return MAP_FAILED;
  }
  if ((flags & MAP_TYPE) != MAP_PRIVATE) return noted_mapping(mapped, size, anonymous);
  if (!host::mmap_replaces(flags)) {
    mapped = map_evenly(via, {at, size, prot, flags, fd, offset}, mapped);
  }
  if (mapped != MAP_FAILED) note_private(mapped, size, true);
  return anonymous ? mapped : noted_mapping(mapped, size, false);
}

int memory_file(const char* name, unsigned flags) {
  if ((flags & MFD_HUGETLB) == 0 || !wants_hugetlb_standin()) [[likely]]
    return noted_file(with_buffers([&](Buffers& buffers) { buffers.text(name); },
                                   [&] { return next::memfd_create(name, flags); }));
  return static_cast<int>(as_libc(hugetlb::make_file(name, flags)));
}

int unmap(void* at, size_t size, Via via) {
  if (cuts_huge_page(at, size)) return static_cast<int>(as_libc(-EINVAL));
  const auto go_on = [&] { return do_unmap(via, at, size); };
  if (!awake()) [[likely]]
    return forgetting(at, size, true, go_on);
  host::EngineSection section(host::Touches::kNothing);
  trace::enter_room(trace::Room::shim, 1, number_of(at));
  const int result = host::change(number_of(at), size, host::EventKind::kUnmap,
                                  [&] { return forgetting(at, size, true, go_on); });
  // It may have been what kept a closed descriptor alive.
  host::sweep_closed();
  section.leave();
  return result;
}

void* remap(void* old_at, size_t old_size, size_t new_size, int flags, void* new_at, Via via) {
  if (hugetlb::any()) {
    const auto allowed =
        hugetlb::check_remap(number_of(old_at), &old_size, &new_size, flags, number_of(new_at));
    if (!allowed) {
      as_libc(allowed);
      return MAP_FAILED;
    }
  }
  if (!awake()) [[likely]]
    return remap_noting(old_at, old_size, new_size, flags, new_at, via);
  host::EngineSection section(host::Touches::kNothing);
  trace::enter_room(trace::Room::shim, 1, number_of(old_at));
  const host::Remap asked{number_of(old_at), old_size, new_size, flags, number_of(new_at)};
  abi_vfio::RemapOfRegions regions(asked);
  if (regions.refused() != 0) {
    section.leave();
    as_libc(-regions.refused());
    return MAP_FAILED;
  }
  void* const there = host::remap(
      asked,
      [&](const host::Remap& one) {
        return remap_noting(reinterpret_cast<void*>(one.from), one.size, one.new_size, one.flags,
                            reinterpret_cast<void*>(one.to), via);
      },
      [](void* made, u64 size) { return noted_mapping(made, size, false); });
  if (there != MAP_FAILED) regions.moved(Hva(number_of(there)));
  section.leave();
  return there;
}

int protect(void* at, size_t size, int prot, int key, Via via) {
  if (cuts_huge_page(at, size)) return static_cast<int>(as_libc(-EINVAL));
  const auto call = [&](u64 start, u64 bytes, int rights) {
    return do_protect(via, reinterpret_cast<void*>(start), bytes, rights, key);
  };
  const auto go_on = [&] { return abi_vfio::protect_regions(number_of(at), size, prot, call); };
  if (!awake()) [[likely]]
    return go_on();
  if (via == Via::kNext && execution_refused(at, size, prot)) return -1;
  const auto loss = host::loss_by_mprotect(prot);
  const int result = loss ? announce(at, size, *loss, go_on) : gain(at, size, go_on);
  if (result == 0) note_private(at, size, false);
  return result;
}

int advise(void* at, size_t size, int advice, Via via) {
  if (hugetlb::any()) {
    const auto allowed = hugetlb::check_advice(number_of(at), &size, advice);
    if (!allowed) return static_cast<int>(as_libc(allowed));
  }
  const auto go_on = [&] { return do_advise(via, at, size, advice); };
  if (!awake()) [[likely]]
    return go_on();
  if (advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE)
    return with_buffer(at, size, go_on);
  if (advice == kCollapse) return collapse(at, size, go_on);
  if (!host::loss_by_madvise(advice)) [[likely]]
    return go_on();
  if (advice == MADV_REMOVE && maps_ours()) return remove_parts(number_of(at), size, via);
  return discard(at, size, advice, [&](u64 start, u64 bytes) {
    return do_advise(via, reinterpret_cast<void*>(start), bytes, advice);
  });
}

ssize_t advise_parts(int pidfd, const iovec* parts, size_t count, int advice, unsigned flags) {
  const auto go_on = [&](const iovec* from, size_t several) {
    return next::process_madvise(pidfd, from, several, advice, flags);
  };
  const bool fills = advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE;
  const bool seen = host::loss_by_madvise(advice) || advice == kCollapse || fills;
  if (!awake() || !seen || count > IOV_MAX || !names_this_process(pidfd)) [[likely]]
    return go_on(parts, count);
  // The kernel takes one range after the other, too, and says how far it came.
  ssize_t advised = 0;
  for (size_t i = 0; i < count; ++i) {
    iovec part{};
    if (!read_part(parts + i, &part)) return advised != 0 ? advised : as_libc(-EFAULT);
    const auto advise_piece = [&](u64 start, u64 bytes) {
      const iovec piece{reinterpret_cast<void*>(start), bytes};
      return static_cast<int>(go_on(&piece, 1)) < 0 ? -1 : 0;
    };
    const auto advise_whole = [&] { return advise_piece(number_of(part.iov_base), part.iov_len); };
    int done = 0;
    if (fills) {
      done = with_buffer(part.iov_base, part.iov_len, advise_whole);
    } else if (advice == kCollapse) {
      done = collapse(part.iov_base, part.iov_len, advise_whole);
    } else {
      done = discard(part.iov_base, part.iov_len, advice, advise_piece);
    }
    if (done < 0) return advised != 0 ? advised : -1;
    advised += static_cast<ssize_t>(part.iov_len);
  }
  return advised;
}

// Libc knows it since 2.41 only.
int seal(void* at, size_t size, unsigned long flags) {
  constexpr long kSeal = 462;  // mseal, Linux 6.10
  const auto go_on = [&] {
    return static_cast<int>(
        as_libc(sys::call(kSeal, sys::arg(at), static_cast<long>(size), static_cast<long>(flags))));
  };
  if (!awake()) [[likely]]
    return go_on();
  host::EngineSection section(host::Touches::kNothing);
  const int result = host::gain(number_of(at), size, go_on);
  section.leave();
  return result;
}

int say_resident(void* at, size_t size, unsigned char* to) {
  constexpr u64 kAtOnce = 64 * kPageSize;
  const auto call = [&] { return next::mincore(at, size, to); };
  const int answer = with_buffer(to, size / kPageSize + 1, call);
  const auto range = host::pages_of(reinterpret_cast<u64>(at), size);
  if (answer != 0 || !range || !host::owners_active()) [[likely]]
    return answer;
  host::EngineSection section(host::Touches::kClientMemory);
  for (u64 done = 0; done < range->size(); done += kAtOnce) {
    const u64 bytes = std::min(kAtOnce, range->size() - done);
    u64 kept = host::pages_with_devices(HvaRange(range->start() + done, bytes));
    for (; kept != 0; kept &= kept - 1) {
      const u64 page = done / kPageSize + static_cast<u64>(std::countr_zero(kept));
      static_cast<void>(host::store(Hva(reinterpret_cast<u64>(to) + page), u8{1}));
    }
  }
  section.leave();
  return 0;
}

int remap_pages(void* at, size_t size, int prot, size_t page, int flags) {
  const auto go_on = [&] { return next::remap_file_pages(at, size, prot, page, flags); };
  if (!awake()) [[likely]]
    return go_on();
  const u64 first = number_of(at) & kPageMask;
  page = page_behind(at, size, page);
  void* const there = reinterpret_cast<void*>(first);
  const u64 bytes = size & kPageMask;
  // The kernel fills it as it maps it.
  const ViewToCome view(there, static_cast<off_t>(page << kPageShift), bytes);
  if (view.refused()) return -1;
  const int result =
      announce(there, bytes, host::EventKind::kUnmap, host::Announced::kMoves, go_on);
  if (result == 0) noted_mapping(there, bytes, false);
  return result;
}

namespace {

// What the kernel cannot lock or fill it leaves, as mlockall does.
void lock_part(HvaRange part) {
  void* const at = reinterpret_cast<void*>(part.start().raw());
  const long bytes = static_cast<long>(part.size());
  with_buffer(at, part.size(),
              [&] { return static_cast<int>(sys::call(SYS_mlock, sys::arg(at), bytes)); });
}

// Locks all that is mapped but what is ours, or lets go of what is ours.
void lock_mappings(bool ours) {
  const HvaRange everything(Hva(0), u64{1} << 47);
  for (HvaRange left = everything; !left.empty();) {
    const host::MappedPart part = host::first_part(left);
    Hva end = part.range.end();
    if (part.mapped) {
      const OwnMemory own = own_memory_in(part.range.start().raw(), end.raw());
      const bool begins = own.end != 0 && own.start <= part.range.start().raw();
      if (own.end != 0) end = std::min(end, Hva(begins ? own.end : own.start));
      const HvaRange here(part.range.start(), end - part.range.start());
      if (begins && ours) {
        sys::call(SYS_munlock, static_cast<long>(here.start().raw()),
                  static_cast<long>(here.size()));
      }
      if (!begins && !ours) lock_part(here);
    }
    left = HvaRange(end, left.end() - end);
  }
}

}  // namespace

int lock_all(int flags) {
  const auto call = [](int with) {
    return static_cast<int>(as_libc(sys::call(SYS_mlockall, with)));
  };
  if (!awake() || (flags & MCL_CURRENT) == 0) [[likely]]
    return call(flags);
  // On fault at first: nothing of ours is filled.
  if (const int refused = call(flags | MCL_ONFAULT); refused != 0) return refused;
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  lock_mappings(true);
  section.leave();
  if ((flags & MCL_ONFAULT) == 0) {
    if ((flags & MCL_FUTURE) != 0) call(MCL_FUTURE);
    lock_mappings(false);
  }
  errno = error;
  return 0;
}

}  // namespace stagetwo::shim
