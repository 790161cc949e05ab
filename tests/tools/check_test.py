# SPDX-License-Identifier: Apache-2.0
"""tools/check asks a source again when something it was built from has changed, and only then."""
import argparse
import contextlib
import importlib.machinery
import importlib.util
import io
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load(root):
    """The tool as a module, at work in another tree."""
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("stagetwo_check", str(ROOT / "tools/check"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("stagetwo_check", loader))
    loader.exec_module(module)
    module.ROOT = root
    return module


class Memory(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="stagetwo-check-")
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name)
        (self.root / "a.h").write_text("int a();\n")
        (self.root / "a.cc").write_text('#include "a.h"\nint a() { return 1; }\n')
        (self.root / "rules").write_text("strict\n")
        self.flags = ""

    def asked(self, verdict="true", limit=60.0):
        """Which sources one run asks, and the cases it counts."""
        check = load(self.root)
        entry = {"file": str(self.root / "a.cc"), "directory": str(self.root),
                 "command": f"c++ {self.flags} -o a.o -c {self.root}/a.cc"}
        asked = []

        def command(one):
            asked.append(Path(one["file"]).name)
            return [verdict]

        with contextlib.redirect_stdout(io.StringIO()):
            options = argparse.Namespace(jobs=1, analysis_limit=limit)
            check.each(options, command, [entry], "analysis", check.Passed("analysis", False, self.root / "rules"))
        return asked, check.TOTAL

    def test_WhatPassedIsNotAskedAgainButCounted(self):
        self.assertEqual((["a.cc"], {"passed": 1, "failed": 0, "skipped": 0}), self.asked())
        self.assertEqual(([], {"passed": 1, "failed": 0, "skipped": 0}), self.asked())

    def test_WhatFailedIsAskedAgain(self):
        self.assertEqual((["a.cc"], {"passed": 0, "failed": 1, "skipped": 0}), self.asked("false"))
        self.assertEqual((["a.cc"], {"passed": 1, "failed": 0, "skipped": 0}), self.asked())

    def test_AnyInputThatChangedAsksAgain(self):
        def change_source(): (self.root / "a.cc").write_text("int a() { return 2; }\n")
        def change_header(): (self.root / "a.h").write_text("int a();  // one\n")
        def change_flags(): self.flags = "-DONE"
        def change_rules(): (self.root / "rules").write_text("lax\n")
        for change in (change_header, change_flags, change_rules, change_source):
            self.asked()
            self.assertEqual([], self.asked()[0])
            change()
            self.assertEqual(["a.cc"], self.asked()[0], change.__name__)

    def test_WhatTheBoundLeavesOutIsSkippedNotPassed(self):
        self.assertEqual(([], {"passed": 0, "failed": 0, "skipped": 1}), self.asked(limit=-1.0))
        self.assertEqual(["a.cc"], self.asked()[0])


class Stages(unittest.TestCase):
    def test_AnUnknownStageIsRefused(self):
        done = subprocess.run([str(ROOT / "tools/check"), "--only", "taste"], capture_output=True, text=True,
                              check=False, stdin=subprocess.DEVNULL)
        self.assertEqual(2, done.returncode)
        self.assertIn("there is no stage 'taste'", done.stderr)


if __name__ == "__main__":
    unittest.main()
