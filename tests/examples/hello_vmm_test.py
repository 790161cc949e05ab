# SPDX-License-Identifier: Apache-2.0
"""examples/hello_vmm tells the same story under stagetwo and, where there is one, on the real device."""
import os
import subprocess
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
HELLO = BUILD / "examples/hello_vmm"
STORY = """\
host   gives a guest 256 pages it has not touched: 0 are resident
hello from a guest
device was written 42 at 0xd0000000
guest  filled its memory: 256 of 256 pages are now resident
host   took the first page away (MADV_DONTNEED) while the guest waits
guest  read 256 there before, 0 after: no stale translation
guest  read 0x57a6e2 from the device
guest  halted after 21 port and 2 device exits
"""


def told(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=60)
    return done.returncode, done.stdout, done.stderr


class HelloVmm(unittest.TestCase):
    maxDiff = None

    def test_RunsUnderStagetwo(self):
        self.assertEqual((0, STORY, ""), told(BUILD / "bin/stagetwo", "run", "--", HELLO))

    def test_RunsOnTheRealDevice(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.skipTest("oracle: absent (no /dev/kvm this user may open)")
        self.assertEqual((0, STORY, ""), told(HELLO))


if __name__ == "__main__":
    unittest.main()
