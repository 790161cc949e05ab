# SPDX-License-Identifier: Apache-2.0
"""examples/mdev_hello: a device of one's own, and two clients that it keeps apart."""
import subprocess
import unittest
from pathlib import Path

HELLO = Path(__file__).resolve().parents[2] / "build/examples/mdev_hello"
STORY = """\
post   has 2 left
alice  asked for 0x100000: fault 0x00, its memory says "hello from a device"
bob    asked for 0x100000: fault 0x79, its memory says ""
bob    asked for 0x100000: fault 0x00, its memory says "hello from a device"
"""


class MdevHello(unittest.TestCase):
    def test_TellsItsStory(self):
        done = subprocess.run([str(HELLO)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                              timeout=60)
        self.assertEqual((0, STORY, ""), (done.returncode, done.stdout, done.stderr))


if __name__ == "__main__":
    unittest.main()
