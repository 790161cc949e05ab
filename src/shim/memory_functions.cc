// SPDX-License-Identifier: Apache-2.0
// Our own memcpy and friends. A program may export byte-wise ones (the kernel's selftests do), and
// they would come first in symbol lookup; ours are bound inside this library and exported to
// nobody. `rep movsb` and `rep stosb` are the processor's fast copies (ERMS); short sizes go word
// by word.
//
// Compiled with -fno-builtin and without loop idiom recognition: a loop here must not become a call
// of the function it stands in.

#include <cstddef>
#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns")
#endif

namespace {

using std::size_t;
using Word = std::uint64_t;
constexpr size_t kShort = 32;

struct [[gnu::packed, gnu::may_alias]] Loose {
  Word value;
};
Word load(const unsigned char* from) {
  return reinterpret_cast<const Loose*>(from)->value;
}
void store(unsigned char* to, Word value) {
  reinterpret_cast<Loose*>(to)->value = value;
}

// 8 to 32 bytes: two or four words that may overlap, all read before any is written.
void copy_short(unsigned char* to, const unsigned char* from, size_t size) {
  if (size >= 16) {
    const Word a = load(from), b = load(from + 8);
    const Word c = load(from + size - 16), d = load(from + size - 8);
    store(to, a);
    store(to + 8, b);
    store(to + size - 16, c);
    store(to + size - 8, d);
    return;
  }
  const Word a = load(from), b = load(from + size - 8);
  store(to, a);
  store(to + size - 8, b);
}

}  // namespace

extern "C" {

void* memcpy(void* to, const void* from, size_t size) {
  auto* out = static_cast<unsigned char*>(to);
  const auto* in = static_cast<const unsigned char*>(from);
  if (size >= 8 && size <= kShort) {
    copy_short(out, in, size);
    return to;
  }
  if (size < 8) {
    for (size_t i = 0; i < size; ++i) out[i] = in[i];
    return to;
  }
  __asm__ volatile("rep movsb" : "+D"(out), "+S"(in), "+c"(size) : : "memory");
  return to;
}

void* memmove(void* to, const void* from, size_t size) {
  auto* out = static_cast<unsigned char*>(to);
  const auto* in = static_cast<const unsigned char*>(from);
  if (out <= in || out >= in + size) return memcpy(to, from, size);
  if (size >= 8 && size <= kShort) {
    copy_short(out, in, size);
    return to;
  }
  while (size >= 8) {
    size -= 8;
    store(out + size, load(in + size));
  }
  while (size > 0) {
    --size;
    out[size] = in[size];
  }
  return to;
}

void* memset(void* to, int byte, size_t size) {
  auto* out = static_cast<unsigned char*>(to);
  const auto value = static_cast<unsigned char>(byte);
  if (size >= 8 && size <= kShort) {
    const Word pattern = Word{value} * 0x0101010101010101u;
    for (size_t i = 0; i + 8 <= size; i += 8) store(out + i, pattern);
    store(out + size - 8, pattern);
    return to;
  }
  if (size < 8) {
    for (size_t i = 0; i < size; ++i) out[i] = value;
    return to;
  }
  __asm__ volatile("rep stosb" : "+D"(out), "+c"(size) : "a"(value) : "memory");
  return to;
}

int memcmp(const void* left, const void* right, size_t size) {
  const auto* a = static_cast<const unsigned char*>(left);
  const auto* b = static_cast<const unsigned char*>(right);
  size_t i = 0;
  while (i + 8 <= size && load(a + i) == load(b + i)) i += 8;
  for (; i < size; ++i) {
    if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
  }
  return 0;
}

int bcmp(const void* left, const void* right, size_t size) {
  return memcmp(left, right, size);
}

void* memchr(const void* in, int byte, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(in);
  for (size_t i = 0; i < size; ++i) {
    if (bytes[i] == static_cast<unsigned char>(byte)) return const_cast<unsigned char*>(bytes + i);
  }
  return nullptr;
}

size_t strlen(const char* text) {
  size_t size = 0;
  while (text[size] != '\0') ++size;
  return size;
}

size_t strnlen(const char* text, size_t limit) {
  size_t size = 0;
  while (size < limit && text[size] != '\0') ++size;
  return size;
}

int strcmp(const char* left, const char* right) {
  while (*left != '\0' && *left == *right) {
    ++left;
    ++right;
  }
  return static_cast<unsigned char>(*left) - static_cast<unsigned char>(*right);
}

// Two declarations in <cstring>, one symbol.
#if !defined(ST_NAME_OF_FIND_CHAR)
#define ST_NAME_OF_FIND_CHAR "strchr"
#endif
char* find_char(const char* text, int wanted) __asm__(ST_NAME_OF_FIND_CHAR);
char* find_char(const char* text, int wanted) {
  for (;; ++text) {
    if (*text == static_cast<char>(wanted)) return const_cast<char*>(text);
    if (*text == '\0') return nullptr;
  }
}

char* strncpy(char* to, const char* from, size_t size) {
  size_t i = 0;
  for (; i < size && from[i] != '\0'; ++i) to[i] = from[i];
  for (; i < size; ++i) to[i] = '\0';
  return to;
}

}  // extern "C"
