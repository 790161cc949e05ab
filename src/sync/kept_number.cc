// SPDX-License-Identifier: Apache-2.0
#include "sync/kept_number.h"

#include "base/guard.h"

// A call and the client's dup2 onto the number it is made on:
//
//   user                                | who moves it
//   counts itself                       | fresh: another number for the same
//   reads old                           | number := fresh
//                                       | waits: the user is counted
//   system call on old                  |
//   uncounts itself                     | goes on: the client's dup2 onto old
//
//   user                                | who moves it
//                                       | number := fresh
//                                       | waits: nobody is counted; dup2 onto old
//   counts itself, reads fresh          |
//
// Without the wait the system call of the first table is made on the client's file: a punch takes
// bytes out of it.

namespace stagetwo::sync {
namespace {

// A call that waits for the client has its file already, and needs the number no more; the client
// may be the one who wants the number. Only a thread that did not run for that long between two
// instructions is not waited for.
constexpr u64 kPatienceNs = 1'000'000'000;

}  // namespace

constinit Passage KeptNumber::brief_users;
constinit Passage KeptNumber::patient_users;

void KeptNumber::wait_for(const Passage& users) {
  if (!ST_GUARD(number_is_held, true)) return;
  if (&users == &patient_users) {
    static_cast<void>(users.wait_at_most(kPatienceNs));
  } else {
    users.wait();
  }
}

void KeptNumber::after_fork_child() {
  brief_users.reset();
  patient_users.reset();
}

}  // namespace stagetwo::sync
