// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: guest memory kept under a limit, and what is known of its use. Pages that
// no guest has used for longest leave the process, compressed or for a file, and come back when
// somebody touches them (docs/journeys/swap_out.md). Analogue: a memory cgroup with its reclaim,
// and the generations of MGLRU (kernel files: mm/memcontrol.c, mm/vmscan.c, mm/workingset.c).
// Differs: only memory that a guest uses counts and goes; accessed bits are those of the secondary
// MMUs, the process's own touches are known by the refaults they cause.
//
// Invariants: I1  what counts (pages of guests that are in memory, and the bytes kept in memory for
//                 those that are not) is under the limit but for what came since the last look;
//                 a guest's fault waits for room. So is what counts of a guest under its own.
//             I2  pinned, locked, hugetlb, device-private pages, those that the client watches by a
//                 userfaultfd and those that another process may have are left alone, and counted.
//             I3  a page comes back with its bytes, or is lost and said so.
// Locking: guests under a leaf-like lock of their own; the rest by whoever runs the turn.
// Lifetime: one engine a process, from start() to stop(); a child of fork has none, and everything.

#include "addr/addr.h"
#include "base/hash_map.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::reclaim {

inline constexpr u64 kNoLimit = ~u64{0};
// One line for the user.
using Say = void (*)(const char* line);

struct Sample {
  u64 at_ns;  // since start()
  u64 working_set;
  u64 resident;
  u64 compressed;
  u64 on_disk;
};

struct Settings {
  u64 memory_limit = kNoLimit;      // bytes
  u64 guest_limit = kNoLimit;       // of each guest, unless it is told otherwise
  int swap_fd = -1;                 // of mem::SwapFile::create(); the engine's from then on
  u64 swap_limit = kNoLimit;        // bytes
  u64 compressed_limit = kNoLimit;  // bytes in memory; none: a share of the limit
  u64 interval_ns = 0;              // of the working set's samples; 0: none are taken
  Say say = nullptr;
  void (*on_sample)(const Sample& sample) = nullptr;  // by the turn, after each
};

// Failure: EBUSY (it was started), ENOMEM, EMFILE; EPERM, ENOSYS: userfaultfd is denied, without
// which nothing can be taken. The file is closed then.
[[nodiscard]] Result<void> start(const Settings& settings);
[[nodiscard]] bool active();
// Whoever makes a guest calls `start` before it, once: what a limit needs is to be there before the
// guest's memory is, and costs nothing where no guest ever is.
void set_before_first_guest(void (*start)());
// Pre: no guest. Everything comes back. For tests and clients that unload us.
void stop();

// Is the page's memory with us? To the client it is there. Context: any thread.
[[nodiscard]] bool keeps(Hva at);
// From now on. kNoLimit: none. Context: any thread of the client's.
void set_memory_limit(u64 bytes);
// The same for every guest there is, and those that come.
void set_guest_limit(u64 bytes);

// Where there is a limit: until what guests use is known to a turn, so that memory which its
// process fills at once is paid for from the first page on. Some milliseconds at most, whatever
// happens. Context: no lock held.
void wait_for_turn();

// What one guest uses as memory. Part of its VM.
class Guest {
 public:
  Guest();
  ~Guest();
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  // What the guest uses under that name, in place of what it used; empty: nothing any more. Pages
  // of what it no longer uses stay absent until somebody wants them. Failure: ENOMEM; the range is
  // then not reclaimed. Context: no lock of rank address space or below.
  [[nodiscard]] Result<void> use(u32 name, HvaRange range);
  // Of its own, beside the process's: of its pages in memory, and its part of what is kept of
  // pages.
  void set_limit(u64 bytes);
  [[nodiscard]] u64 limit();
  // Bytes in memory, as of the last look.
  [[nodiscard]] u64 resident_bytes();

 private:
  friend class Reclaimer;
  friend struct GuestAccess;
  struct Range {
    HvaRange range;
    bool known = false;  // to the spans of an engine
  };
  [[nodiscard]] Result<void> enter_use(u32 name, HvaRange range);
  void let_go(const Range& used);
  HashMap<u32, Range> ranges_{"reclaim.guest_ranges"};
  u64 limit_ = kNoLimit;
  u64 resident_ = 0;
  Guest* next_ = nullptr;
};

// How old pages in memory are, in passes since they were last seen used.
inline constexpr unsigned kAgeBuckets = 4;  // 0, 1, 2 to 7, more

struct Statistics {
  u64 limit = kNoLimit;
  u64 resident = 0;    // bytes, as of the last look
  u64 compressed = 0;  // bytes in memory for pages that are not
  u64 account = 0;     // of these, what says where each page is: goes when none is away
  u64 on_disk = 0;     // bytes
  u64 absent = 0;      // pages that are kept (one on its way back among them), of which so many
  u64 same_filled = 0;
  u64 taken = 0;      // pages so far
  u64 refaults = 0;   // so far
  u64 too_early = 0;  // refaults of pages that were in use
  u64 ahead = 0;      // pages that came with their neighbours
  u64 discarded = 0;
  u64 private_absent = 0;    // pages of guest_memfds, among the absent
  u64 private_refaults = 0;  // among the refaults
  u64 waits = 0;             // for room: how often somebody slept a millisecond at most
  u64 not_stored = 0;        // pages put back, because there was no room for them
  u64 lost = 0;
  u64 write_errors = 0;
  u64 huge_splits = 0;  // huge pages of which a part went
  u64 passes = 0;       // of ageing
  u64 ages[kAgeBuckets] = {};
  u64 working_set = 0;  // bytes, of the last interval
  // Left alone: bytes that are resident,
  u64 hugetlb = 0;
  u64 locked = 0;
  u64 private_shared = 0;      // of guest_memfds that another process may have
  u64 shared_with_others = 0;  // the same of shared memory
  u64 private_files = 0;       // of private mappings of files
  u64 with_others = 0;         // pages that a device has, or a secure guest
  // and refusals so far, in pages.
  u64 pinned = 0;        // pinned, or a buffer of a system call
  u64 watched = 0;       // by the client's own userfaultfd
  u64 shared_away = 0;   // another process may have it
  u64 under_change = 0;  // of its mapping
  u64 not_movable = 0;   // the kernel would not
  u64 unmapped = 0;      // no mapping, or none that may be read; of files, of several
};
[[nodiscard]] Statistics statistics();

// What each is called by whoever shows them all; the ages come behind.
enum class Counts : u8 { kBytes, kNow, kSoFar };
struct Figure {
  const char* name;
  u64 Statistics::* value;
  Counts counts;
};
inline constexpr Figure kFigures[] = {
    {"limit", &Statistics::limit, Counts::kBytes},
    {"resident", &Statistics::resident, Counts::kBytes},
    {"compressed", &Statistics::compressed, Counts::kBytes},
    {"compressed_account", &Statistics::account, Counts::kBytes},
    {"on_disk", &Statistics::on_disk, Counts::kBytes},
    {"working_set", &Statistics::working_set, Counts::kBytes},
    {"absent_pages", &Statistics::absent, Counts::kNow},
    {"same_filled_pages", &Statistics::same_filled, Counts::kNow},
    {"taken_pages", &Statistics::taken, Counts::kSoFar},
    {"refaults", &Statistics::refaults, Counts::kSoFar},
    {"refaults_too_early", &Statistics::too_early, Counts::kSoFar},
    {"read_ahead_pages", &Statistics::ahead, Counts::kSoFar},
    {"discarded_pages", &Statistics::discarded, Counts::kSoFar},
    {"waits_for_room", &Statistics::waits, Counts::kSoFar},
    {"not_stored_pages", &Statistics::not_stored, Counts::kSoFar},
    {"lost_pages", &Statistics::lost, Counts::kSoFar},
    {"write_errors", &Statistics::write_errors, Counts::kSoFar},
    {"huge_pages_split", &Statistics::huge_splits, Counts::kSoFar},
    {"ageing_passes", &Statistics::passes, Counts::kSoFar},
    {"hugetlb", &Statistics::hugetlb, Counts::kBytes},
    {"locked", &Statistics::locked, Counts::kBytes},
    {"private_absent_pages", &Statistics::private_absent, Counts::kNow},
    {"private_refaults", &Statistics::private_refaults, Counts::kSoFar},
    {"private_shared", &Statistics::private_shared, Counts::kBytes},
    {"shared_with_others", &Statistics::shared_with_others, Counts::kBytes},
    {"private_file_mappings", &Statistics::private_files, Counts::kBytes},
    {"pages_of_other_owners", &Statistics::with_others, Counts::kNow},
    {"refused_pinned", &Statistics::pinned, Counts::kSoFar},
    {"refused_watched", &Statistics::watched, Counts::kSoFar},
    {"refused_shared", &Statistics::shared_away, Counts::kSoFar},
    {"refused_changing", &Statistics::under_change, Counts::kSoFar},
    {"refused_by_kernel", &Statistics::not_movable, Counts::kSoFar},
    {"refused_unmapped", &Statistics::unmapped, Counts::kSoFar},
};

// The samples from number `first` on, at most `room`; answers how many. Old ones may be gone.
[[nodiscard]] unsigned samples(u64* first, Sample* out, unsigned room);

// fork: what is private comes back before it; the rest is host's (host/page_owner.h).
void before_fork();
void after_fork_parent();
void after_fork_child();

}  // namespace stagetwo::reclaim
