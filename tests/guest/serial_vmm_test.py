# SPDX-License-Identifier: Apache-2.0
"""A guest that drives a mediated serial port through its VMM: a MiB of it where there is time."""
import os
import subprocess
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"


class SerialVmm(unittest.TestCase):
    maxDiff = None

    def test_S4_19_AGuestsDriverLosesNoByteAndSeesAnOverrun(self):
        seconds = float(os.environ.get("STAGETWO_TEST_SECONDS", "3"))
        size = 1 << 20 if seconds >= 20 else 1 << 13
        done = subprocess.run([str(BUILD / "bin/stagetwo"), "run", "--",
                               str(BUILD / "clients/serial_vmm"), str(size)],
                              capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                              timeout=300)
        sent = (size + 13) // 14 * 14
        story = f"0 of {sent} bytes lost or wrong; the 17th: overrun 1, 16 to be read\n"
        self.assertEqual((0, story, ""), (done.returncode, done.stdout, done.stderr))


if __name__ == "__main__":
    unittest.main()
