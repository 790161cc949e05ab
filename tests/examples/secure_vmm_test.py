# SPDX-License-Identifier: Apache-2.0
"""examples/secure_vmm tells its story under stagetwo --secure, and says what is missing anywhere else."""
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
SECURE = BUILD / "examples/secure_vmm"
ENGINE = "engine has it in locked memory of its own\n"  # where memfd_secret cannot be had
STORY = """\
guest  is secure: the host finds its own code sealed, and it runs on
guest  shared two pages for I/O: the host reads its request and answers
host   looked through all it can read: the secret is nowhere, its page is noise
guest  reads the answer, and its secret, whose page had been paged out
host   saved the guest's sealed pages, gave them up and put them back
guest  finds its secret again
host   plugged memory that was full of its own bytes
guest  found zeros there, and wrote
host   took the memory out: it sees sealed bytes before, and zeros afterwards
guest  unshared its buffers: zeros for it, noise for the host
host   put an older copy of the secret's page in its place
engine refused it: the guest has ended at the page it was to read
host   reset it: all of its memory is zeros
guest  is secure: the host finds its own code sealed, and it runs on
guest  halted in its second life
"""
NOT_OFFERED = (4, "this /dev/kvm has no secure guests\n", "")


def told(*command, **who):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=60, **who)
    return done.returncode, done.stdout.replace(ENGINE, ""), done.stderr


class SecureVmm(unittest.TestCase):
    maxDiff = None

    def test_RunsUnderStagetwo(self):
        self.assertEqual((0, STORY, ""),
                         told(BUILD / "bin/stagetwo", "run", "--secure", "--", SECURE))

    def test_RunsAsAnotherUser(self):
        if os.geteuid() != 0:
            self.skipTest("needs root (to be another user)")
        self.assertEqual((0, STORY, ""), told(BUILD / "bin/stagetwo", "run", "--secure", "--", SECURE,
                                              user=65534, group=65534, extra_groups=[]))

    def test_RunsInLittleSecureMemory(self):
        self.assertEqual((0, STORY, ""),
                         told(BUILD / "bin/stagetwo", "run", "--secure=300K", "--", SECURE))

    def test_RunsWithItsSealedPagesUnderALimit(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual((0, STORY, ""), told(BUILD / "bin/stagetwo", "run", "--secure", "--memory-limit=2M",
                                                  f"--swap={folder}", "--", SECURE))

    def test_IsNotOfferedWithoutTheOption(self):
        self.assertEqual(NOT_OFFERED, told(BUILD / "bin/stagetwo", "run", "--", SECURE))

    def test_IsNotOfferedByTheRealDevice(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.skipTest("oracle: absent (no /dev/kvm this user may open)")
        self.assertEqual(NOT_OFFERED, told(SECURE))


if __name__ == "__main__":
    unittest.main()
