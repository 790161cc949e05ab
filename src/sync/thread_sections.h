// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which ack lines the calling thread has entered, innermost first, and what becomes of them when it
// dies: a pthread key's destructor puts them outside. Used by sync/ack_line.cc.
//
// Thread-locals: one pointer and one flag, initial-exec, no constructor.

#include "sync/ack_line.h"

namespace stagetwo::sync {

struct ThreadSections {
  static void push(AckLine& line);
  static void pop(AckLine& line);
  // Is it one of the calling thread's sections?
  static bool entered(const AckLine& line);

  // While it lives, the thread's sections count as outside. On its end they run again, as new
  // entries; requests raised meanwhile stay pending, so the owner's next poll says true.
  class Aside {
   public:
    Aside();
    ~Aside();
    Aside(const Aside&) = delete;
    Aside& operator=(const Aside&) = delete;
  };

  // Puts every section of the thread outside, for good.
  static void abandon();
};

}  // namespace stagetwo::sync
