// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/stats.h"

#include <sys/mman.h>

#include <array>
#include <cstring>

#include "abi/kvm/uapi.h"
#include "abi/kvm/vm.h"
#include "base/bits.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u32 kNameSize = 48;
constexpr u32 kDescriptorSize = sizeof(kvm_stats_desc) + kNameSize;
constexpr u32 kDescriptorsAt = sizeof(kvm_stats_header) + kNameSize;

constexpr u32 kCounter = KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10;
constexpr u32 kInstant = KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10;
constexpr u32 kBytes = KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_BYTES | KVM_STATS_BASE_POW2;
constexpr u32 kPeak = KVM_STATS_TYPE_PEAK | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10;
constexpr u32 kNanoseconds =
    KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10;
constexpr u32 kLogHistogram =
    KVM_STATS_TYPE_LOG_HIST | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10;
constexpr u32 kBoolean = KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_BOOLEAN | KVM_STATS_BASE_POW10;

constexpr std::array kFirstVmRows = {
    StatDescriptor{"remote_tlb_flush", kCounter, 0, 1, 0},
    StatDescriptor{"remote_tlb_flush_requests", kCounter, 0, 1, 1},
    StatDescriptor{"mmu_shadow_zapped", kCounter, 0, 1, 2},
    StatDescriptor{"mmu_pte_write", kCounter, 0, 1, 3},
    StatDescriptor{"mmu_pde_zapped", kCounter, 0, 1, 4},
    StatDescriptor{"mmu_flooded", kCounter, 0, 1, 5},
    StatDescriptor{"mmu_recycled", kCounter, 0, 1, 6},
    StatDescriptor{"mmu_cache_miss", kCounter, 0, 1, 7},
    StatDescriptor{"mmu_unsync", kInstant, 0, 1, 8},
    StatDescriptor{"pages_4k", kInstant, 0, 1, 9},
    StatDescriptor{"pages_2m", kInstant, 0, 1, 10},
    StatDescriptor{"pages_1g", kInstant, 0, 1, 11},
    StatDescriptor{"nx_lpage_splits", kInstant, 0, 1, 12},
    StatDescriptor{"max_mmu_rmap_size", kPeak, 0, 1, 13},
    StatDescriptor{"max_mmu_page_hash_collisions", kPeak, 0, 1, 14},
    StatDescriptor{"guest_resident_bytes", kBytes, 0, 1, 15},
    StatDescriptor{"guest_limit_bytes", kBytes, 0, 1, 16},
};

// The names of what reclaim counts, in the order of its table, and of the ages behind.
struct ReclaimName {
  char text[kNameSize] = {};
  constexpr void append(const char* more) {
    size_t end = 0;
    while (text[end] != 0) ++end;
    while (*more != 0) text[end++] = *more++;
  }
};
constexpr size_t kFigureCount = std::size(reclaim::kFigures);
constexpr auto kReclaimNames = [] {
  std::array<ReclaimName, kFigureCount + reclaim::kAgeBuckets> names{};
  for (ReclaimName& name : names) name.append("reclaim_");
  for (size_t i = 0; i < kFigureCount; ++i) {
    names[i].append(reclaim::kFigures[i].name);
    if (reclaim::kFigures[i].counts == reclaim::Counts::kBytes) names[i].append("_bytes");
  }
  constexpr const char* kAges[] = {"pages_age_0", "pages_age_1", "pages_age_2_to_7", "pages_older"};
  static_assert(std::size(kAges) == reclaim::kAgeBuckets);
  for (size_t i = 0; i < reclaim::kAgeBuckets; ++i) names[kFigureCount + i].append(kAges[i]);
  return names;
}();

constexpr auto kVmTable = [] {
  std::array<StatDescriptor, static_cast<size_t>(VmStat::kCount)> table{};
  u32 n = 0;
  for (const StatDescriptor& row : kFirstVmRows) table[n++] = row;
  for (size_t i = 0; i < kReclaimNames.size(); ++i, ++n) {
    using reclaim::Counts;
    const Counts counts = i < kFigureCount ? reclaim::kFigures[i].counts : Counts::kNow;
    const u32 flags = counts == Counts::kBytes ? kBytes
                      : counts == Counts::kNow ? kInstant
                                               : kCounter;
    table[n] = {kReclaimNames[i].text, flags, 0, 1, n};
  }
  return table;
}();
static_assert(kFirstVmRows.size() == static_cast<size_t>(VmStat::kReclaim),
              "the enumeration and the table tell the same order");

constexpr const char* kPlainVcpuCounters[] = {"pf_taken",
                                              "pf_fixed",
                                              "pf_emulate",
                                              "pf_spurious",
                                              "pf_fast",
                                              "pf_mmio_spte_created",
                                              "pf_guest",
                                              "tlb_flush",
                                              "invlpg",
                                              "exits",
                                              "io_exits",
                                              "mmio_exits",
                                              "signal_exits",
                                              "irq_window_exits",
                                              "nmi_window_exits",
                                              "l1d_flush",
                                              "halt_exits",
                                              "request_irq_exits",
                                              "irq_exits",
                                              "host_state_reload",
                                              "fpu_reload",
                                              "insn_emulation",
                                              "insn_emulation_fail",
                                              "hypercalls",
                                              "irq_injections",
                                              "nmi_injections",
                                              "req_event",
                                              "nested_run",
                                              "directed_yield_attempted",
                                              "directed_yield_successful",
                                              "preemption_reported",
                                              "preemption_other"};

constexpr auto kVcpuTable = [] {
  std::array<StatDescriptor, 45> table{};
  size_t n = 0;
  u32 offset = 0;
  auto add = [&](const char* name, u32 flags, s16 exponent, u16 size) {
    table[n++] = {name, flags, exponent, size, offset};
    offset += size;
  };
  add("halt_successful_poll", kCounter, 0, 1);
  add("halt_attempted_poll", kCounter, 0, 1);
  add("halt_poll_invalid", kCounter, 0, 1);
  add("halt_wakeup", kCounter, 0, 1);
  add("halt_poll_success_ns", kNanoseconds, -9, 1);
  add("halt_poll_fail_ns", kNanoseconds, -9, 1);
  add("halt_wait_ns", kNanoseconds, -9, 1);
  add("halt_poll_success_hist", kLogHistogram, -9, 32);
  add("halt_poll_fail_hist", kLogHistogram, -9, 32);
  add("halt_wait_hist", kLogHistogram, -9, 32);
  add("blocking", kBoolean, 0, 1);
  for (const char* name : kPlainVcpuCounters) add(name, kCounter, 0, 1);
  add("guest_mode", kBoolean, 0, 1);
  add("notify_window_exits", kCounter, 0, 1);
  return table;
}();
static_assert(kVcpuTable.back().offset + 1 == static_cast<u32>(VcpuStat::kCount),
              "the enumeration and the table tell the same order");

struct FileLayout {
  u64 data_at;
  u64 size;
  [[nodiscard]] u64 mapped() const { return align_up(size, u64{4096}); }
};

FileLayout layout_of(std::span<const StatDescriptor> table) {
  const u64 data_at = kDescriptorsAt + table.size() * kDescriptorSize;
  const StatDescriptor& last = table.back();
  return {data_at, data_at + (last.offset + u64{last.size}) * sizeof(u64)};
}

void write_front(char* file, std::span<const StatDescriptor> table, const char* id) {
  kvm_stats_header header{};
  header.name_size = kNameSize;
  header.num_desc = static_cast<u32>(table.size());
  header.id_offset = sizeof(header);
  header.desc_offset = kDescriptorsAt;
  header.data_offset = static_cast<u32>(layout_of(table).data_at);
  std::memcpy(file, &header, sizeof(header));
  std::memcpy(file + header.id_offset, id, strnlen(id, kNameSize - 1));
  char* at = file + kDescriptorsAt;
  for (const StatDescriptor& row : table) {
    kvm_stats_desc descriptor{};
    descriptor.flags = row.flags;
    descriptor.exponent = row.exponent;
    descriptor.size = row.size;
    descriptor.offset = row.offset * static_cast<u32>(sizeof(u64));
    std::memcpy(at, &descriptor, sizeof(descriptor));
    std::memcpy(at + sizeof(descriptor), row.name, strnlen(row.name, kNameSize - 1));
    at += kDescriptorSize;
  }
}

// What stands behind a stats descriptor.
class StatsFile final : public host::Description {
 public:
  StatsFile(Vm& vm, StatsBlock& block, void* mapped, FileLayout layout)
      : vm_(&vm), block_(&block), mapped_(mapped), layout_(layout) {
    vm_->get();
  }
  ~StatsFile() override {
    detach();
    host::Backing::unmap(mapped_, layout_.mapped());
  }
  long ioctl(int, unsigned long, unsigned long) override { return -ENOTTY; }
  [[nodiscard]] bool native_read() const override { return true; }
  void refresh() override {
    if (vm_ != nullptr) block_->refresh();
  }
  void last_close() override { detach(); }

  [[nodiscard]] sync::Atomic<u64>* data() const {
    return reinterpret_cast<sync::Atomic<u64>*>(static_cast<char*>(mapped_) + layout_.data_at);
  }

 private:
  void detach() {
    if (vm_ == nullptr) return;
    block_->forget(data());
    vm_->put();
    vm_ = nullptr;
  }

  Vm* vm_;
  StatsBlock* block_;
  void* mapped_;
  FileLayout layout_;
};

}  // namespace

std::span<const StatDescriptor> vm_stat_descriptors() {
  return kVmTable;
}
std::span<const StatDescriptor> vcpu_stat_descriptors() {
  return kVcpuTable;
}

StatsBlock::StatsBlock(std::span<const StatDescriptor> table, std::span<sync::Atomic<u64>> values)
    : table_(table), values_(values), lock_(sync::Rank::kStats) {}

StatsBlock::~StatsBlock() = default;

Result<int> StatsBlock::open(Vm& vm, const char* id) {
  const FileLayout layout = layout_of(table_);
  host::Backing backing = ST_TRY(host::Backing::create("kvm-stats", layout.size));
  void* mapped = ST_TRY(backing.map(0, layout.mapped(), PROT_READ | PROT_WRITE));
  write_front(static_cast<char*>(mapped), table_, id);
  auto file = make_box<StatsFile>("abi.stats_file", vm, *this, mapped, layout);
  if (!file) {
    host::Backing::unmap(mapped, layout.mapped());
    return refuse(file.error());
  }
  {
    sync::MutexGuard guard(lock_);
    ST_TRY(files_.push_back((*file)->data()));
    open_.fetch_add(1);
  }
  refresh();
  return host::publish(std::move(*file), std::move(backing), {.open_flags = O_RDONLY | O_CLOEXEC});
}

void StatsBlock::refresh() {
  if (compute_ != nullptr) compute_(context_);
  publish();
}

void StatsBlock::publish() {
  if (open_.load(sync::kRelaxed) == 0) return;
  sync::MutexGuard guard(lock_);
  for (sync::Atomic<u64>* data : files_) {
    for (size_t i = 0; i < values_.size(); ++i)
      data[i].store(values_[i].load(sync::kRelaxed), sync::kRelaxed);
  }
}

void StatsBlock::forget(sync::Atomic<u64>* data) {
  sync::MutexGuard guard(lock_);
  for (size_t i = 0; i < files_.size(); ++i) {
    if (files_[i] != data) continue;
    files_.swap_erase(i);
    open_.fetch_sub(1);
    return;
  }
}

}  // namespace stagetwo::abi_kvm
