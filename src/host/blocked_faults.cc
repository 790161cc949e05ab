// SPDX-License-Identifier: Apache-2.0
#include "host/blocked_faults.h"

#include <fcntl.h>
#include <link.h>
#include <sys/auxv.h>
#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>

#include "base/directory_names.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/kept_fd.h"
#include "host/process_map.h"
#include "host/userfault.h"
#include "sync/atomic.h"
#include "sync/futex.h"
#include "sync/mutex.h"
#include "sync/passing_number.h"

namespace stagetwo::host {
namespace {

enum class Kind : u8 { kOwn, kLearnt, kAlternate, kData };
struct Stack {
  HvaRange range;
  int thread = 0;
  Kind kind = Kind::kOwn;
  // libc keeps it when its thread has ended, and gives it to the next one, which begins with every
  // signal blocked: it stays one until it is unmapped.
  bool kept = false;
};
constexpr unsigned kMostStacks = 1024;

constinit sync::Atomic<bool> are_signals{false};
constinit sync::Mutex stacks_lock{sync::Rank::kLeaf};
constinit Stack stacks[kMostStacks] TA_GUARDED(stacks_lock);
constinit unsigned known_stacks TA_GUARDED(stacks_lock) = 0;
constinit sync::Atomic<u32> being_made{0};

bool overlap(HvaRange one, HvaRange other) {
  return one.start() < other.end() && other.start() < one.end();
}

void drop_stack(unsigned at) TA_REQ(stacks_lock) {
  stacks[at] = stacks[--known_stacks];
}

// Those that libc keeps from threads that have ended, in `range` or, if that is null, anywhere.
void drop_left(const HvaRange* range) TA_REQ(stacks_lock) {
  for (unsigned i = 0; i < known_stacks;) {
    const Stack& stack = stacks[i];
    const bool meant = stack.kept && (range == nullptr || overlap(stack.range, *range));
    // Not of one that is still ending: its stack would be learnt anew, and what is around it, too.
    if (meant && !sys::thread_alive(stack.thread)) {
      drop_stack(i);
    } else {
      ++i;
    }
  }
}

// Written while waking.
constexpr unsigned kMostLibraryParts = 16;
constinit HvaRange library_data[kMostLibraryParts];
constinit sync::Atomic<u32> library_parts{0};

int note_library(dl_phdr_info* info, size_t, void*) {
  const std::string_view path(info->dlpi_name);
  const std::string_view name = path.substr(path.rfind('/') + 1);
  if (!name.starts_with("libc.so") && !name.starts_with("ld-linux")) return 0;
  for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    const u32 known = library_parts.load(sync::kRelaxed);
    const bool is_data = part.p_type == PT_LOAD && (part.p_flags & PF_W) != 0;
    if (!is_data || known == kMostLibraryParts) continue;
    const u64 start = info->dlpi_addr + part.p_vaddr;
    const Hva first = page_floor(Hva(start));
    const Hva end = page_floor(Hva(start + part.p_memsz - 1)) + kPageSize;
    library_data[known] = HvaRange(first, end - first);
    library_parts.store(known + 1, sync::kRelease);
  }
  return 0;
}

// False: there is no room for it.
bool note(const Stack& fresh) {
  const sync::MutexGuard guard(stacks_lock);
  for (unsigned i = 0; i < known_stacks;) {
    // A number that another thread had before says nothing of the stack that one has left.
    const bool replaced =
        stacks[i].thread == fresh.thread && stacks[i].kind == fresh.kind && !stacks[i].kept;
    if (replaced || (!stacks[i].kept && !sys::thread_alive(stacks[i].thread))) {
      drop_stack(i);
    } else {
      ++i;
    }
  }
  if (fresh.range.empty()) return true;
  if (fresh.kept) drop_left(&fresh.range);
  // Rather one that libc may keep than that nothing may be hidden any more.
  if (known_stacks == kMostStacks) drop_left(nullptr);
  if (known_stacks == kMostStacks) return false;
  stacks[known_stacks++] = fresh;
  return true;
}

bool has_said(int thread) {
  const sync::MutexGuard guard(stacks_lock);
  return std::any_of(stacks, stacks + known_stacks, [&](const Stack& stack) {
    return stack.thread == thread && stack.kind == Kind::kOwn;
  });
}

// What a file of /proc/self/task/TID says; empty: the thread is gone.
std::string_view ask(int thread, const char* file, char (&text)[2048]) {
  FixedString<64> path;
  path.append("/proc/self/task/").append_int(thread).append_char('/').append(file);
  const sync::PassingNumber passing;
  const auto fd = open_proc(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (!fd) return {};
  const auto got = sys::read(*fd, text, sizeof(text));
  static_cast<void>(sys::close(*fd));
  return {text, got ? *got : 0};
}

u64 hex_behind(std::string_view text, std::string_view label) {
  const size_t at = text.find(label);
  if (at == std::string_view::npos) return 0;
  u64 value = 0;
  std::from_chars(text.data() + at + label.size(), text.data() + text.size(), value, 16);
  return value;
}

// A thread of the client's that blocks SIGSEGV cannot be shown a hidden page. The engine's own
// block it and touch none.
bool sees_faults(int thread) {
  char text[2048];
  const std::string_view status = ask(thread, "status", text);
  if (status.empty() || status.starts_with("Name:\tstagetwo")) return true;
  return (hex_behind(status, "SigBlk:\t") & kFaultBit) == 0;
}

thread_local char some_data = 0;

// As far as a stack may reach that has its pointer there: not far up, where it may have grown
// together with other memory.
HvaRange around(Hva pointer) {
  constexpr u64 kDown = 8 << 20;
  constexpr u64 kUp = 256 << 10;
  const auto mapping = mapping_at(page_floor(pointer));
  if (!mapping) return {};
  const Hva start = mapping->range.start();
  const Hva end = mapping->range.end();
  const Hva low = pointer - start > kDown ? page_floor(pointer - kDown) : start;
  const Hva high = end - pointer > kUp ? page_floor(pointer + kUp) : end;
  return HvaRange(low, high - low);
}

// An empty one: the thread has moved on.
bool learn_around(int thread, Hva pointer) {
  return note({around(pointer), thread, Kind::kLearnt});
}

// The stack of a thread that has not said it: the process's first one has it where the kernel left
// some words, others where they stand in a system call, which they have to be in.
bool learn_stack(int thread) {
  if (has_said(thread)) return true;
  if (thread == sys::getpid()) {
    const auto mapping = mapping_at(page_floor(Hva(getauxval(AT_RANDOM))));
    return mapping && note({mapping->range, thread, Kind::kOwn});
  }
  if (thread == sys::current_tid()) {
    return learn_around(thread, Hva(reinterpret_cast<u64>(__builtin_frame_address(0))));
  }
  char text[2048];
  const std::string_view said = ask(thread, "syscall", text);
  if (said.empty()) return true;
  const size_t last = said.rfind(' ');
  const size_t before = last == std::string_view::npos ? last : said.rfind(' ', last - 1);
  if (before == std::string_view::npos) return false;
  return learn_around(thread, Hva(hex_behind(said.substr(before), " 0x")));
}

// Calls `see` for the threads of this process until it answers false. False: it did.
template <typename F>
bool all_threads(F&& see) {
  const sync::PassingNumber passing;
  const auto folder = open_proc("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (!folder) return false;
  DirectoryNames names(*folder);
  bool all = true;
  while (const char* const name = all ? names.next() : nullptr) {
    int thread = 0;
    const auto number = std::from_chars(name, name + std::strlen(name), thread);
    if (number.ec == std::errc()) all = see(thread);
  }
  static_cast<void>(sys::close(*folder));
  return all;
}

}  // namespace

HvaRange data_of_thread() {
  constexpr u64 kRecord = 2368;  // of libc's, above the thread's pointer; rseq is its end
  constexpr u64 kOurs = 128;     // what we have at most, before and behind the one we know
  const u64 pointer = reinterpret_cast<u64>(__builtin_thread_pointer());
  const u64 ours = reinterpret_cast<u64>(&some_data) - kOurs;
  const Hva start = page_floor(Hva(std::min(pointer, ours)));
  return HvaRange(start, page_floor(Hva(pointer + kRecord - 1)) + kPageSize - start);
}

void choose_how_touches_come() {
  are_signals.store(!userfault::open(), sync::kRelaxed);
  note_thread_data();
}
bool touches_are_signals() {
  return are_signals.load(sync::kRelaxed);
}

void note_stack(HvaRange stack, bool kept) {
  static_cast<void>(note({stack, sys::current_tid(), Kind::kOwn, kept}));
}
void forget_stacks(HvaRange range) {
  const sync::MutexGuard guard(stacks_lock);
  drop_left(&range);
}
void note_alternate_stack(HvaRange stack) {
  static_cast<void>(note({stack, sys::current_tid(), Kind::kAlternate}));
}

void note_thread_data() {
  static_cast<void>(note({data_of_thread(), sys::current_tid(), Kind::kData}));
}

void begin_thread() {
  being_made.fetch_add(1);
}
void end_thread() {
  being_made.fetch_sub(1);
}

bool may_hide_pages() {
  if (!touches_are_signals()) return true;  // what userfaultfd does not take is rare, and no stack
  constexpr unsigned kMostLooks = 100;
  for (unsigned look = 0; look < kMostLooks; ++look) {
    const bool settled = being_made.load() == 0 && all_threads([](int thread) {
                           return sees_faults(thread) && learn_stack(thread);
                         });
    if (settled) return true;
    sync::yield_thread();
  }
  return false;
}

bool is_stack(Hva page) {
  const sync::MutexGuard guard(stacks_lock);
  return std::any_of(stacks, stacks + known_stacks, [&](const Stack& stack) {
    return stack.range.contains(page) && (stack.kept || sys::thread_alive(stack.thread));
  });
}

void note_library_data() {
  if (library_parts.load() == 0) static_cast<void>(dl_iterate_phdr(note_library, nullptr));
}
bool is_library_data(Hva page) {
  const u32 parts = library_parts.load(sync::kAcquire);
  return std::any_of(library_data, library_data + parts,
                     [&](const HvaRange& part) { return part.contains(page); });
}

bool is_own_data(Hva page) {
  return data_of_thread().contains(page);
}

HvaRange own_stack_in(HvaRange range) {
  constexpr u64 kFar = 16 << 20;
  const Hva here(reinterpret_cast<u64>(__builtin_frame_address(0)));
  if (range.end() + kFar < here || here + kFar < range.start()) [[likely]]
    return {};
  const HvaRange stack = around(here);
  const Hva start = std::max(stack.start(), range.start());
  const Hva end = std::min(stack.end(), range.end());
  return start < end ? HvaRange(start, end - start) : HvaRange();
}

}  // namespace stagetwo::host
