// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade: one iommufd, as one process sees it. Everything it answers stands in the arena behind
// the descriptor; a Context adds only where that is mapped here, and the callbacks of the accesses
// this process has made.
//
//   Locked l(context);            nothing of the iommufd changes while it lives
//   if (!l.ok()) return EIO;      a process died in the middle of a change
//   Ioas* ioas = ST_TRY(l.find<Ioas>(id));
//
// Analogue: struct iommufd_ctx, and the functions of drivers/iommu/iommufd over its objects.
// Locking: one lock for all (rank kIoas), taken by Locked. It is let go for callbacks
// (AccessClient::unmap), and while map() pins. Who copies, attaches or pins through an access pins
// under it, and may wait for pages that are brought back.
// Failure: the kernel's errno, and nothing has changed.

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/vec.h"
#include "iommu/cancel.h"
#include "iommu/domain.h"
#include "iommu/queue_files.h"
#include "iommu/requests.h"
#include "sync/mutex.h"

namespace stagetwo::iommu {

// Who holds pages through an access, in the process that made it.
class AccessClient {
 public:
  virtual ~AccessClient() = default;
  // Let go of every pin in [iova, last]. Context: no lock of this room.
  virtual void unmap(u64 iova, u64 last) = 0;
};

struct IovaRanges {
  u64 start, last;
};

class Context {
 public:
  // The iommufd behind `fd`. Failure: ENOMEM, EMFILE, EIO.
  static Result<Box<Context>> attach(int fd);
  static Result<host::Backing> make_file(const char* kind) { return Arena::make_file(kind); }
  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Maps [user_address, + request->length), memory of this process. What has to be waited for is
  // waited for without the lock (map.cc). Failure: ENOENT, EINVAL, EOVERFLOW, EEXIST, ENOSPC,
  // EFAULT, ENOMEM, EIO. Context: not locked.
  Result<void> map(u32 ioas_id, u64 user_address, MapRequest* request);
  // Unmaps the areas in [start, last], calling back who has pinned them. *unmapped counts bytes
  // also on failure. Failure: ENOENT (would cut an area), EDEADLOCK (a client does not let go),
  // EIO. Context: not locked.
  Result<void> unmap(u32 ioas_id, u64 start, u64 last, u64* unmapped);
  // Moves an access to another IOAS. Its maker lets go of what it has pinned in the one before and
  // cannot pin meanwhile. Failure: ENOENT (it is in none just now), EADDRINUSE. Context: not
  // locked.
  Result<void> change_ioas(u32 access_id, u32 ioas_id);
  // The same where it may be in none, or is to be: 0. EBUSY: it is changing just now.
  Result<void> set_ioas(u32 access_id, u32 ioas_id);
  // A device's access by (device, PASID, IOVA), page by page; `pasid` kNoPasid: a request of its
  // own. Reads (`to`) or writes (`from`). The answer says how far it came, and where and why no
  // further. `asks`: for a page that is not there the device makes a page request and waits for the
  // response. It goes to the fault queue of the page table; a process's own pages (sva.h) are
  // brought. Context: not locked.
  DmaAnswer dma(u32 device_id, s64 pasid, u64 iova, u64 bytes, void* to, const void* from,
                bool asks = false);
  // The page request alone. False: nobody takes it, or the response was not "success", or `cancel`
  // is set: it is looked at while the response is waited for.
  bool ask_for_page(u32 device_id, s64 pasid, u64 iova, Rights wanted, Cancel cancel = {});
  // The access's maker lets go of everything and of the access. Context: not locked.
  void destroy_access(u32 access_id);

  // Of the file behind its descriptors.
  [[nodiscard]] u64 device() const { return device_; }
  [[nodiscard]] u64 inode() const { return inode_; }

  // Gives back what this process holds for the iommufd: nobody has it open any more.
  void release_all();

  // How many bytes of temporary memory a call may use for lists of pages (the test command's
  // limit); of all iommufds of this process.
  static void set_batch_limit(u64 bytes);

 private:
  friend class Locked;
  struct Client {
    u32 access_id;
    AccessClient* client;
    u32 calls;  // under way
  };
  Result<void> add_client(u32 access_id, AccessClient* client);
  void remove_client(u32 access_id);
  AccessClient* begin_call(u32 access_id);
  void end_call(u32 access_id);
  void ask_to_let_go(u32 access_id);
  bool await_response(PageWait* wait, Cancel cancel);
  void call_clients(u32 ioas_id, u64 start, u64 last);

  Arena arena_;
  QueueFiles queue_files_;  // under the arena's lock
  u64 device_ = 0, inode_ = 0;
  u32 process_ = kProcesses;  // this process's place; kProcesses: none yet
  u32 stamp_ = 0;             // of the process process_ is about
  sync::Mutex clients_lock_{sync::Rank::kLeaf};
  Vec<Client> clients_ TA_GUARDED(clients_lock_){"iommu.clients"};
};

}  // namespace stagetwo::iommu
