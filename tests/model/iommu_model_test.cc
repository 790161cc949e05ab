// SPDX-License-Identifier: Apache-2.0
// Random maps, copies, unmaps, attachments, replacements, writes of devices and readings of what
// they wrote, on three IOASes, three devices and four PASIDs of each, every few of them refused
// memory, against what a client knows: which page is behind which IOVA for each PASID, which pages
// a table's devices have written, and how often each page is pinned.
#include <map>
#include <set>

#include "base/failpoint.h"
#include "tests/model/model_time.h"
#include "tests/support/random_source.h"
#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kMemoryPages = 16;
constexpr u64 kWindowPages = 48;  // IOVAs in use, from the aperture's start on
constexpr unsigned kIoases = 3, kDevices = 3, kPasids = 4;  // PASID 0: a device's own requests
// One of each: a test device, one with the IOMMU's own tables, one with a processor's.
enum Kind { kMock, kSecond, kFirst };

struct NaiveArea {
  u64 pages;
  u64 first;  // page of the memory
  u64 set;    // areas of one map and its copies share their pins
  u32 rights;
};

struct NaiveIoas {
  u32 id = 0;
  std::map<u64, NaiveArea> areas;   // by page of the window
  u32 tables[kDevices] = {};        // for the PASIDs of each device; 0: none
  std::set<u64> written[kDevices];  // pages of the window, by devices of that table
  [[nodiscard]] bool overlaps(u64 start, u64 pages) const {
    for (const auto& [at, area] : areas) {
      if (at < start + pages && start < at + area.pages) return true;
    }
    return false;
  }
  // The area and its start at a page of the window, or nothing.
  [[nodiscard]] const NaiveArea* find(u64 page, u64* start) const {
    for (const auto& [at, area] : areas) {
      if (page >= at && page < at + area.pages) {
        *start = at;
        return &area;
      }
    }
    return nullptr;
  }
};

// What a PASID is attached to.
struct NaivePasid {
  int ioas = -1;
  bool automatic = false;  // by the IOAS, not by a table
};

class IommuModel : public DeviceWorld {
 protected:
  void SetUp() override {
    DeviceWorld::SetUp();
    for (NaiveIoas& ioas : ioases_) ioas.id = make_ioas();
    devices_[kSecond] = make_vtd(1);
    devices_[kFirst] = make_vtd(2);
    Locked locked(*context_);
    devices_[kMock] = (*locked.make_device(false, false, kPasidBits))->object.id;
  }
  void TearDown() override {
    for (const u32 device : devices_) {
      Locked locked(*context_);
      locked.detach_all(**locked.find<Device>(device));
    }
    for (NaiveIoas& ioas : ioases_) {
      EXPECT_EQ(unmap_all(ioas.id), 0);
      for (const u32 table : ioas.tables) {
        EXPECT_EQ(table == 0 ? 0 : destroy(table), 0);
      }
      EXPECT_EQ(destroy(ioas.id), 0);
    }
    for (const u32 device : devices_) EXPECT_EQ(destroy(device), 0);
    DeviceWorld::TearDown();
  }

  static u64 iova_of(u64 page) { return kApertureStart + page * kPageSize; }
  [[nodiscard]] u64 address_of(u64 page) const { return memory_.address() + page * kPageSize; }
  [[nodiscard]] bool has_domain(unsigned i) const {
    for (const u32 table : ioases_[i].tables) {
      if (table != 0) return true;
    }
    for (const auto& device : attached_) {
      if (device[0].automatic && device[0].ioas == static_cast<int>(i)) return true;
    }
    return false;
  }
  [[nodiscard]] bool is_used(unsigned i, unsigned d) const {
    for (const NaivePasid& one : attached_[d]) {
      if (one.ioas == static_cast<int>(i) && !one.automatic) return true;
    }
    return false;
  }
  [[nodiscard]] bool has_pasids(unsigned d) const {
    for (unsigned p = 1; p < kPasids; ++p) {
      if (attached_[d][p].ioas >= 0) return true;
    }
    return false;
  }
  static s64 request_of(unsigned p) { return p == 0 ? kNoPasid : s64{p}; }
  // What is behind a page of the window for a PASID, or nothing.
  const NaiveArea* reached(unsigned d, unsigned p, u64 page, u64* into) const {
    if (attached_[d][p].ioas < 0) return nullptr;
    u64 start = 0;
    const NaiveArea* const area = ioases_[attached_[d][p].ioas].find(page, &start);
    if (area != nullptr) *into = area->first + (page - start);
    return area;
  }
  NaiveIoas& any_ioas() { return ioases_[random_.below(kIoases)]; }

  // Runs one operation of which any allocation may be refused.
  template <typename F>
  int perhaps_refused(F&& operation) {
    const bool refuse_some = random_.one_in(6);
    if (refuse_some) failpoint::arm(nullptr, 1 + random_.below(12));
    const int error = operation();
    const bool fired = refuse_some && failpoint::failed() != 0;
    failpoint::disarm();
    if (fired && error == ENOMEM) return kRefused;
    return error;
  }
  static constexpr int kRefused = -1;

  void step();
  void do_map();
  void do_map_one_by_one();
  void do_unmap();
  void do_copy();
  void do_table();
  void do_attach();
  void do_replace();
  void do_write();
  void do_read_written();
  void check_pasid(unsigned d, unsigned p);
  void check_pins();

  test::RandomSource random_{test::announced_seed("IommuModel")};
  test::GuardedPages memory_{kMemoryPages};
  NaiveIoas ioases_[kIoases];
  NaivePasid attached_[kDevices][kPasids];
  u32 devices_[kDevices] = {};
  u64 last_set_ = 0;
  u64 rows_met_ = 0;  // IOASes with pages that have no area of their own (src/iommu/page_rows.cc)
};

void IommuModel::do_map() {
  NaiveIoas& ioas = any_ioas();
  const u64 pages = 1 + random_.below(4);
  const u64 first = random_.below(kMemoryPages - pages + 1);
  const u64 at = random_.below(kWindowPages - pages + 1);
  const u32 rights = random_.one_in(3) ? u32{kMayRead} : kReadWrite;
  u64 iova = iova_of(at);
  const int error = perhaps_refused(
      [&] { return map(ioas.id, address_of(first), pages * kPageSize, &iova, true, rights); });
  if (error == kRefused) return;
  ASSERT_EQ(error, ioas.overlaps(at, pages) ? EEXIST : 0);
  if (error == 0) ioas.areas[at] = {pages, first, ++last_set_, rights};
}

// Pages that follow each other here as there, by a call each.
void IommuModel::do_map_one_by_one() {
  NaiveIoas& ioas = any_ioas();
  const u64 pages = 2 + random_.below(7);
  const u64 first = random_.below(kMemoryPages - pages + 1);
  const u64 at = random_.below(kWindowPages - pages + 1);
  for (u64 i = 0; i < pages; ++i) {
    u64 iova = iova_of(at + i);
    const int error = perhaps_refused(
        [&] { return map(ioas.id, address_of(first + i), kPageSize, &iova, true, kReadWrite); });
    if (error == kRefused) continue;
    ASSERT_EQ(error, ioas.overlaps(at + i, 1) ? EEXIST : 0);
    if (error == 0) ioas.areas[at + i] = {1, first + i, ++last_set_, kReadWrite};
  }
  Locked locked(*context_);
  rows_met_ += !(*locked.find<Ioas>(ioas.id))->rows.tree.empty();
}

// Whole areas go one by one from the lowest; one that would be cut ends it.
void IommuModel::do_unmap() {
  NaiveIoas& ioas = any_ioas();
  const u64 pages = 1 + random_.below(12);
  const u64 at = random_.below(kWindowPages - pages + 1);
  u64 expected = 0;
  int error = 0;
  for (auto it = ioas.areas.begin(); it != ioas.areas.end();) {
    const u64 end = it->first + it->second.pages;
    if (end <= at || it->first >= at + pages) {
      ++it;
      continue;
    }
    if (it->first < at || end > at + pages) {
      error = ENOENT;
      break;
    }
    expected += it->second.pages;
    for (auto& written : ioas.written) {
      written.erase(written.lower_bound(it->first), written.lower_bound(end));
    }
    it = ioas.areas.erase(it);
  }
  u64 bytes = 0;
  // An unmap takes no memory.
  failpoint::arm(nullptr, 1, failpoint::kForever);
  const int answer = unmap(ioas.id, iova_of(at), pages * kPageSize, &bytes);
  failpoint::disarm();
  ASSERT_EQ(answer, error);
  ASSERT_EQ(bytes, expected * kPageSize);
}

void IommuModel::do_copy() {
  NaiveIoas &from = any_ioas(), &to = any_ioas();
  const u64 pages = 1 + random_.below(5);
  const u64 source = random_.below(kWindowPages - pages + 1);
  const u64 target = random_.below(kWindowPages - pages + 1);
  std::map<u64, NaiveArea> fresh;
  bool whole = true;
  for (u64 done = 0; done < pages && whole;) {
    u64 start = 0;
    const NaiveArea* const area = from.find(source + done, &start);
    whole = area != nullptr;
    if (!whole) break;
    const u64 into = source + done - start;
    const u64 some = std::min(area->pages - into, pages - done);
    fresh[target + done] = {some, area->first + into, area->set, kMayRead};
    done += some;
  }
  const int error = perhaps_refused([&] {
    Locked locked(*context_);
    Locked::MapRequest request{true, iova_of(target), pages * kPageSize, kMayRead};
    return error_of(locked.copy(**locked.find<Ioas>(from.id), iova_of(source), to.id, &request));
  });
  if (error == kRefused) return;
  ASSERT_EQ(error, !whole ? ENOENT : to.overlaps(target, pages) ? EEXIST : 0);
  if (error == 0) to.areas.merge(fresh);
}

// Makes or destroys a table for PASIDs.
void IommuModel::do_table() {
  const auto i = random_.small(kIoases), d = random_.small(kDevices);
  NaiveIoas& ioas = ioases_[i];
  u32& table = ioas.tables[d];
  if (table != 0) {
    const bool used = is_used(i, d);
    ASSERT_EQ(destroy(table), used ? EBUSY : 0);
    if (used) return;
    table = 0;
    ioas.written[d].clear();
    return;
  }
  const int error = perhaps_refused([&] {
    Locked locked(*context_);
    const auto made =
        locked.make_hwpt(**locked.find<Ioas>(ioas.id), **locked.find<Device>(devices_[d]),
                         {.dirty = d != kFirst, .pasid = true, .first_level = d == kFirst});
    if (made) table = (*made)->object.id;
    if (made && d != kFirst) (*made)->domain.tracking = true;
    return error_of(made);
  });
  ASSERT_TRUE(error == 0 || error == kRefused) << error;
}

// Attaches a PASID to a table, or a device to an IOAS, or detaches.
void IommuModel::do_attach() {
  const auto i = random_.small(kIoases), d = random_.small(kDevices), p = random_.small(kPasids);
  NaivePasid& now = attached_[d][p];
  if (now.ioas >= 0 && random_.one_in(3)) {
    detach(devices_[d], p);
    now = {};
    return;
  }
  const bool automatic = p == 0 && random_.one_in(3);
  const u32 table = automatic ? ioases_[i].id : ioases_[i].tables[d];
  if (table == 0) return;
  int expected = 0;
  if (now.ioas >= 0) {
    const bool same = now.ioas == static_cast<int>(i) && now.automatic == automatic;
    expected = p != 0 || same ? EBUSY : EINVAL;
  } else if (p == 0 ? automatic && has_pasids(d) : attached_[d][0].automatic) {
    expected = EINVAL;
  }
  if (automatic && now.ioas >= 0) return;  // whichever table it tries first says
  const int error = perhaps_refused([&] { return attach(devices_[d], table, p); });
  if (error == kRefused) return;
  ASSERT_EQ(error, expected) << "device " << d << " PASID " << p;
  if (error == 0) now = {static_cast<int>(i), automatic};
}

void IommuModel::do_replace() {
  const auto i = random_.small(kIoases), d = random_.small(kDevices), p = random_.small(kPasids);
  NaivePasid& now = attached_[d][p];
  const bool automatic = p == 0 && random_.one_in(3);
  const u32 table = automatic ? ioases_[i].id : ioases_[i].tables[d];
  if (table == 0) return;
  const bool refused = now.ioas < 0 || (automatic && has_pasids(d));
  const bool same = now.ioas == static_cast<int>(i) && now.automatic && automatic;
  const int error = perhaps_refused([&] { return replace(devices_[d], table, p); });
  if (error == kRefused) return;
  ASSERT_EQ(error, refused && !same ? EINVAL : 0) << "device " << d << " PASID " << p;
  if (error == 0) now = {static_cast<int>(i), automatic};
}

void IommuModel::do_write() {
  const auto d = random_.small(kDevices), p = random_.small(kPasids);
  const u64 page = random_.below(kWindowPages);
  u64 into = 0;
  const NaiveArea* const area = reached(d, p, page, &into);
  const u8 value = random_.byte();
  const bool expected = area != nullptr && (area->rights & kMayWrite) != 0;
  ASSERT_EQ(write(devices_[d], request_of(p), iova_of(page), &value, 1).done, expected ? 1u : 0u)
      << "device " << d << " PASID " << p << " page " << page;
  if (!expected) return;
  ASSERT_EQ(*memory_.bytes_at(into * kPageSize), value);
  const NaivePasid& now = attached_[d][p];
  if (!now.automatic && d != kFirst) ioases_[now.ioas].written[d].insert(page);
}

// What a table's devices have written in one area, marked clean.
void IommuModel::do_read_written() {
  const auto d = random_.small(kDevices);
  NaiveIoas& ioas = any_ioas();
  if (ioas.tables[d] == 0 || d == kFirst || ioas.areas.empty()) return;
  auto it = ioas.areas.begin();
  std::advance(it, static_cast<s64>(random_.below(ioas.areas.size())));
  const auto& [at, area] = *it;
  std::set<u64> found;
  {
    Locked locked(*context_);
    ASSERT_TRUE(locked.read_dirty(
        **locked.find<Hwpt>(ioas.tables[d]), iova_of(at), iova_of(at + area.pages) - 1, true,
        [](void* out, u64 first, u64) {
          static_cast<std::set<u64>*>(out)->insert((first - kApertureStart) / kPageSize);
        },
        &found));
  }
  std::set<u64>& written = ioas.written[d];
  const auto first = written.lower_bound(at), end = written.lower_bound(at + area.pages);
  ASSERT_EQ(found, std::set<u64>(first, end));
  written.erase(first, end);
}

void IommuModel::check_pasid(unsigned d, unsigned p) {
  Locked locked(*context_);
  Device& device = **locked.find<Device>(devices_[d]);
  for (u64 page = 0; page < kWindowPages; ++page) {
    u64 into = 0;
    const NaiveArea* const area = reached(d, p, page, &into);
    const Walked found = locked.look_up(device, request_of(p), iova_of(page), kMayRead);
    ASSERT_EQ(found.reason == FaultReason::kNone, area != nullptr)
        << "device " << d << " PASID " << p << " page " << page;
    if (area == nullptr) continue;
    ASSERT_EQ(found.address, *locked.frame_at(Hva(address_of(into))) * kPageSize)
        << "device " << d << " PASID " << p << " page " << page;
  }
}

void IommuModel::check_pins() {
  std::set<std::pair<u64, u64>> pinned;  // of a set, a page of the memory
  for (unsigned i = 0; i < kIoases; ++i) {
    if (!has_domain(i)) continue;
    for (const auto& [at, area] : ioases_[i].areas) {
      for (u64 p = 0; p < area.pages; ++p) pinned.emplace(area.set, area.first + p);
    }
  }
  u32 counts[kMemoryPages] = {};
  for (const auto& [set, page] : pinned) ++counts[page];
  for (u64 page = 0; page < kMemoryPages; ++page) {
    ASSERT_EQ(pins_at(address_of(page)), counts[page]) << "page " << page;
  }
}

void IommuModel::step() {
  switch (random_.below(17)) {
    case 0:
    case 1:
    case 2:
      return do_map();
    case 3:
    case 4:
      return do_unmap();
    case 5:
    case 6:
      return do_copy();
    case 7:
      return do_table();
    case 8:
    case 9:
      return do_attach();
    case 10:
      return do_replace();
    case 11:
      return do_read_written();
    case 12:
    case 13:
      return do_map_one_by_one();
    default:
      return do_write();
  }
}

// Every PASID and pin after each few steps, one PASID after each.
TEST_F(IommuModel, PasidsSeeWhatTheClientMappedAndPinsAreExact) {
  test::ModelTime time(0.7);
  while (time.another()) {
    step();
    if (HasFatalFailure()) return;
    const bool all = time.steps() % 16 == 0;
    const unsigned one = random_.small(kDevices * kPasids);
    for (unsigned at = 0; at < kDevices * kPasids; ++at) {
      if (all || at == one) check_pasid(at / kPasids, at % kPasids);
      if (HasFatalFailure()) return;
    }
    if (all) check_pins();
    if (HasFatalFailure()) return;
  }
  EXPECT_TRUE(time.steps() < 10'000 || rows_met_ != 0);  // about one of a hundred
}

}  // namespace
}  // namespace stagetwo::iommu
