# SPDX-License-Identifier: Apache-2.0
"""`make install` gives a package that a stranger's project builds against, and a tool that finds its
engine wherever the prefix is."""
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"


def run(*command, **more):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, **more)
    if done.returncode:
        raise AssertionError(f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="stagetwo-install-")
        cls.prefix = Path(cls.folder.name) / "prefix"
        run("cmake", "--install", BUILD, "--prefix", cls.prefix)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_ConsumerProjectBuildsAndRuns(self):
        build = Path(self.folder.name) / "consumer"
        run("cmake", "-S", ROOT / "tests/install/consumer", "-B", build, "-G", "Ninja",
            f"-DCMAKE_PREFIX_PATH={self.prefix}")
        run("ninja", "-C", build)
        self.assertIn("an overlap is refused", run(build / "consumer"))
        self.assertIn("is reached no more", run(build / "devices"))

    def test_PrefixHoldsNoInternalHeader(self):
        self.assertEqual([], sorted(self.prefix.rglob("*_internal.h")))

    def test_InstalledToolFindsItsEngine(self):
        tool = self.prefix / "bin/stagetwo"
        self.assertTrue(tool.exists(), "bin/stagetwo is not installed")
        self.assertEqual("hello\n", run(tool, "run", "--", "/bin/echo", "hello"))


if __name__ == "__main__":
    unittest.main()
