// SPDX-License-Identifier: Apache-2.0
#include "mem/sealed_pages.h"

#include <lz4.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/kernel_numbers.h"
#include "base/sys.h"

namespace stagetwo::mem {
namespace {

constexpr u16 kWholePage = kPageSize;

// Of one page at a time, under the lock of private pages.
struct Scratch {
  alignas(64) u8 sealed[kPageSize];
  alignas(64) u8 clear[kPageSize];
};
constinit Scratch scratch{};

bool is_zero(const u8* page) {
  u64 first = 0;
  std::memcpy(&first, page, sizeof(first));
  return first == 0 && std::memcmp(page, page + sizeof(first), kPageSize - sizeof(first)) == 0;
}

// Memory first: what has none is refused here and not by a signal.
Result<void> make_present(u8* page) {
  if (failpoint::should_fail("mem.sealed_pages_back")) return refuse(ENOMEM);
  const auto made = sys::madvise(page, kPageSize, MADV_POPULATE_WRITE);
  const bool unknown = !made && to_int(made.error()) == EINVAL;  // an older kernel
  if (!made && !unknown) return refuse(ENOMEM);
  return {};
}

Result<void> remove(u8* page) {
  return sys::madvise(page, kPageSize, MADV_REMOVE);
}

}  // namespace

Result<SealedPages*> SealedPages::create(int fd, u64 pages, PrivateSwap& swap) {
  static constinit sync::Atomic<u64> last{0};
  const u64 number = last.fetch_add(1, sync::kRelaxed) + 1;
  SealedPages* const made = ST_TRY(make<SealedPages>("mem.sealed_pages", pages, swap, number));
  const auto ready = [&]() -> Result<void> {
    ST_TRY(made->store_.begin());
    made->records_ =
        static_cast<Record*>(ST_TRY(map_pages(pages * sizeof(Record), "mem.sealed_records")));
    const u64 bytes = pages << kPageShift;
    made->whole_ = static_cast<u8*>(ST_TRY(map_file(
        bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0, "mem.sealed_map")));
    static_cast<void>(sys::madvise(made->whole_, bytes, MADV_DONTDUMP));
    static_cast<void>(sys::madvise(made->whole_, bytes, MADV_DONTFORK));
    return {};
  }();
  if (ready) return made;
  stagetwo::destroy(made);
  return refuse(ready.error());
}

void SealedPages::destroy(SealedPages* pages) {
  if (pages != nullptr) stagetwo::destroy(pages);
}

SealedPages::~SealedPages() {
  if (records_ != nullptr) {
    forget({0, count_});
    unmap_pages(records_, count_ * sizeof(Record));
  }
  if (whole_ != nullptr) unmap_pages(whole_, count_ << kPageShift);
}

SealedIdentity SealedPages::identity(u64 page, u64 bytes) const {
  return {.guest = number_, .incarnation = 0, .address = page << kPageShift, .bytes = bytes};
}

void SealedPages::count_away(int pages) {
  away_ += static_cast<u64>(pages);
  private_pages::detail::away.fetch_add(static_cast<u64>(pages), sync::kRelaxed);
}

// ---- away -----------------------------------------------------------------------------------

Result<void> SealedPages::seal(u64 page, const u8* bytes, PrivateSwap::Bench* bench) {
  const int smaller =
      LZ4_compress_fast_extState(bench->store->state, reinterpret_cast<const char*>(bytes),
                                 reinterpret_cast<char*>(bench->clear), kWholePage,
                                 static_cast<int>(CompressedPool::kMaxObject), 1);
  const u16 size = smaller > 0 ? static_cast<u16>(smaller) : kWholePage;
  Record& record = records_[page];
  const auto done = store_.seal(identity(page, size), smaller > 0 ? bench->clear : bytes,
                                bench->sealed, &record.seal);
  wipe(bench->clear, kPageSize);
  if (!done) return done;
  record.stored = ST_TRY(
      swap_.private_store().put_bytes(bench->sealed, size, bench->store, swap_.file().get()));
  record.bytes = size;
  record.state = State::kSealed;
  return {};
}

Result<void> SealedPages::take(u64 page, PrivateSwap::Bench* bench) {
  Record& record = records_[page];
  const u8* const bytes = at(page);
  if (is_zero(bytes)) {
    swap_.private_store().put_zeros();
    record.stored = kZeros;
    record.state = State::kOfZeros;
  } else {
    ST_TRY(seal(page, bytes, bench));
  }
  count_away(1);
  // Refused of memory that the client locks as it is made.
  if (remove(at(page))) return {};
  drop(page);
  return refuse(EBUSY);
}

Result<void> SealedPages::drop_from_file(u64 page) {
  return remove(at(page));
}

void SealedPages::drop(u64 page) {
  Record& record = records_[page];
  if (record.state != State::kLost) swap_.private_store().drop(record.stored);
  record = Record();
  count_away(-1);
}

u64 SealedPages::forget(PageRange pages) {
  u64 dropped = 0;
  for (u64 page = pages.first; page < std::min(pages.end, count_) && away_ != 0; ++page) {
    if (!is_away(page)) continue;
    drop(page);
    ++dropped;
  }
  return dropped;
}

// ---- and back -------------------------------------------------------------------------------

Result<void> SealedPages::open(u64 page, u8* to) {
  const Record& record = records_[page];
  ST_TRY(swap_.private_store().get_bytes(record.stored, scratch.sealed, swap_.file().get()));
  const bool whole = record.bytes == kWholePage;
  u8* const clear = whole ? to : scratch.clear;
  const auto opened = store_.open(identity(page, record.bytes), record.seal, scratch.sealed, clear);
  if (whole || !opened) return opened;
  const int size = LZ4_decompress_safe(reinterpret_cast<const char*>(clear),
                                       reinterpret_cast<char*>(to), record.bytes, kWholePage);
  wipe(scratch.clear, record.bytes);
  if (size != kWholePage) return refuse(EBADMSG);
  return {};
}

Result<void> SealedPages::give(u64 page, u8* to) {
  Record& record = records_[page];
  if (record.state == State::kLost) return refuse(EIO);
  ST_TRY(make_present(to));
  if (record.state == State::kOfZeros) {
    std::memset(to, 0, kPageSize);
  } else if (const auto opened = open(page, to); !opened) {
    static_cast<void>(remove(to));
    swap_.private_store().drop(record.stored);
    record.state = State::kLost;
    swap_.private_lost(Hva(reinterpret_cast<u64>(to)), to_int(opened.error()));
    return opened;
  }
  drop(page);
  return {};
}

void SealedPages::give_all() {
  for (u64 page = 0; page < count_ && away_ != 0; ++page) {
    if (is_away(page)) static_cast<void>(give(page, at(page)));
  }
}

}  // namespace stagetwo::mem
