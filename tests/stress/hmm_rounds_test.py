# SPDX-License-Identifier: Apache-2.0
"""The kernel's unmodified hmm-tests, again and again: anon_teardown and migrate_multiple, 1,000 rounds each on a
private and on a coherent unit at 60 seconds, a share of them below. A case is ten rounds; the program is the one
`make conformance` has built."""
import os
import subprocess
import time
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
ROUNDS_A_CASE = 10
ROUNDS = 1000
COHERENT = ["--param=test_hmm.spm_addr_dev0=0x180000000", "--param=test_hmm.spm_addr_dev1=0x200000000"]


def runs():
    """All of them at 60 seconds; below, what fits into a quarter of the time, and one at least."""
    seconds = float(os.environ.get("STAGETWO_TEST_SECONDS") or 3)
    end = time.monotonic() + seconds / 4
    for number in range(ROUNDS // ROUNDS_A_CASE):
        if number and seconds < 60 and time.monotonic() > end:
            print(f"cut: {number * ROUNDS_A_CASE} of {ROUNDS} rounds", flush=True)
            return
        yield number


def built_suite():
    return next(iter(sorted(BUILD.glob("conformance/src/*/out/hmm/hmm-tests"))), None)


class HmmRounds(unittest.TestCase):
    def repeat(self, variant, case):
        suite = built_suite()
        if suite is None:
            self.skipTest("make conformance SUITE=hmm has not built hmm-tests")
        command = [str(BUILD / "bin/stagetwo"), "run", *(COHERENT if variant == "coherent" else []), "--",
                   str(suite), "-r", f"hmm.hmm_device_{variant}.{case}"]
        for number in runs():
            done = subprocess.run(command, capture_output=True, text=True, check=False,
                                  stdin=subprocess.DEVNULL, timeout=60)
            self.assertIn("pass:1 fail:0", done.stdout, f"run {number}: {done.stdout}{done.stderr}")
            self.assertEqual(0, done.returncode)

    def test_AnonTeardownOnAPrivateUnit(self):
        self.repeat("private", "anon_teardown")

    def test_AnonTeardownOnACoherentUnit(self):
        self.repeat("coherent", "anon_teardown")

    def test_MigrateMultipleOnAPrivateUnit(self):
        self.repeat("private", "migrate_multiple")

    def test_MigrateMultipleOnACoherentUnit(self):
        self.repeat("coherent", "migrate_multiple")


if __name__ == "__main__":
    unittest.main()
