// SPDX-License-Identifier: Apache-2.0
#include "stage2/table_pool.h"

#include <bit>
#include <memory>
#include <new>

#include "base/aligned_pages.h"
#include "base/check.h"
#include "base/failpoint.h"

namespace stagetwo::stage2 {
namespace {

// Every entry nonpresent, and for the schedule seam a word without a history.
void clear(Entry* entries) {
  for (unsigned i = 0; i < kTableEntries; ++i) std::construct_at(entries + i, Format::kNonpresent);
}

}  // namespace

void TablePage::make_present() {
  if (!fresh) return;
  std::construct_at(entries, Format::kNonpresent);
  fresh = false;
}

unsigned TablePage::next_used(unsigned index) {
  for (;;) {
    const u64 left = used.load(sync::kRelaxed) & ~(line_of(index) - 1);
    if (left == 0) return kTableEntries;
    const auto line = static_cast<unsigned>(std::countr_zero(left)) * kLine;
    bool empty = true;
    for (unsigned i = line; i < line + kLine; ++i) {
      const bool present = Format::is_present(entries[i].load(sync::kRelaxed));
      if (present && i >= index) return i;
      empty = empty && !present;
    }
    // Nobody else writes it now.
    if (empty) used.store(used.load(sync::kRelaxed) & ~line_of(line), sync::kRelaxed);
    index = line + kLine;
    if (index == kTableEntries) return index;
  }
}

TablePool::~TablePool() {
  ST_CHECK_OP(live(), ==, u64{0});
  Chunk* chunk = chunks_;
  while (chunk != nullptr) {
    Chunk* following = chunk->next;
    unmap_pages(reinterpret_cast<void*>(chunk->base), kChunkBytes);
    destroy(chunk);
    chunk = following;
  }
}

bool TablePool::grow() {
  auto made = make<Chunk>("stage2.table_chunk");
  if (!made) return false;
  Chunk* chunk = *made;
  const auto pages = map_aligned_pages(kChunkBytes, kChunkBytes, "stage2.table_chunk");
  if (!pages) {
    destroy(chunk);
    return false;
  }
  chunk->base = reinterpret_cast<u64>(*pages);
  for (unsigned i = kChunkPages; i-- > kHeaderPages;) {
    TablePage* page = ::new (static_cast<void*>(header(chunk->base, i))) TablePage;
    page->entries = reinterpret_cast<Entry*>(chunk->base + i * kPageSize);
    page->fresh = true;
    page->next_free = free_;
    free_ = page;
  }
  chunk->next = chunks_;
  chunks_ = chunk;
  return true;
}

TablePage* TablePool::allocate() {
  TablePage* page = take();
  if (page != nullptr) page->make_present();
  return page;
}

TablePage* TablePool::take() {
  if (failpoint::should_fail("stage2.table_page")) return nullptr;
  TablePage* page = nullptr;
  {
    const sync::MutexGuard guard(lock_);
    if (free_ == nullptr && !grow()) return nullptr;
    page = free_;
    free_ = page->next_free;
    page->use = TableUse::kCached;
  }
  live_.fetch_add(1, sync::kRelaxed);
  ST_CHECK(!page->possible_nx.linked());  // whoever lists a table it does not own is found here
  if (!page->fresh) clear(page->entries);
  return page;
}

void TablePool::give_back(TablePage* page) {
  ST_CHECK(!page->possible_nx.linked());
  ST_CHECK(page->use == TableUse::kCached || page->use == TableUse::kRemoved);
  page->nx_huge_page_disallowed.store(false, sync::kRelaxed);
  page->used.store(0, sync::kRelaxed);
  page->parent = nullptr;
  live_.fetch_sub(1, sync::kRelaxed);
  const sync::MutexGuard guard(lock_);
  page->use = TableUse::kFree;
  page->next_free = free_;
  free_ = page;
}

Result<void> TableCache::top_up(unsigned enough) {
  if (present_ >= enough) [[likely]]
    return {};
  if (count_ < enough) ST_TRY(fill_up(enough));
  while (present_ < enough) pages_[count_ - ++present_]->make_present();
  return {};
}

// As the kernel's: once one is missing, fill up, so that the next faults need not ask.
Result<void> TableCache::fill_up(unsigned enough) {
  present_ = 0;
  while (count_ < kCapacity) {
    TablePage* page = pool_.take();
    if (page == nullptr) break;
    pages_[count_++] = page;
  }
  if (count_ < enough) return refuse(ENOMEM);
  return {};
}

TablePage* TableCache::take() {
  ST_CHECK_OP(count_, >, 0U);
  TablePage* page = pages_[--count_];
  if (present_ > 0) {
    --present_;
  } else {
    page->make_present();
  }
  return page;
}

void TableCache::drain() {
  present_ = 0;
  while (count_ > 0) pool_.give_back(pages_[--count_]);
}

}  // namespace stagetwo::stage2
