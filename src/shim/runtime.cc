// SPDX-License-Identifier: Apache-2.0
// The C++ run time as far as the engine needs one. The static library's own versions would allocate
// from the client's malloc at load (the emergency pool for exceptions) or take in the unwinder.

#include <cstddef>
#include <new>

#include "base/alloc.h"
#include "base/check.h"

// Engine memory goes through base/alloc.h by name; an operator new in our code is an error that a
// test build would not show, so here it ends the process.
void* operator new(std::size_t) {
  stagetwo::detail::check_failed(__FILE__, __LINE__, "the engine uses operator new");
}
void* operator new[](std::size_t size) {
  return operator new(size);
}
// Deleting destructors name these and nobody calls them: a Box destroys in place.
void operator delete(void*) noexcept {
  stagetwo::detail::check_failed(__FILE__, __LINE__, "the engine uses operator delete");
}
void operator delete(void* block, std::size_t) noexcept {
  operator delete(block);
}
void operator delete(void* block, std::align_val_t) noexcept {
  operator delete(block);
}
void operator delete(void* block, std::size_t, std::align_val_t) noexcept {
  operator delete(block);
}
void operator delete[](void* block) noexcept {
  operator delete(block);
}
void operator delete[](void* block, std::size_t) noexcept {
  operator delete(block);
}

// What std headers call where they would throw. libstdc++ keeps all of them in one object, with
// strings, demangler and unwinder behind it.
namespace std {
[[noreturn]] void __throw_out_of_range_fmt(const char* text, ...) {
  stagetwo::detail::check_failed(__FILE__, __LINE__, text);
}
[[noreturn]] void __throw_out_of_range(const char* text) {
  stagetwo::detail::check_failed(__FILE__, __LINE__, text);
}
[[noreturn]] void __throw_length_error(const char* text) {
  stagetwo::detail::check_failed(__FILE__, __LINE__, text);
}
[[noreturn]] void __throw_logic_error(const char* text) {
  stagetwo::detail::check_failed(__FILE__, __LINE__, text);
}
}  // namespace std

extern "C" {

// What compresses pages has functions that allocate, which nobody calls; named here so that nothing
// of the client's heap is imported.
void* malloc(std::size_t) {
  stagetwo::detail::check_failed(__FILE__, __LINE__, "the engine uses malloc");
}
void* calloc(std::size_t, std::size_t) {
  stagetwo::detail::check_failed(__FILE__, __LINE__, "the engine uses calloc");
}
void free(void*) {
  stagetwo::detail::check_failed(__FILE__, __LINE__, "the engine uses free");
}

// No frame of ours has anything to do when the client's thread is unwound: "go on".
int __gxx_personality_v0() {
  constexpr int kContinueUnwind = 8;
  return kContinueUnwind;
}
[[noreturn]] void __cxa_pure_virtual() {
  stagetwo::detail::check_failed(__FILE__, __LINE__, "a pure virtual function was called");
}
[[noreturn]] void* __cxa_allocate_exception(std::size_t) noexcept {
  stagetwo::detail::check_failed(__FILE__, __LINE__, "the engine throws");
}
void __cxa_free_exception(void*) noexcept {}

}  // extern "C"
