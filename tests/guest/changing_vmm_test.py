# SPDX-License-Identifier: Apache-2.0
"""Changes of guest memory under a running vCPU, through the whole chain: libc's names, the bell, the guest.

Not on a real device: one without two-dimensional paging emulates and answers MMIO where others say EFAULT.
"""
import os
import subprocess
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
CLIENT = BUILD / "clients/changing_vmm"
STORY = """\
MADV_DONTNEED: the guest goes on with fresh pages
mremap and mmap at the same address: the guest is in the new memory alone
mprotect: EFAULT while the right is gone, and on as soon as it is back
munmap: EFAULT while there is nothing, and on as soon as there is
a slot deleted, its address reused: the canaries are whole
"""


def told(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=120)
    return done.returncode, done.stdout, done.stderr


class ChangingVmm(unittest.TestCase):
    maxDiff = None

    def test_HoldsUnderStagetwo(self):
        rounds = min(60, int(float(os.environ.get("STAGETWO_TEST_SECONDS", "3")) * 4))
        self.assertEqual((0, STORY, ""), told(BUILD / "bin/stagetwo", "run", "--", CLIENT, rounds))


if __name__ == "__main__":
    unittest.main()
