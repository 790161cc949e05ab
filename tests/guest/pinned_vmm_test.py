# SPDX-License-Identifier: Apache-2.0
"""A guest's memory under a limit, into which the kernel writes by pins: no page leaves between the pin and the bytes."""
import subprocess
import tempfile
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
TOOL = BUILD / "bin/stagetwo"
CLIENT = BUILD / "clients/pinned_vmm"


class PinnedVmm(unittest.TestCase):
    def is_whole(self, way, memory):
        with tempfile.TemporaryDirectory(prefix="stagetwo-pinned-", dir=BUILD) as folder:
            log = Path(folder) / "log"
            run = subprocess.run([TOOL, "run", "--memory-limit=1M", f"--swap={folder}", f"--log-file={log}", "--", CLIENT,
                                  way, memory], capture_output=True, text=True, check=False, cwd=folder)
            if log.exists() and "denied" in log.read_text():
                self.skipTest("userfaultfd is denied here")
            if run.stdout.startswith("skipped: "):
                self.skipTest(run.stdout.removeprefix("skipped: ").strip())
            self.assertEqual(0, run.returncode, run.stdout + run.stderr)
            self.assertEqual("whole\n", run.stdout)

    def test_OneProcessWritesItsOwnMemory(self):
        self.is_whole("process", "shared")

    def test_ReadsFromAFileOpenedDirectly(self):
        self.is_whole("pread", "shared")
        self.is_whole("preadv2", "shared")

    def test_ReadsThatLibcMakesByItself(self):
        self.is_whole("stream", "shared")
        self.is_whole("aio", "shared")

    def test_ReadsByAnIoUring(self):
        self.is_whole("ring", "shared")

    def test_ReadsByAnIoUringOfWhichNothingIsMapped(self):
        self.is_whole("unmapped-ring", "shared")

    def test_ReadsByAContextThatIsSubmittedToByItsOwnInstruction(self):
        self.is_whole("context", "shared")


if __name__ == "__main__":
    unittest.main()
