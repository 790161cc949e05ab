// SPDX-License-Identifier: Apache-2.0
#include "mem/cipher_library.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <bit>
#include <cstring>

#include "base/alloc.h"
#include "base/sys.h"
#include "mem/secure_memory.h"
#include "sync/mutex.h"

namespace stagetwo::mem {
namespace {

constexpr char kName[] = "libstagetwo_crypto.so";

// ---- libcrypto's memory ---------------------------------------------------------------------
//
// Size classes of powers of two over steps of pages that are not dumped. It is inherited by a child
// of fork, whose libcrypto would not work without it. The process's own allocator is not used: it
// may be the client's.

struct Block {
  u64 bytes;  // asked for
  u64 lg2;    // of the class, the head included
};
static_assert(sizeof(Block) == kMinAlign);
struct FreeBlock {
  FreeBlock* next;
};

constexpr u64 kStep = 256 * 1024;
constexpr unsigned kClasses = 40;

struct Heap {
  sync::Mutex lock{sync::Rank::kLeaf};
  u8* at TA_GUARDED(lock) = nullptr;
  u8* end TA_GUARDED(lock) = nullptr;
  FreeBlock* free[kClasses] TA_GUARDED(lock) = {};
};
constinit Heap heap;

u8* carve(u64 bytes) TA_REQ(heap.lock) {
  if (static_cast<u64>(heap.end - heap.at) < bytes) {
    const u64 step = bytes > kStep ? bytes : kStep;
    const auto fresh = map_pages(step, "mem.cipher_heap");
    if (!fresh || !sys::madvise(*fresh, step, MADV_DONTDUMP)) return nullptr;
    heap.at = static_cast<u8*>(*fresh);
    heap.end = heap.at + step;
  }
  u8* const block = heap.at;
  heap.at += bytes;
  return block;
}

void* get(size_t bytes) {
  if (bytes == 0 || bytes > (u64{1} << 30)) return nullptr;
  const u64 lg2 = static_cast<u64>(std::bit_width(bytes + sizeof(Block) - 1));
  const sync::MutexGuard guard(heap.lock);
  void* block = heap.free[lg2];
  if (block != nullptr) {
    heap.free[lg2] = heap.free[lg2]->next;
  } else {
    block = carve(u64{1} << lg2);
  }
  if (block == nullptr) return nullptr;
  return ::new (block) Block{bytes, lg2} + 1;
}

void give_back(void* at) {
  if (at == nullptr) return;
  auto* const block = static_cast<Block*>(at) - 1;
  const u64 lg2 = block->lg2;
  wipe(block, sizeof(Block) + block->bytes);
  const sync::MutexGuard guard(heap.lock);
  heap.free[lg2] = ::new (static_cast<void*>(block)) FreeBlock{heap.free[lg2]};
}

void* resize(void* at, size_t bytes) {
  if (at == nullptr) return get(bytes);
  void* const fresh = get(bytes);
  if (fresh == nullptr) return nullptr;
  const u64 had = (static_cast<Block*>(at) - 1)->bytes;
  std::memcpy(fresh, at, had < bytes ? had : bytes);
  give_back(at);
  return fresh;
}

// ---- the object -----------------------------------------------------------------------------

void* load_from(const char* folder, size_t folder_size, const char* between) {
  char path[512];
  const size_t between_size = std::strlen(between);
  if (folder_size + between_size + sizeof(kName) > sizeof(path)) return nullptr;
  std::memcpy(path, folder, folder_size);
  std::memcpy(path + folder_size, between, between_size);
  std::memcpy(path + folder_size + between_size, kName, sizeof(kName));
  return ::dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

void* load() {
  Dl_info here{};
  char program[512];
  if (::dladdr(&heap, &here) != 0 && here.dli_fname != nullptr) {
    const char* const slash = std::strrchr(here.dli_fname, '/');
    const size_t folder = slash != nullptr ? static_cast<size_t>(slash - here.dli_fname) + 1 : 0;
    if (void* found = load_from(here.dli_fname, folder, "")) return found;
  }
  // Linked into the program itself: its own name may lead nowhere by now.
  const long size = sys::call(SYS_readlinkat, AT_FDCWD, sys::arg("/proc/self/exe"),
                              sys::arg(program), sizeof(program) - 1);
  if (size > 0) {
    program[size] = 0;
    const char* const slash = std::strrchr(program, '/');
    const size_t folder = slash != nullptr ? static_cast<size_t>(slash - program) + 1 : 0;
    if (void* found = load_from(program, folder, "../lib/stagetwo/")) return found;
  }
  return ::dlopen(kName, RTLD_NOW | RTLD_LOCAL);
}

Result<const stagetwo_cipher_calls*> start() {
  void* const object = load();
  if (object == nullptr) return refuse(ENOENT);
  void* const name = ::dlsym(object, "stagetwo_cipher");
  if (name == nullptr) return refuse(ELIBBAD);
  const auto door = reinterpret_cast<const stagetwo_cipher_calls* (*)()>(name);
  const stagetwo_cipher_calls* const calls = door();
  const stagetwo_cipher_memory memory{get, resize, give_back};
  if (calls->version != STAGETWO_CIPHER_VERSION || calls->begin(&memory) != 0) {
    return refuse(ELIBBAD);
  }
  return calls;
}

constinit sync::Mutex start_lock{sync::Rank::kMemObject};
constinit const stagetwo_cipher_calls* started TA_GUARDED(start_lock) = nullptr;
constinit int refused TA_GUARDED(start_lock) = 0;

}  // namespace

Result<const stagetwo_cipher_calls*> cipher_library() {
  const sync::MutexGuard guard(start_lock);
  if (started != nullptr) return started;
  if (refused != 0) return refuse(refused);
  const auto calls = start();
  if (!calls) {
    refused = to_int(calls.error());
    return refuse(refused);
  }
  return started = *calls;
}

}  // namespace stagetwo::mem
