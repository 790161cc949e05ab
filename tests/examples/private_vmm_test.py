# SPDX-License-Identifier: Apache-2.0
"""examples/private_vmm tells the same story under stagetwo and, where there is one, on the real device."""
import os
import subprocess
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
PRIVATE = BUILD / "examples/private_vmm"
ENGINE = "engine has it in a mapping of its own, which stands for the kernel's\n"
STORY = """\
guest  wrote to a shared page: the host reads it
host   made 4 pages private at the guest's request; their shared backing is gone
guest  keeps a secret in a private page: the host finds zeroes where it was shared
host   looked through all it can read: the secret is nowhere
""" + ENGINE + """\
host   made 4 pages shared at the guest's request; their private backing is gone
guest  reads what the host wrote while the page was private
host   made 4 pages private at the guest's request; their shared backing is gone
guest  finds zeroes in its new private page: the secret is gone
guest  halted after 3 conversions
"""
NOT_OFFERED = 4


def told(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=60)
    return done.returncode, done.stdout, done.stderr


class PrivateVmm(unittest.TestCase):
    maxDiff = None

    def test_RunsUnderStagetwo(self):
        self.assertEqual((0, STORY, ""), told(BUILD / "bin/stagetwo", "run", "--", PRIVATE))

    def test_RunsOnTheRealDevice(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.skipTest("oracle: absent (no /dev/kvm this user may open)")
        outcome = told(PRIVATE)
        if outcome[0] == NOT_OFFERED:
            self.skipTest("oracle: this machine's KVM has no software-protected VMs")
        self.assertEqual((0, STORY.replace(ENGINE, ""), ""), outcome)


if __name__ == "__main__":
    unittest.main()
