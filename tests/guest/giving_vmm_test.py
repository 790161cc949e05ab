# SPDX-License-Identifier: Apache-2.0
"""Memory of a guest under a limit that another program gets: by a message, or because it inherits the descriptor. It
finds every byte, and what nobody else got can be taken again. So does the program itself by another mapping, and
where it allocates the file."""
import json
import subprocess
import tempfile
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
TOOL = BUILD / "bin/stagetwo"
CLIENT = BUILD / "clients/giving_vmm"


class GivingVmm(unittest.TestCase):
    def gives(self, way, said="whole"):
        with tempfile.TemporaryDirectory(prefix="stagetwo-giving-") as folder:
            stats = Path(folder) / "stats.json"
            run = subprocess.run([TOOL, "run", "--memory-limit=1M", f"--swap={folder}", f"--stats={stats}", "--log-file",
                                  Path(folder) / "log", "--", CLIENT, way], capture_output=True, text=True, check=False)
            log = Path(folder) / "log"
            if log.exists() and "denied" in log.read_text():
                self.skipTest("userfaultfd is denied here")
            self.assertEqual(0, run.returncode, run.stdout + run.stderr)
            self.assertIn(said, run.stdout.split())
            return json.loads(stats.read_text()) if stats.exists() else None

    def test_ByAMessage(self):
        self.gives("message")

    def test_ToAProgramThatStarts(self):
        for way in ("spawn", "spawn-dup", "dup", "flag", "system", "popen", "vfork", "vfork-dup", "vfork-number"):
            with self.subTest(way):
                self.gives(way)

    def test_ToTheProgramThatTakesOurPlace(self):
        self.gives("exec", "checked")

    def test_WhatNobodyGotIsTakenAgain(self):
        stats = self.gives("nothing")
        self.assertEqual(0, stats["lost_pages"])

    def test_ToItselfOnceMore(self):
        for way in ("mapped", "copied", "populated", "populated-copy", "more", "allocated", "sought", "stream", "pieces"):
            with self.subTest(way):
                self.gives(way)


if __name__ == "__main__":
    unittest.main()
