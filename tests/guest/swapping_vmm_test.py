# SPDX-License-Identifier: Apache-2.0
"""A guest larger than its limit, through the whole chain: nothing is lost, the limit is kept as seen from outside, and
nothing is left behind. Check 12 of the specification."""
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import conformance_limit  # noqa: E402

BUILD = Path(__file__).resolve().parents[2] / "build"
TOOL = BUILD / "bin/stagetwo"
CLIENT = BUILD / "clients/swapping_vmm"
DENIED = BUILD / "tests/programs/denied"
MIB = 1 << 20
SECONDS = float(os.environ.get("STAGETWO_TEST_SECONDS", "3"))
SEED = os.environ.get("STAGETWO_SEED") or os.environ.get("STAGETWO_DEFAULT_SEED") or str(time.time_ns() & 0xffffffff)


def resident_of(pid, start, size):
    """Bytes of [start, start + size) in memory, as smaps has them."""
    total = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            inside = int(head[1], 16) < start + size and start < int(head[2], 16)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def swap_file(pid, folder):
    """The file without a name, as what the process has of it; None: there is none."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if re.fullmatch(re.escape(str(folder)) + r"/#\d+ \(deleted\)", os.readlink(fd)):
                return fd
        except OSError:
            pass
    return None


def swap_blocks(pid, folder):
    """Bytes on the disk of it."""
    try:
        file = swap_file(pid, folder)
        return file.stat().st_blocks * 512 if file else 0
    except OSError:
        return 0


def child_of(pid):
    for _ in range(500):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == CLIENT.name:
            return int(children[0])
        time.sleep(0.01)
    raise AssertionError("the program did not start")


class SwappingVmm(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="stagetwo-swap-"))
        if subprocess.run([TOOL, "run", "--memory-limit", "64M", "--log-file", self.folder / "probe", "--",
                           CLIENT, "1", "1", "1"], capture_output=True, check=False).returncode != 0:
            self.fail("the client does not run at all")
        probe = self.folder / "probe"
        if probe.exists() and "denied" in probe.read_text():
            self.skipTest("userfaultfd is denied here")
        probe.unlink(missing_ok=True)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def start(self, megabytes, limit, *more, options=(), ms=None, size="", denied=None, user=None):
        self.stats = self.folder / "stats.json"
        self.samples = self.folder / "samples.jsonl"
        limited = ["--memory-limit", limit, "--swap", f"{self.folder}{size}", f"--wss=100ms,file={self.samples}"]
        command = [*(denied or []), TOOL, "run", *(limited if limit else []), f"--stats={self.stats}",
                   "--log-file", self.folder / "log", *options, "--", CLIENT,
                   megabytes, ms or int(SECONDS * 200), SEED, *more]
        return subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                user=user, group=user, extra_groups=None if user is None else [])

    def compressed(self):
        lines = self.samples.read_text().splitlines() if self.samples.exists() else []
        return json.loads(lines[-1])["compressed"] if lines else 0

    def whole(self, megabytes, limit_mib, *more, ms=None):
        with self.start(megabytes, f"{limit_mib}M", *more, ms=ms) as run:
            pid = child_of(run.pid)
            _, start, size = run.stdout.readline().split()
            most, on_disk, looks = 0, 0, 0
            while run.poll() is None:
                try:
                    held, files, _ = conformance_limit.sample(pid, self.folder)
                    most = max(most, held + files + self.compressed())
                    on_disk = max(on_disk, swap_blocks(pid, self.folder))
                    looks += 1
                except OSError:
                    break
                time.sleep(0.01)
            told = run.stdout.read()
        self.assertEqual(0, run.returncode, f"seed {SEED}: {told}")
        self.assertTrue(told.startswith("whole: "), f"seed {SEED}: {told}")
        self.assertNotIn(0, [int(count) for count in re.findall(r"\d+", told)], "everything was done")
        self.assertGreater(looks, 10)
        self.assertLessEqual(most, limit_mib * MIB * 1.05 + 16 * MIB, f"seed {SEED}")
        self.assertGreater(on_disk, MIB)
        stats = json.loads(self.stats.read_text())
        self.assertGreater(stats["refaults"], 100)
        self.assertGreater(stats["private_refaults"], 0, "pages of the guest_memfd go and come back, too")
        self.assertEqual(0, stats["lost_pages"])
        return stats

    def test_AGuestInHalfOfItsMemoryIsWhole(self):
        self.whole(64, 32)

    def test_AGuestInAQuarterOfItsMemoryIsWhole(self):
        self.whole(64, 16, ms=int(SECONDS * 1000))

    def test_SharedMemoryIsWholeToo(self):
        self.whole(64, 16, "shared")

    def test_WhereSystemCallsAreNotReportedItIsWholeToo(self):
        device = Path("/dev/userfaultfd")
        allowed = Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1"
        if os.geteuid() != 0 or allowed or (device.exists() and device.stat().st_mode & 6):
            self.skipTest("needs root (to be somebody to whom userfaultfd serves user mode only)")
        os.chmod(self.folder, 0o777)
        if not all(parent.stat().st_mode & 1 for parent in CLIENT.parents):
            self.skipTest("the client cannot be run by another user")
        with self.start(16, "4M", ms=300, user=65534) as run:
            told = run.stdout.read()
        self.assertEqual(0, run.returncode, f"seed {SEED}: {told}")
        self.assertIn("whole: ", told, f"seed {SEED}")
        self.assertGreater(json.loads(self.stats.read_text())["refaults"], 100)

    def test_KilledItLeavesNothingBehind(self):
        with self.start(32, "8M", ms=60000) as run:
            pid = child_of(run.pid)
            for _ in range(1000):
                if swap_blocks(pid, self.folder) > MIB:
                    break
                time.sleep(0.01)
            self.assertGreater(swap_blocks(pid, self.folder), MIB)
            os.kill(pid, signal.SIGKILL)
            run.wait()
        left = [p for p in self.folder.iterdir() if p.name not in ("samples.jsonl", "log")]
        self.assertEqual([], left)

    def test_OtherBytesThanWereWrittenAreNeverRead(self):
        with self.start(32, "8M", options=["--compressed=0"], ms=60000) as run:
            pid = child_of(run.pid)
            for _ in range(1000):
                if swap_blocks(pid, self.folder) > MIB:
                    break
                time.sleep(0.01)
            with open(swap_file(pid, self.folder), "r+b") as file:
                file.write(os.urandom(os.stat(file.fileno()).st_size))
            told = run.stdout.read()
        self.assertNotEqual(0, run.returncode)
        self.assertNotRegex(told, "other bytes|what the guest wrote", "a page that is not right was read")
        self.assertIn("a page of guest memory is lost: the swap file has other bytes than were written to it",
                      (self.folder / "log").read_text())

    def test_AFullDiskIsSaidAndNothingIsLost(self):
        with self.start(32, "8M", size=",size=1M") as run:
            told = run.stdout.read()
        self.assertEqual(0, run.returncode, told)
        self.assertIn("whole: ", told)
        self.assertIn("the memory limit is not kept: the swap file is full", (self.folder / "log").read_text())
        self.assertGreater(json.loads(self.stats.read_text())["not_stored_pages"], 0)

    def test_AFullFileSystemIsSaidAndNothingIsLost(self):
        small = self.folder / "small"
        small.mkdir()
        mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1M none "$0" && exec "$@"', small]
        refused = subprocess.run([*mounted, "true"], capture_output=True, text=True, check=False)
        if refused.returncode:
            self.skipTest(f"needs root (mounts): {refused.stderr.strip()}")
        with self.start(16, "4M", ms=300, size="/small", denied=mounted) as run:
            inside = Path(f"/proc/{child_of(run.pid)}/root{small}")
            run.stdout.readline()
            named = []
            while run.poll() is None:
                try:
                    named += inside.iterdir()
                except OSError:
                    break
                time.sleep(0.01)
            told = run.stdout.read()
        self.assertEqual(0, run.returncode, told)
        self.assertIn("whole: ", told)
        self.assertEqual([], named, "what is killed leaves no file: it never has a name")
        self.assertIn(f"the memory limit is not kept: the swap file cannot be written (errno {errno.ENOSPC})",
                      (self.folder / "log").read_text())
        stats = json.loads(self.stats.read_text())
        self.assertGreater(stats["write_errors"], 0)
        self.assertGreater(stats["not_stored_pages"], 0)
        self.assertGreater(stats["refaults"], 100, "what was stored comes back")
        self.assertEqual(0, stats["lost_pages"])

    def test_TheLimitOfASessionIsChangedWhileItRuns(self):
        self.limits_while_it_runs("1G", "6M", "none")

    def test_TheLimitOfEachVmIsChangedWhileItRuns(self):
        self.limits_while_it_runs("none", "none,vm=6M", "none,vm=none")

    def test_AProgramStartedWithoutALimitGetsOneWhileItRuns(self):
        self.limits_while_it_runs(None, "6M", "none")

    def test_WhomNoLimitReachesIsNamed(self):
        name = f"swapping-{os.getpid()}"
        with self.start(16, None, options=[f"--session={name}"], ms=120000, denied=[DENIED]) as run:
            pid = child_of(run.pid)
            run.stdout.readline()
            told = subprocess.run([TOOL, "limit", f"--session={name}", "6M"], capture_output=True, text=True, check=False)
            none = subprocess.run([TOOL, "limit", f"--session={name}", "none"], capture_output=True, text=True, check=False)
            os.kill(pid, signal.SIGKILL)
        self.assertNotEqual(0, told.returncode)
        self.assertIn(f"program {pid} of session {name} runs without a limit", told.stderr)
        self.assertEqual((0, ""), (none.returncode, none.stderr))

    def limits_while_it_runs(self, first, less, more):
        name = f"swapping-{os.getpid()}"
        options = [f"--session={name}", *([] if first else ["--swap", self.folder])]
        with self.start(16, first, options=options, ms=120000) as run:
            pid = child_of(run.pid)
            _, start, size = run.stdout.readline().split()

            def soon(holds):
                for _ in range(5000):
                    if holds(resident_of(pid, int(start, 16), int(size))):
                        return True
                    time.sleep(0.01)
                return False
            all_there = soon(lambda resident: resident >= int(size))
            subprocess.run([TOOL, "limit", f"--session={name}", less], check=True)
            limited = soon(lambda resident: resident <= 6 * MIB)
            subprocess.run([TOOL, "limit", f"--session={name}", more], check=True)
            os.kill(pid, signal.SIGKILL)
        self.assertTrue(all_there)
        self.assertTrue(limited)

    def test_TheWorkingSetIsToldOverTime(self):
        with self.start(16, "64M", ms=1500) as run:
            told = run.stdout.read()
        self.assertEqual(0, run.returncode, told)
        samples = [json.loads(line) for line in self.samples.read_text().splitlines()]
        self.assertGreater(len(samples), 3)
        self.assertTrue(all(a["at_ns"] < b["at_ns"] for a, b in zip(samples, samples[1:])))
        self.assertGreater(max(s["working_set"] for s in samples), MIB)
        self.assertIn("working set ", (self.folder / "log").read_text())


if __name__ == "__main__":
    unittest.main()
