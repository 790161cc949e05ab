// SPDX-License-Identifier: Apache-2.0
#pragma once

// Words of an arena that go back to what they were where a process dies in the middle of a change
// (arena.h, I3). Whoever writes one notes first what stood there; the next one who gets the lock
// puts all of it back, the last first.
//
//   writer                          the next holder of the lock, told that the last one died
//   note what stands there          from the end of the notes to their beginning: put back
//   write                           notes = none
//   … at the end of the section
//   notes = none
//   release the lock
//
// I1  A word of the arena that is not free memory is written only through Kept, RelPtr, or after
//     note(). Free memory is nobody's: only its first word, the link, is noted, so that a block
//     taken in the same section may be filled without a note.
// I2  The notes are whole at every instruction: a note counts when its length is entered, which is
//     before the word is written. A process ends between two instructions, never within one.
// I3  Putting back twice is the same as once: who dies while it does is as one who never began.
// Where nobody else has ever shared the arena nothing is noted: nobody is left to see it.
// Locking: the arena's; where engines write without it (marks in page tables) a mark may be lost
// that was made between note and death.

#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::iommu::undo {

// How many sections of this process note.
inline constinit sync::Atomic<u32> sections{0};
void note_in_section(const void* at, size_t bytes);

// Pre: what is noted is within the arena this thread has locked, or nothing of an arena.
inline void note(const void* at, size_t bytes) {
  if (sections.load(sync::kRelaxed) != 0) [[unlikely]]
    note_in_section(at, bytes);
}

// Of objects that are written without a note afterwards; null: of none.
template <typename... T>
void note_all(const T*... objects) {
  if (sections.load(sync::kRelaxed) == 0) [[likely]]
    return;
  ((objects != nullptr ? note_in_section(objects, sizeof(T)) : void()), ...);
}

}  // namespace stagetwo::iommu::undo

namespace stagetwo::iommu {

template <typename T>
class Kept {
 public:
  constexpr Kept() = default;
  explicit constexpr Kept(T value) : value_(value) {}
  constexpr Kept(const Kept& other) : value_(other.value_) {}
  Kept& operator=(const Kept& other) { return *this = other.value_; }
  Kept& operator=(T value) {
    undo::note(&value_, sizeof(T));
    value_ = value;
    return *this;
  }
  // Of what is free memory to whoever puts back, or was noted as a whole (I1): there is no note.
  void set_unnoted(T value) { value_ = value; }
  constexpr operator T() const { return value_; }
  [[nodiscard]] constexpr T get() const { return value_; }

  Kept& operator++() { return *this = static_cast<T>(value_ + 1); }
  Kept& operator--() { return *this = static_cast<T>(value_ - 1); }
  Kept& operator+=(T by) { return *this = static_cast<T>(value_ + by); }
  Kept& operator-=(T by) { return *this = static_cast<T>(value_ - by); }
  Kept& operator&=(T by) { return *this = static_cast<T>(value_ & by); }
  Kept& operator|=(T by) { return *this = static_cast<T>(value_ | by); }

 private:
  T value_{};
};

}  // namespace stagetwo::iommu
