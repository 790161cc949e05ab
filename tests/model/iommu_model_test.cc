// SPDX-License-Identifier: Apache-2.0
// Random maps, copies, unmaps, attachments and replacements on three IOASes and three devices,
// every few of them refused memory, against what a client knows: which page is behind which IOVA
// for each device, and how often each page is pinned.
#include <map>
#include <set>

#include "base/failpoint.h"
#include "tests/model/model_time.h"
#include "tests/support/random_source.h"
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kMemoryPages = 16;
constexpr u64 kWindowPages = 48;  // IOVAs in use, from the aperture's start on
constexpr unsigned kIoases = 3, kDevices = 3;

struct NaiveArea {
  u64 pages;
  u64 first;  // page of the memory
  u64 set;    // areas of one map and its copies share their pins
  u32 rights;
};

struct NaiveIoas {
  u32 id = 0;
  std::map<u64, NaiveArea> areas;  // by page of the window
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

class IommuModel : public IommufdWorld {
 protected:
  void SetUp() override {
    IommufdWorld::SetUp();
    for (NaiveIoas& ioas : ioases_) ioas.id = make_ioas();
  }
  void TearDown() override {
    for (unsigned d = 0; d < kDevices; ++d) detach(d);
    for (NaiveIoas& ioas : ioases_) {
      EXPECT_EQ(unmap_all(ioas.id), 0);
      EXPECT_EQ(destroy(ioas.id), 0);
    }
    IommufdWorld::TearDown();
  }

  static u64 iova_of(u64 page) { return kApertureStart + page * kPageSize; }
  [[nodiscard]] u64 address_of(u64 page) const { return memory_.address() + page * kPageSize; }
  [[nodiscard]] bool has_domain(unsigned i) const {
    for (const int attached : attached_) {
      if (attached == static_cast<int>(i)) return true;
    }
    return false;
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

  void do_map();
  void do_unmap();
  void do_copy();
  void do_attach();
  void detach(unsigned d);
  void check();

  test::RandomSource random_{test::announced_seed("IommuModel")};
  test::GuardedPages memory_{kMemoryPages};
  NaiveIoas ioases_[kIoases];
  int attached_[kDevices] = {-1, -1, -1};
  Attached devices_[kDevices];
  u64 last_set_ = 0;
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

void IommuModel::do_attach() {
  const auto d = static_cast<unsigned>(random_.below(kDevices));
  const auto i = static_cast<unsigned>(random_.below(kIoases));
  if (attached_[d] < 0) {
    const int error = perhaps_refused([&] {
      devices_[d] = attach_device(ioases_[i].id, false, d == 2);
      return devices_[d].error;
    });
    ASSERT_TRUE(error == 0 || error == kRefused) << error;
    if (error == 0) attached_[d] = static_cast<int>(i);
  } else if (random_.one_in(3)) {
    detach(d);
  } else {
    u32 pt = ioases_[i].id;
    const int error = perhaps_refused([&] {
      Locked locked(*context_);
      return error_of(locked.replace(**locked.find<Device>(devices_[d].device), &pt));
    });
    ASSERT_TRUE(error == 0 || error == kRefused) << error;
    if (error != 0) return;
    attached_[d] = static_cast<int>(i);
    devices_[d].hwpt = pt;
  }
}

void IommuModel::detach(unsigned d) {
  if (attached_[d] < 0) return;
  ASSERT_EQ(destroy(devices_[d].test_device), 0);
  attached_[d] = -1;
}

void IommuModel::check() {
  for (unsigned d = 0; d < kDevices; ++d) {
    if (attached_[d] < 0) continue;
    const NaiveIoas& ioas = ioases_[attached_[d]];
    for (u64 page = 0; page < kWindowPages; ++page) {
      u64 start = 0;
      const NaiveArea* const area = ioas.find(page, &start);
      const u64 expected =
          area == nullptr ? kNowhere : frame_address(address_of(area->first + (page - start)));
      ASSERT_EQ(walk(devices_[d].hwpt, iova_of(page)), expected)
          << "device " << d << " page " << page;
    }
  }
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

TEST_F(IommuModel, DevicesSeeWhatTheClientMappedAndPinsAreExact) {
  test::ModelTime time(0.7);
  while (time.another()) {
    switch (random_.below(8)) {
      case 0:
      case 1:
      case 2:
        do_map();
        break;
      case 3:
      case 4:
        do_unmap();
        break;
      case 5:
      case 6:
        do_copy();
        break;
      default:
        do_attach();
        break;
    }
    if (HasFatalFailure()) return;
    check();
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace stagetwo::iommu
