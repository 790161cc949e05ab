# SPDX-License-Identifier: Apache-2.0
"""examples/user_dma and examples/vfio_vmm under stagetwo: a process and a guest that drive the dma-engine."""
import ctypes
import re
import resource
import subprocess
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"


def lock_no_more_than(megabytes):
    """Of this process and what it starts; the right to lock without a limit goes."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (megabytes << 20, megabytes << 20))
    drop_of_bounding_set, lock_of_memory = 24, 14  # PR_CAPBSET_DROP, CAP_IPC_LOCK
    ctypes.CDLL(None).prctl(drop_of_bounding_set, lock_of_memory, 0, 0, 0)


def told(program, *arguments, megabytes=None):
    command = [BUILD / "bin/stagetwo", "run", "--", BUILD / "examples" / program, *arguments]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=120,
                          preexec_fn=megabytes and (lambda: lock_no_more_than(megabytes)))
    return done.returncode, done.stdout, done.stderr


class VfioExamples(unittest.TestCase):
    maxDiff = None

    def test_AProcessDrivesItsQueuesAndTheyAreKeptApart(self):
        # In the limit that systems begin with.
        code, story, errors = told("user_dma", "both", "quick", megabytes=8)
        self.assertEqual((0, ""), (code, errors), story)
        self.assertRegex(story, r"two queues of one device, PASIDs 1 and 2")
        self.assertIn('0 bytes, also under b\'s PASID; b reads "only b has this"', story)
        self.assertRegex(story, r"without blocking status 0x[38]3? after 0 bytes")
        self.assertIn("3 MiB arrive by page requests", story)
        self.assertIn("status 0x84, 524288 bytes, at exactly that page", story)

    def test_WhoMayLockTooLittleHearsWhatIsMissing(self):
        code, story, _ = told("user_dma", "both", "quick", megabytes=1)
        self.assertEqual(1, code)
        self.assertRegex(story, r"^mapping 6144 KiB for the device: Cannot allocate memory\. .*RLIMIT_MEMLOCK allows 1024 KiB; "
                                r"this needs 6212 KiB in all: raise it \(ulimit -l")
        code, story, errors = told("user_dma", "sva", "quick", megabytes=1)
        self.assertEqual((0, ""), (code, errors), story)

    def test_AGuestDrivesADeviceThroughItsVmm(self):
        code, story, errors = told("vfio_vmm", "8")
        self.assertEqual((0, ""), (code, errors), story)
        self.assertIn("8 moves of 64 KiB arrived, 8 beyond its memory were refused", story)
        dirty = re.search(r"dirty pages: (\d+) in KVM's log, 1024 in the container's", story)
        self.assertIsNotNone(dirty, story)
        self.assertLess(int(dirty.group(1)), 40)


if __name__ == "__main__":
    unittest.main()
