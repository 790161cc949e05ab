// SPDX-License-Identifier: Apache-2.0
#pragma once

// One iommufd under its lock: every operation on its objects, good while it lives (context.h).

#include <optional>
#include <span>

#include "iommu/context.h"
#include "iommu/object_types.h"
#include "iommu/requests.h"
#include "iommu/uncharged.h"
#include "iommu/walk.h"

namespace stagetwo::iommu {

class Locked {
 public:
  explicit Locked(Context& context) : c_(context), guard_(context.arena_) {
    if (guard_.ok() && guard_.recovered()) [[unlikely]]
      settle_after_death();
    if (guard_.ok() && root().orphans != 0) settle_orphans();
  }
  [[nodiscard]] bool ok() const { return guard_.ok(); }
  [[nodiscard]] Root& root() const { return *static_cast<Root*>(c_.arena_.root()); }
  [[nodiscard]] Arena& arena() const { return c_.arena_; }
  [[nodiscard]] QueueFiles& queue_files() const { return c_.queue_files_; }

  // ---- the table (object_table.cc). Failure: ENOENT (no such id, or of another kind).
  Result<Object*> find(u32 id) const;
  template <typename T>
  Result<T*> find(u32 id) const;
  template <typename T>
  Result<T*> add(ObjectType type, const char* site);
  // Takes it out of the table and frees it; what it leaned on is the caller's. Pre: users == 0.
  template <typename T>
  void remove(T* object);
  void keep_number(u32 id);      // an object had it: nobody gets it any more
  Result<void> destroy(u32 id);  // IOMMU_DESTROY. Failure: ENOENT, EBUSY
  // Of an object that its client is told of later (objects.h, I6): for its maker alone.
  static void hold_back(Object& object) { object.untold = 1; }
  template <typename T>
  Result<T*> find_made(u32 id) const;    // held back or not
  void told(u32 id), take_back(u32 id);  // everybody may find it; it goes, pre: users == 0

  // ---- page sets (pages.cc)
  Result<PageSet*> make_page_set(u64 user_address, u64 length, bool writable);
  void put_page_set(PageSet* set), note_file(PageSet& set);
  Result<void> move_page_set(PageSet& set, u64 address);  // EOPNOTSUPP: of another process
  // Pins pages that nobody holds yet and holds all. Failure: EFAULT, ENOMEM.
  Result<void> hold_pages(PageSet& set, u64 first, u64 count);
  void release_pages(PageSet& set, u64 first, u64 count);
  // Reads or writes bytes of the set, pinned or not. Failure: EFAULT.
  Result<void> copy_pages(PageSet& set, u64 byte, u64 length, void* to, const void* from);
  void release_process();  // pins and charges of this process

  // ---- IOAS (ioas.cc, map.cc)
  Result<Ioas*> make_ioas();
  void destroy_ioas(Ioas* ioas);  // pre: no users
  using MapRequest = iommu::MapRequest;
  Result<void> map(Ioas& ioas, u64 user_address, MapRequest* request);
  Result<void> copy(Ioas& from, u64 iova, u32 to_id, MapRequest* request);
  Result<void> check_allowed(std::span<const IovaRanges> ranges);  // EINVAL
  Result<void> allow(Ioas& ioas, std::span<const IovaRanges> ranges);
  Result<void> reserve(Ioas& ioas, u64 start, u64 last, u32 owner);
  // The next usable range at or behind `from`; false: none.
  static bool next_range(const Ioas& ioas, u64 from, IovaRanges* out);
  Result<void> set_large_pages(Ioas& ioas, bool on);
  Result<void> cut(Ioas& ioas, u64 iova);  // so that an area ends there; EINVAL, EBUSY, ENOMEM
  Result<UnmapStep> unmap_some(Ioas& ioas, u64* start, u64 last, u64* unmapped);
  AreaSet& areas(const Ioas& ioas, u64 start = 0, u64 last = ~u64{0}) const;  // page_rows.h
  // The short way of a page alone (one_page.cc). False: nothing was done, the general one is left.
  bool map_one_page(Ioas& ioas, u64 address, const MapRequest& request);
  bool unmap_one_page(Ioas& ioas, u64 start, u64 last);

  // ---- page tables (hwpt.cc)
  // Failure: as attach(); EOPNOTSUPP (no such tables), ENOSPC (no domain id).
  Result<Hwpt*> make_hwpt(Ioas& ioas, Device& device, HwptHow how);
  Result<Hwpt*> make_nested(Hwpt& parent, GuestTables guest = {});
  void destroy_hwpt(Hwpt* hwpt);
  Result<Hwpt*> process_table();  // this process's addresses, for PASIDs (sva.h)
  Hwpt* find_process_table();
  void detach_dead_processes();

  // ---- devices and their PASIDs (attachments.cc)
  Result<Device*> make_device(bool no_dirty, bool huge, u8 max_pasid_lg2);
  // One in VT-d's tables. Failure: EINVAL, EBUSY (the source has one), ENOMEM.
  Result<Device*> make_vtd_device(const VtdHow& how);
  void destroy_device(Device* device);  // pre: nothing attached
  // `pasid` 0: the device's own requests. `pt_id`: an IOAS (never of a PASID) or a page table; out:
  // the page table's. Failure: ENOENT, EINVAL, EBUSY, EADDRINUSE, EFAULT, ENOMEM.
  Result<void> attach(Device& device, u32* pt_id, u32 pasid = 0);
  Result<void> replace(Device& device, u32* pt_id, u32 pasid = 0);  // EINVAL: nothing attached
  Result<void> attach_table(Device& device, Hwpt& hwpt, u32 pasid);
  void detach(Device& device, u32 pasid = 0);  // nothing: nothing to do
  void detach_all(Device& device);
  static Attachment* find_attachment(Device& device, u32 pasid);  // null: none

  // ---- accesses of devices (dma.cc)
  // What `iova` means to a device; `pasid` kNoPasid: a request of its own.
  Walked look_up(Device& device, s64 pasid, u64 iova, Rights wanted);
  // Reads (`to`) or writes (`from`), page by page.
  DmaAnswer dma(Device& device, s64 pasid, u64 iova, u64 bytes, void* to, const void* from);
  // The walk below an entry; what it found, within a page. Is the frame one this process reaches?
  bool touch(const Walked& found, u64 bytes, void* to, const void* from) const;
  Walked walk_entry(const PasidEntry& entry, u64 iova, Rights wanted);
  [[nodiscard]] bool reaches(u64 address) const;
  Result<DmaLine*> add_line();  // of an engine of this process; ENOSPC
  void remove_line(DmaLine* line), drop_dead_lines();
  void flush_nested(const Hwpt& nested, u64 iova, u64 last);  // a guest's first level has changed

  // ---- dirty tracking (dirty.cc)
  Result<void> set_dirty_tracking(Hwpt& hwpt, bool on);
  // fn(context, first, last): a page that was written. False: a hole ended the walk.
  using DirtyFn = void (*)(void* context, u64 first, u64 last);
  bool read_dirty(Hwpt& hwpt, u64 iova, u64 last, bool clear, DirtyFn fn, void* context);

  // ---- accesses (access.cc); one may be in no IOAS yet, or have no client
  Result<Access*> make_access(Ioas* ioas, bool pins, AccessClient* client, u64 inode = 0);
  void destroy_access(Access* access);  // and its pins. Pre: it has no client, or that is gone
  // Each page's frame goes to `frames`. Failure: ENOENT, EINVAL, EPERM, EFAULT.
  Result<void> pin(Access& access, u64 iova, u64 length, bool write, u64* frames);
  void unpin(Access&, u64 iova, u64 length), unpin_within(Access&, u64 iova, u64 last);
  bool unpin_numbered(Access& access, u32 number);  // false: none has it
  Result<void> transfer(Access& access, u64 iova, u64 length, void* to, const void* from);

  // ---- page requests (fault.cc)
  Result<FaultQueue*> make_fault_queue();
  // Of a device; dropped where nobody takes it. `wait`: who is told of the response.
  void report(Device& device, u32 pasid, u32 group, u32 rights, u64 address, bool last = true);
  bool request_page(Device& device, const PageAsked& asked, PageWait* wait);
  void mark_read(FaultQueue& queue);  // it has a cookie now. Pre: the first delivered
  void mark_unread(FaultQueue& queue, PageRequest* request);  // that could not be told
  Result<void> answer(FaultQueue& queue, u32 cookie, bool success = true);  // EINVAL: no such
  void answer_all(FaultQueue& queue, u64 attachment);  // of one attachment, as invalid
  void drop_partial(Device& device, u64 attachment);   // groups whose last has not come
  void destroy_fault_queue(FaultQueue* queue);
  std::optional<u64> frame_at(Hva at);  // as tables hold it; none: it is not pinned here

 private:
  friend class Context;
  friend class TakeOver;
  friend class MapCall;
  friend class PageRows;
  Result<u32> this_process(), find_this_process();
  bool is_alive(u32 process) const, is_near(u32 process) const, is_this_process(u32 process) const;
  void use_process(u32 process, s64 by) { root().processes[process].uses += static_cast<u64>(by); }
  bool enter_one_page(Ioas& ioas, u64 address, const MapRequest& request, u64 frame);
  void free_page_set(PageSet* set), hold_again(PageSet& set, u64 page), erase_object(Object*);
  Result<void> pin_run(PageSet& set, u64 first, u64 count), make_frames(PageSet& set);
  Result<void> pin_own_page(PageSet& set, u64 page, u32 process);
  void unpin_run(PageSet&, u64 first, u64 count), settle_orphans(), unpin_one(Access&, AccessPin*);
  Result<void> copy_page(PageSet& set, u64 page, u64 offset, u64 size, void* to, const void* from);
  std::optional<Hva> address_here(const PageSet& set, u64 page) const;
  bool drop_dead_fills(Ioas& ioas), unmap_alone(Ioas& ioas, u64 start, u64 last);
  bool touch_frame(u64 address, u64 bytes, void* to, const void* from) const;
  Object* object_at(u32 id) const;  // null: none
  Result<IntervalSet<Allowed>*> make_allowed(std::span<const IovaRanges> ranges);
  void free_allowed(IntervalSet<Allowed>* set), erase_area(Ioas& ioas, Area* area);
  Result<void> map_page_set(Ioas& ioas, PageSet& set, u64 start_byte, MapRequest* request);
  Result<Area*> place_page_set(Ioas& ioas, PageSet& set, u64 start_byte, MapRequest* request);
  bool hold_known_page(PageSet& set, u32 process), drop_dead_fill(Ioas& ioas, Area* area);
  Result<void> insert_pieces(Ioas& to, std::span<const Piece> pieces, u64 iova, u32 rights);
  Result<void> choose_iova(const Ioas& ioas, u64 user_address, u64 length, u64* iova) const;
  Result<void> check_iova(Ioas& ioas, u64 iova, u64 length), fill_areas(Ioas& ioas, u64, u64);
  Result<Area*> insert_area(Ioas& ioas, PageSet& set, const AreaHow& how);
  Result<void> fill_area(Ioas& ioas, Area& area), enter_area(Ioas& ioas, Area& area);
  void unfill_area(Ioas& ioas, Area& area), remove_areas(Ioas& ioas, u64 iova, u64 length);
  Result<void> map_area(const Ioas& ioas, Hwpt& hwpt, const Area& area);
  Result<void> check_alignment(const Ioas& ioas, u64 alignment) const;
  Result<void> recompute_alignment(Ioas& ioas), add_domain(Ioas& ioas, Hwpt& hwpt);
  Result<void> reserve_and_fill(Ioas& ioas, Hwpt& hwpt), join_ioas(Access& access, Ioas& ioas);
  void remove_domain(Ioas& ioas, Hwpt& hwpt), remove_reserved(Ioas& ioas, u32 owner);
  Result<void> do_attach(Device& device, u32 pasid, Hwpt& hwpt), insert_object(Object* object);
  Result<void> enter(Device& device, u32 pasid, Hwpt& hwpt), attach_ioas(Device&, Ioas&, u32*);
  Result<Hwpt*> do_replace(Device& device, u32 pasid, Hwpt& hwpt);
  Result<void> replace_by_ioas(Device& device, Ioas& ioas, u32* pt_id);
  Result<void> reserve_for(Device& device, u32 pasid, const Hwpt& hwpt);
  void unreserve_for(Device& device, u32 pasid, const Hwpt& hwpt);
  static Result<void> check_takes(Device& device, u32 pasid, const Hwpt& hwpt);
  void link(Attachment& attachment, Hwpt& hwpt), take_down(Attachment& attachment);
  static void unlink(Attachment& attachment);
  void post_device(const Attachment& attachment, const PageBlock& block), put_hwpt(Hwpt* hwpt);
  void post_children(const Hwpt& parent), flush_attachment(const Attachment& attachment);
  void post_pages(const Hwpt& hwpt, u64 iova, u64 last), flush_pages(const Hwpt&, u64, u64);
  void flush_ioas(const Ioas& ioas, u64 iova, u64 last), leave_ioas(AccessSeat& seat);
  bool drop_if_dead(Object* object), drop_dead_accesses(const Ioas& ioas), drop_closed_files();
  bool collect_dirty(Hwpt& hwpt, u64 iova, u64 last, bool clear, DirtyFn fn, void* context);
  Result<u64> pin_pages_of(Area& area, u64 iova, u64 last, bool write, u64* frames);
  void unpin_areas(Ioas& ioas, u64 iova, u64 last), settle_after_death(), destroy_object(Object*);
  void uncharge(host::PinCharge mode, u64 pages);

  Context& c_;
  Uncharged uncharged_;
  Arena::Guard guard_;
};

}  // namespace stagetwo::iommu

#include "iommu/locked_objects.h"
