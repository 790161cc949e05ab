# SPDX-License-Identifier: Apache-2.0
"""A VMM that attacks its own secure guest by whatever a process may do, through the whole chain."""
import os
import re
import resource
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
CLIENT = BUILD / "clients/hostile_vmm"
ATTACKS = len(re.findall(r'^    \{"', (Path(__file__).parent / "hostile_vmm.c").read_text(), re.M))
WHOLE = (0, f"{ATTACKS} attacks, nothing in clear\n", "")


def told(*options, secure="--secure", **how):
    done = subprocess.run([str(BUILD / "bin/stagetwo"), "run", secure, "--", str(CLIENT), *options],
                          capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300, **how)
    return done.returncode, done.stdout, done.stderr


def words_in(dump):
    """Rows of eight of the guest's words, as hostile_vmm.c makes them."""
    rows = (struct.pack("<8I", *(0xc0de0000 + page * 0x1000 + (first + i) * 4 for i in range(8)))
            for page in range(8) for first in range(0, 1024, 64))
    return sum(row in dump for row in rows)


def code_in(dump):
    """The loop's NOP of hostile_guest.h, and its displacement by itself, as a decoder has it."""
    return dump.count(bytes.fromhex("670f1f80a1e7c25e")), dump.count(bytes.fromhex("a1e7c25e00000000"))


class HostileVmm(unittest.TestCase):
    def rounds(self):
        return range(max(1, int(float(os.environ.get("STAGETWO_TEST_SECONDS", "3")) / 3)))

    def test_SeesNothingInClearAndTheGuestReadsItsOwnOrNothing(self):
        for _ in self.rounds():
            self.assertEqual(WHOLE, told())

    def test_TheSameWithLittleSecureMemory(self):
        for _ in self.rounds():
            self.assertEqual(WHOLE, told(secure="--secure=300K"))

    def test_TheSameWhereUserfaultfdIsDenied(self):
        for _ in self.rounds():
            self.assertEqual(WHOLE, told("denied"))

    def test_TheSameAsAnotherUser(self):
        if os.geteuid() != 0:
            self.skipTest("needs root (to be another user)")
        for _ in self.rounds():
            self.assertEqual(WHOLE, told(user=65534, group=65534, extra_groups=[]))

    def dump_of(self, *options):
        pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
        if pattern.startswith(("|", "/")):
            self.skipTest("core dumps go elsewhere on this machine")
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        if hard != resource.RLIM_INFINITY:
            self.skipTest("core dumps have a limit here")
        with tempfile.TemporaryDirectory() as folder:
            code, out, err = told(*options, cwd=folder,
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)))
            self.assertEqual((134, "dies\n", ""), (code, out, err))
            dumps = list(Path(folder).glob("*"))
            self.assertEqual(1, len(dumps), dumps)
            return dumps[0].read_bytes()

    def rows_in_the_dump(self, *options):
        return words_in(self.dump_of(*options))

    def test_ACoreDumpHasWhatTheGuestHadBeforeItWasSecureAndNothingOfIt(self):
        self.assertEqual(128, self.rows_in_the_dump("die_normal"))
        self.assertEqual(0, self.rows_in_the_dump("die_secure"))

    def test_ACoreDumpHasNothingOfItWhereUserfaultfdIsDenied(self):
        self.assertEqual(128, self.rows_in_the_dump("denied", "die_normal"))
        self.assertEqual(0, self.rows_in_the_dump("denied", "die_secure"))

    def test_ACoreDumpOfAVcpuThatRunsHasNothingOfItsCode(self):
        normal = code_in(self.dump_of("die_normal_running"))
        self.assertEqual((1, 0), normal, "the guest's memory; what is decoded is in no dump")
        self.assertEqual((0, 0), code_in(self.dump_of("die_secure_running")))


if __name__ == "__main__":
    unittest.main()
