// SPDX-License-Identifier: Apache-2.0
#include "iommu/file_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/bits.h"
#include "base/sys.h"

#if !defined(F_GET_SEALS)
#define F_GET_SEALS 1034
#endif

namespace stagetwo::iommu {

Result<void> map_file_range(Locked& locked, Ioas& ioas, int fd, u64 start, MapRequest* request) {
  struct ::stat file{};
  if (!sys::fstat(fd, &file)) return refuse(EBADF);
  if (request->length == 0) return refuse(EINVAL);
  const auto end = checked_add(start, request->length);
  if (!end) return refuse(EOVERFLOW);
  // Seals are what shared memory has, sealed or not.
  if (!sys::fcntl(fd, F_GET_SEALS)) return refuse(EINVAL);
  const bool pins_now = ioas.hwpts.get() != nullptr;
  if (pins_now && *end > static_cast<u64>(file.st_size)) return refuse(EINVAL);
  const bool write = (request->rights & kMayWrite) != 0;
  // Not through the client's own file description: a mapping would count as its holder.
  const int own = ST_TRY(sys::reopen_engine_fd(fd, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  const u64 first = start & kPageMask;
  const u64 bytes = (*end - first + kPageSize - 1) & kPageMask;
  const auto mapped = map_file(bytes, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED, own,
                               static_cast<long>(first), "iommu.file_map");
  static_cast<void>(sys::close(own));
  if (!mapped) return refuse(mapped.error());
  const u64 at = reinterpret_cast<u64>(*mapped);
  const auto done = locked.map(ioas, at + (start - first), request);
  if (!done) {
    unmap_pages(*mapped, bytes);
    return done;
  }
  PageSet& set =
      *locked.areas(ioas, request->iova, request->iova).first(request->iova, request->iova)->pages;
  set.engine_maps = true;
  locked.note_file(set);  // also where nothing is pinned yet: who maps it may be gone by then
  return {};
}

}  // namespace stagetwo::iommu
