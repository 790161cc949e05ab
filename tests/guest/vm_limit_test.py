# SPDX-License-Identifier: Apache-2.0
"""A limit of each VM's own, under guests that want all of their memory all the time: it is kept as seen from outside,
and nothing is lost."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
from swapping_vmm_test import MIB, resident_of  # noqa: E402

BUILD = Path(__file__).resolve().parents[2] / "build"
TOOL = BUILD / "bin/stagetwo"
CLIENT = BUILD / "clients/refaulting_vmm"
SECONDS = float(os.environ.get("STAGETWO_TEST_SECONDS", "3"))
LIMIT = 4 * MIB
ALLOWED = LIMIT * 105 // 100 + 16 * MIB


def held(pid, start, size):
    """Bytes of a VM's memory: what is mapped, or, of shared memory, what the file has."""
    try:
        blocks = Path(f"/proc/{pid}/map_files/{start:x}-{start + size:x}").stat().st_blocks * 512
    except OSError:
        blocks = 0
    return max(resident_of(pid, start, size), blocks)


class VmLimit(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="stagetwo-vm-limit-"))

    def tearDown(self):
        shutil.rmtree(self.folder)

    def keeps(self, vms, megabytes, order, kind, later=False):
        name = f"vm-limit-{os.getpid()}"
        options = [f"--session={name}"] if later else ["--memory-limit", f"none,vm={LIMIT}"]
        command = [TOOL, "run", *options, "--swap", self.folder, f"--stats={self.folder}/stats.json",
                   f"--log-file={self.folder}/log", "--", CLIENT, vms, megabytes, order, kind]
        with subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True) as run:
            machines = []
            for _ in range(vms):
                line = run.stdout.readline().split()
                if not line or line[0] != "memory":
                    self.fail(f"the client does not run: {line}")
                machines.append((int(line[1], 16), int(line[2])))
            pid = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0])

            def soon():
                for _ in range(2000):
                    if all(held(pid, *one) <= LIMIT * 105 // 100 for one in machines):
                        return True
                    time.sleep(0.005)
                return False

            def go_on():
                run.stdin.write("\n")
                run.stdin.flush()
            if later:
                go_on()
                subprocess.run([TOOL, "limit", f"--session={name}", f"none,vm={LIMIT}"], check=True)
            limited = soon()
            if not later:
                go_on()
            most, looks = [0] * vms, 0
            end = time.monotonic() + SECONDS * 0.06
            while (time.monotonic() < end or looks < 10) and run.poll() is None:
                most = [max(most[i], held(pid, *one)) for i, one in enumerate(machines)]
                looks += 1
                time.sleep(0.002)
            go_on()
            told = run.stdout.read()
        if "denied" in ((self.folder / "log").read_text() if (self.folder / "log").exists() else ""):
            self.skipTest("userfaultfd is denied here")
        self.assertEqual(0, run.returncode, told)
        self.assertIn("whole: ", told)
        self.assertTrue(limited, "before anybody uses it, or soon after the limit was set")
        self.assertGreaterEqual(looks, 10)
        for one in most:
            self.assertLessEqual(one, ALLOWED, f"{told}; most {[m // MIB for m in most]} MiB in {looks} looks")
        self.assertGreater(json.loads((self.folder / "stats.json").read_text())["refaults"], 100)

    def test_OfAGuestThatGoesThroughItsMemory(self):
        self.keeps(1, 32, "in-order", "private")

    def test_OfAGuestInSharedMemory(self):
        self.keeps(1, 64, "at-random", "shared")

    def test_OfTwoGuestsOfWhichOneFits(self):
        self.keeps(2, 32, "at-random", "private")

    def test_SetWhileTheGuestRuns(self):
        self.keeps(1, 64, "at-random", "private", later=True)


if __name__ == "__main__":
    unittest.main()
