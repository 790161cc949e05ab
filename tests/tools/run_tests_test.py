# SPDX-License-Identifier: Apache-2.0
"""tools/run-tests counts cases: also of programs that crash, hang or say nothing."""
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Behaves like a GoogleTest program with the cases T.A, T.B, T.C; B does what the format says.
PROGRAM = """#!{python}
import json, os, sys, time
report, skip = None, []
for a in sys.argv[1:]:
    if a.startswith("--gtest_output=json:"): report = a.split(":", 1)[1]
    if a.startswith("--gtest_filter=-"): skip = a.split("-", 3)[3].split(":")
rows = []
for name in ("A", "B", "C"):
    if "T." + name in skip: continue
    print("[ RUN      ] T." + name, flush=True)
    row = dict(name=name, status="RUN", result="COMPLETED")
    if name == "B":
        {body}
    rows.append(row)
    print("[       OK ] T." + name, flush=True)
json.dump(dict(testsuites=[dict(name="T", testsuite=rows)]), open(report, "w"))
sys.exit(any("failures" in r for r in rows))
"""


def outcome(body, *arguments, environment=None):
    inherited = {k: v for k, v in os.environ.items() if k not in ("STAGETWO_SEED", "STAGETWO_DEFAULT_SEED")}
    with tempfile.TemporaryDirectory(prefix="stagetwo-tools-") as folder:
        program = Path(folder) / "fake_test"
        program.write_text(PROGRAM.format(python=sys.executable, body=body))
        program.chmod(0o755)
        done = subprocess.run([str(ROOT / "tools/run-tests"), "--folder", folder, "--no-python", *arguments],
                              capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                              env={**inherited, **(environment or {})})
        lines = done.stdout.splitlines()
        return done.returncode, lines[-1], done.stdout


class RunTests(unittest.TestCase):
    def test_CountsCases(self):
        status, last, _ = outcome("pass")
        self.assertEqual((0, "3 passed, 0 failed, 0 skipped"), (status, last))

    def test_AFailureCarriesItsMessage(self):
        status, last, output = outcome('row["failures"] = [dict(failure="two is not three")]')
        self.assertEqual((1, "2 passed, 1 failed, 0 skipped"), (status, last))
        self.assertIn("two is not three", output)

    def test_WhatACaseCutIsListedWhereThatIsAsked(self):
        body = 'print("cut: 5 of 100 rounds")'
        self.assertIn("cut: fake_test T.B: 5 of 100 rounds", outcome(body, "--tell-cuts")[2].splitlines())
        self.assertNotIn("cut: ", outcome(body)[2])

    def test_ASkipCarriesItsReason(self):
        status, last, output = outcome(
            'row["result"] = "SKIPPED"; print("x.cc:1: Skipped\\nneeds root (mount)\\n\\n[  SKIPPED ] T.B"); '
            'rows.append(row); continue')
        self.assertEqual((0, "2 passed, 0 failed, 1 skipped"), (status, last))
        self.assertIn("T.B: needs root (mount)", output)

    def test_ACrashFailsItsCaseAndTheRestStillRuns(self):
        status, last, output = outcome("os.abort()")
        self.assertEqual((1, "2 passed, 1 failed, 0 skipped"), (status, last))
        self.assertIn("T.B\n  killed by signal 6", output)

    def test_AHangFailsItsCase(self):
        status, last, output = outcome("time.sleep(60)", "--timeout", "1")
        self.assertEqual((1, "2 passed, 1 failed, 0 skipped"), (status, last))
        self.assertIn("T.B\n  no end within 1.0 s", output)

    def test_AFailureNamesTheSeedThatWasPrinted(self):
        _, _, output = outcome('print("R: STAGETWO_SEED=77"); row["failures"] = [dict(failure="no")]')
        self.assertIn("repeated by STAGETWO_SEED=77", output)

    def test_RandomTestsDrawFromTheDefaultSeed(self):
        told = 'print("seed", os.environ.get("STAGETWO_SEED"), os.environ.get("STAGETWO_DEFAULT_SEED"))'
        for arguments, environment, expected in (((), {}, "seed None 1"),
                                                 (("--fresh-seeds",), {}, "seed None None"),
                                                 ((), {"STAGETWO_SEED": "7"}, "seed 7 None")):
            _, _, output = outcome(told + "; os.abort()", *arguments, environment=environment)
            self.assertIn(expected, output)

    def test_NothingToRunIsAFailure(self):
        with tempfile.TemporaryDirectory(prefix="stagetwo-tools-") as folder:
            done = subprocess.run([str(ROOT / "tools/run-tests"), "--folder", folder, "--no-python"],
                                  capture_output=True, text=True, check=False)
        self.assertEqual((1, "0 passed, 0 failed, 0 skipped"),
                         (done.returncode, done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    unittest.main()
