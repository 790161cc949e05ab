// SPDX-License-Identifier: Apache-2.0
#include "host/access.h"

#include "host/backstop.h"

namespace stagetwo::host {
namespace {

// Above this a string move is faster than words; below it, its start-up cost is not earned back.
constexpr size_t kStringMoveBytes = 256;

template <typename Word>
bool word_from(void* to, u64 from) {
  Word word;
  if (!arch::guarded_load(from, &word)) return false;
  __builtin_memcpy(to, &word, sizeof(Word));
  return true;
}

template <typename Word>
bool word_to(u64 to, const void* from) {
  Word word;
  __builtin_memcpy(&word, from, sizeof(Word));
  return arch::guarded_store(to, word);
}

// Calls step<Word>(offset) for words of falling size that cover `bytes`; returns the bytes covered
// before the first step that failed.
template <typename Step>
size_t in_words(size_t bytes, Step&& step) {
  size_t done = 0;
  for (; bytes - done >= 8; done += 8) {
    if (!step(done, u64{})) return done;
  }
  if ((bytes - done) & 4) {
    if (!step(done, u32{})) return done;
    done += 4;
  }
  if ((bytes - done) & 2) {
    if (!step(done, u16{})) return done;
    done += 2;
  }
  if ((bytes - done) & 1) {
    if (!step(done, u8{})) return done;
    done += 1;
  }
  return done;
}

}  // namespace

size_t copy_from(void* to, Hva from, size_t bytes) {
  if (bytes >= kStringMoveBytes) {
    const size_t left =
        arch::guarded_string_move(reinterpret_cast<std::uintptr_t>(to), from.raw(), bytes);
    return bytes - left;
  }
  return in_words(bytes, [&](size_t offset, auto word) {
    return word_from<decltype(word)>(static_cast<u8*>(to) + offset, from.raw() + offset);
  });
}

size_t copy_to(Hva to, const void* from, size_t bytes) {
  if (bytes >= kStringMoveBytes) {
    const size_t left =
        arch::guarded_string_move(to.raw(), reinterpret_cast<std::uintptr_t>(from), bytes);
    return bytes - left;
  }
  return in_words(bytes, [&](size_t offset, auto word) {
    return word_to<decltype(word)>(to.raw() + offset, static_cast<const u8*>(from) + offset);
  });
}

std::optional<Hva> take_poison() {
  return backstop::take_poison();
}

}  // namespace stagetwo::host
