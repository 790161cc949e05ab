// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a page is made unreachable and reachable again. Not for other rooms: see host/page_owner.h.
//
//   hiding        leaves                                   comes back
//   kUserfault    moved, or write-protected, copied and    moved, or filled by a copy; the touch
//                 dropped; the touch waits                 is woken
//   kProtection   PROT_NONE, then copied; the page stays   the bytes are put in behind the
//                 behind it, as zeros                      protection, then the rights
//
// A page of shared memory is protected, hidden and woken in each of its views; it is never moved,
// and dropping it punches it out of the file.
//
// A page that the kernel or a device has pinned (I/O under way, registered buffers) stays. The move
// finds it out page by page; before a copy all that can be seen is whether any memory of the
// process is pinned for long or by requests under way (host/kernel_io.h), and then none is copied;
// the buffers of calls are held (host/held_pages.h). Not seen is who writes it from outside by a
// pin as short as a copy: another process's process_vm_writev, a debugger.
//
// Every step is one that no thread of the process can see half of: a touch before it gets the old
// page, a touch after it waits. kProtection is for where userfaultfd is denied, the client holds
// it, or the memory is none it takes (private file mappings); system calls on such a page answer
// EFAULT. Giving one page its rights back may need two mappings more than the process may have
// (vm.max_map_count): then its bytes are in place, and it stays hidden until there is room.

#include "host/page_owner.h"
#include "host/process_map.h"

namespace stagetwo::host {

enum class Hiding : u8 { kUserfault, kProtection };

// From now on pages may leave by a copy: pages_copied_away() (host/held_pages.h).
void copies_may_come();

// Where the process sees a page.
struct PageView {
  Hva at;
  Prot prot;
};
inline constexpr unsigned kMaxViews = 8;
struct PageViews {
  PageView view[kMaxViews];
  unsigned count = 0;

  [[nodiscard]] const PageView* begin() const { return view; }
  [[nodiscard]] const PageView* end() const { return view + count; }
};

// Gives hidden pages their rights. False: the kernel does not, as when the process would have more
// mappings than it may.
[[nodiscard]] bool allow_pages(HvaRange pages, Prot prot);

// Told around the reading of pages that are still in place: a touch that finds one missing then has
// been discarded behind our back.
class TransitWatcher {
 public:
  virtual void reading(PageKey first, unsigned pages, bool on) = 0;

 protected:
  ~TransitWatcher() = default;
};

class PageTransit final : public PageExit, public PageEntry {
 public:
  // Pre: one view of a private page, at least one of a shared one.
  // `pages` more than one: a run, side by side in every view, by the run forms alone.
  PageTransit(PageKey key, const PageViews& views, Hiding hiding, TransitWatcher* watcher,
              unsigned pages = 1)
      : key_(key), views_(views), hiding_(hiding), watcher_(watcher), pages_(pages) {}

  bool to(Hva place) override;
  bool from(Hva place) override;
  bool from_bytes(const void* page) override;
  unsigned run_to(Hva place) override;
  unsigned run_from(Hva place) override;
  unsigned run_from_bytes(const void* bytes, unsigned pages) override;

  // Locked memory is its owner's, too.
  void take_locked() { locked_too_ = true; }
  // Has the page left? What to() said.
  [[nodiscard]] bool left() const { return left_; }
  // The rights of a page whose bytes are in place, in every view that hides it. False: the kernel
  // does not give them; is_hidden() from now on.
  bool show();
  // Are the bytes in place, but the rights are not?
  [[nodiscard]] bool is_hidden() const { return hidden_; }
  // Was there no way to put them there? The process may have no other mapping.
  [[nodiscard]] bool no_room() const { return no_room_; }
  // Is what was mapped where the page was taken still mapped there, in a view at least? A change
  // that nobody announced, or one that failed halfway, leaves nothing there or something else.
  [[nodiscard]] bool stands() const;
  // Every later touch is a bus error.
  void make_lost();
  // It was lost, and its bytes are given up: a touch finds a page of zeros. Of private memory the
  // call that gave it up has seen to that.
  void heal();
  static void make_bus_error(Hva page);
  // Whoever waits for it in the kernel touches it again.
  void wake();

 private:
  [[nodiscard]] bool shared() const { return key_.object != kPrivateMemory; }
  [[nodiscard]] Hva at() const { return views_.view[0].at; }
  [[nodiscard]] u64 bytes() const { return u64{pages_} * kPageSize; }
  [[nodiscard]] unsigned drop(Hva copies);
  [[nodiscard]] unsigned punched_out() const;
  bool drop_by(int advice);
  bool punch(unsigned first, unsigned pages);
  enum class Put : u8 { kNo, kYes, kNoMemory };
  [[nodiscard]] Put put(unsigned page, const void* bytes);
  bool protect(bool on);
  enum class Copied : u8 { kNo, kYes, kNothing };  // there was nothing: zeros
  Copied copy(Hva place);
  void make_own(unsigned first);
  unsigned copy_and_drop(Hva place);
  bool copy_protected(Hva place);
  [[nodiscard]] bool wipe_protected(int memory, Hva place);
  bool put_behind_protection(const void* page);
  static bool put_through_alias(Hva at, const void* page);
  enum class Told : u8 { kNo, kYes, kNothing };  // by the kernel, which may be out of memory
  [[nodiscard]] Told stands(const PageView& view) const;
  [[nodiscard]] Told hides(const PageView& view) const;

  PageKey key_;
  PageViews views_;
  Hiding hiding_;
  bool locked_too_ = false;
  TransitWatcher* watcher_;
  unsigned pages_;
  bool left_ = false;
  bool hidden_ = false;
  bool no_room_ = false;
};

}  // namespace stagetwo::host
