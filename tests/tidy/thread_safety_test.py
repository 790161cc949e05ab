# SPDX-License-Identifier: Apache-2.0
"""The annotations of src/sync mean something: clang refuses what they forbid and accepts what they allow."""
import shutil
import subprocess
import unittest

import house

HEAD = """
#include "sync/mutex.h"
using namespace stagetwo::sync;
struct Book {
  Mutex lock{Rank::kSlots};
  SharedMutex shared{Rank::kGate};
  int page TA_GUARDED(lock) = 0;
  int line TA_GUARDED(shared) = 0;
  void turn_locked() TA_REQ(lock) { ++page; }
  void read_shared() TA_REQ_SHARED(shared);
  void outside() TA_EXCL(lock);
};
"""


@unittest.skipUnless(shutil.which("clang++-19"), "no clang++-19 here")
class ThreadSafety(unittest.TestCase):
    def diagnosis(self, body):
        done = subprocess.run(
            ["clang++-19", "-std=c++23", "-fsyntax-only", "-Werror", "-Wthread-safety", "-Wthread-safety-beta",
             f"-I{house.ROOT}/src", "-x", "c++", "-"],
            input=HEAD + body, capture_output=True, text=True, check=False)
        return done.stderr

    def test_AcceptsAGuardedAccess(self):
        self.assertEqual("", self.diagnosis("void f(Book& b) { const MutexGuard g(b.lock); ++b.page; b.turn_locked(); }"))

    def test_AcceptsASharedRead(self):
        self.assertEqual("", self.diagnosis("int f(Book& b) { const SharedGuard g(b.shared); return b.line; }"))

    def test_AcceptsAnAssertionInACallback(self):
        self.assertEqual("", self.diagnosis("void f(Book& b) { b.lock.assert_held(); ++b.page; }"))

    def test_FindsAnAccessWithoutTheLock(self):
        self.assertIn("requires holding mutex 'b.lock'", self.diagnosis("void f(Book& b) { ++b.page; }"))

    def test_FindsACallWithoutTheLock(self):
        self.assertIn("requires holding mutex", self.diagnosis("void f(Book& b) { b.turn_locked(); }"))

    def test_FindsAWriteUnderASharedLock(self):
        self.assertIn("requires holding shared_mutex 'b.shared' exclusively",
                      self.diagnosis("void f(Book& b) { const SharedGuard g(b.shared); ++b.line; }"))

    def test_FindsACallThatMustNotHoldTheLock(self):
        self.assertIn("cannot call function 'outside' while mutex",
                      self.diagnosis("void f(Book& b) { const MutexGuard g(b.lock); b.outside(); }"))

    def test_FindsTheSameLockTwice(self):
        self.assertIn("is already held", self.diagnosis(
            "void f(Book& b) { const MutexGuard g(b.lock); const MutexGuard h(b.lock); }"))


if __name__ == "__main__":
    unittest.main()
