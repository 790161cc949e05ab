# SPDX-License-Identifier: Apache-2.0
"""A guest whose memory a device takes: two secondaries of one address space, through the whole chain."""
import os
import subprocess
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
CLIENT = BUILD / "clients/device_vmm"
STORY = """\
memory of a running guest goes to a device and comes back
a device's exclusive access ends with the guest's next store
a system call brings a page back
a fork finds every page
no store was lost
"""


class DeviceVmm(unittest.TestCase):
    maxDiff = None

    def run_client(self, *options):
        rounds = min(800, int(float(os.environ.get("STAGETWO_TEST_SECONDS", "3")) * 40))
        done = subprocess.run([str(BUILD / "bin/stagetwo"), "run", "--", str(CLIENT), str(rounds),
                               *options],
                              capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                              timeout=300)
        self.assertEqual((0, STORY, ""), (done.returncode, done.stdout, done.stderr))

    def test_HoldsUnderStagetwo(self):
        self.run_client()

    def test_HoldsWhereUserfaultfdIsDenied(self):
        self.run_client("denied")


if __name__ == "__main__":
    unittest.main()
