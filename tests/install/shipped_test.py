# SPDX-License-Identifier: Apache-2.0
"""What is shipped contains no switch that only a test may turn (preset `mutation`, schedule seam)."""
import subprocess
import unittest
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
SHIPPED = ["lib/libstagetwo.a", "lib/stagetwo/libstagetwo_preload.so", "bin/stagetwo"]


def symbols(path):
    done = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL)
    return done.stdout


class Shipped(unittest.TestCase):
    def test_NoGuardCanBeRemoved(self):
        for name in SHIPPED:
            with self.subTest(name):
                self.assertTrue((BUILD / name).exists(), f"build/{name} is missing")
                self.assertNotIn("stagetwo::mutation::", symbols(BUILD / name))

    def test_NoScheduleSeam(self):
        for name in SHIPPED:
            with self.subTest(name):
                self.assertTrue((BUILD / name).exists(), f"build/{name} is missing")
                self.assertNotIn("stagetwo::sync::sched::", symbols(BUILD / name))

    def test_TheMutationBuildWouldBeNoticed(self):
        """The look itself works: objects of the preset `mutation` do have the symbol."""
        archives = list((BUILD / "mutation/src/base").glob("libst_base.a"))
        if not archives:
            self.skipTest("build/mutation does not exist; `make test` builds it")
        self.assertIn("stagetwo::mutation::", symbols(archives[0]))


if __name__ == "__main__":
    unittest.main()
