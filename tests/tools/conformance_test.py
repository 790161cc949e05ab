# SPDX-License-Identifier: Apache-2.0
"""The harness judges as tests/conformance/expected says, and finds what is missing on either side."""
import contextlib
import importlib.machinery
import importlib.util
import io
import mmap
import os
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_loader = importlib.machinery.SourceFileLoader("conformance", str(ROOT / "tools/conformance"))
_spec = importlib.util.spec_from_loader("conformance", _loader)
conformance = importlib.util.module_from_spec(_spec)
sys.modules["conformance"] = conformance
sys.dont_write_bytecode = True
_loader.exec_module(conformance)
conformance_limit = conformance.conformance_limit


def read(text):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
        f.write(text)
        f.flush()
        return conformance.read_expected(Path(f.name))


def judged(line, outcome, output=""):
    run = read(line)[0]
    conformance.judge(run, outcome, "why", output)
    return run.status


class Sweep(unittest.TestCase):
    def judged(self, sites, status="passed", name="a_fail_nth"):
        run, = read(f"{name} : pass\n")
        run.status = status
        conformance.judge_sweep(run, "ok 1\n" + "".join(f"stagetwo: fail-nth: {len(s)} sites failed: {' '.join(s)}\n"
                                                       for s in sites))
        return run

    def test_OfEnoughSitesPassesAndTellsThem(self):
        run = self.judged([["iommu.area", "iommu.frames"], [f"site.{i}" for i in range(8)] + ["iommu.area"]])
        self.assertEqual(("passed", 10), (run.status, len(run.sites)))
        self.assertIn("iommu.frames", run.sites)

    def test_OfFewerFails(self):
        self.assertEqual("failed", self.judged([[f"site.{i}" for i in range(9)]]).status)

    def test_OfNoneFails(self):
        self.assertEqual(("failed", []), (self.judged([]).status, self.judged([]).sites))

    def test_WhatTellsOfNoneAndIsNoSweepPasses(self):
        self.assertEqual("passed", self.judged([], name="a_test").status)


class ExpectedFile(unittest.TestCase):
    def test_ALineIsARunWithItsArguments(self):
        run, = read("# words\n\nx86_64/a_test -b 64M : later WHAT it needs\n")
        self.assertEqual(("x86_64/a_test", ["-b", "64M"], "later", "WHAT it needs"),
                         (run.name, run.arguments, run.expect, run.text))

    def test_RefusesALineItDoesNotUnderstand(self):
        for line in ("a_test", "a_test : maybe", "a_test : pass but", "a_test : skip", "a_test : reach text"):
            with self.assertRaises(SystemExit, msg=line):
                read(line)

    def test_ALineMayHaveALimitOfMemory(self):
        run, = read("--memory-limit=16M a_test -b 64M : pass\n")
        self.assertEqual(("a_test", ["-b", "64M"], "16M"), (run.name, run.arguments, run.limit))
        self.assertEqual("--memory-limit=16M a_test -b 64M", run.title())
        for line in ("--swap=/tmp a_test : pass", "--memory-limit=16M : pass"):
            with self.assertRaises(SystemExit, msg=line):
                read(line)

    def test_OursNamesEachRunOnce(self):
        runs = conformance.read_expected(ROOT / "tests/conformance/expected/kvm.txt")
        titles = [r.title() for r in runs]
        self.assertEqual(len(titles), len(set(titles)))
        self.assertEqual(85, len({r.name for r in runs if not r.name.endswith(".sh")}),
                         "the suite of 6.12 has 85 programs")


class Limit(unittest.TestCase):
    SMAPS = """\
7f0000000000-7f0000010000 rw-p 00000000 00:00 0 {name}
Rss:                  64 kB
VmFlags: rd wr mr mw me ac{flags}
7f0000020000-7f0000030000 r--p 00000000 fe:00 12 /usr/lib/libc.so.6
Rss:                  32 kB
VmFlags: rd mr mw me
"""

    def test_CountsTheClientsAnonymousMemoryAlone(self):
        def count(smaps):
            return conformance_limit.client_memory(smaps)[0]
        self.assertEqual(65536, count(self.SMAPS.format(name="", flags="")))
        self.assertEqual(65536, count(self.SMAPS.format(name="[heap]", flags="")))
        self.assertEqual(0, count(self.SMAPS.format(name="[stack]", flags="")))
        self.assertEqual(0, count(self.SMAPS.format(name="", flags=" dd")), "the engine's own")

    def test_CountsSharedMemoryByItsFileWhetherItHasADescriptorOrNot(self):
        with mmap.mmap(-1, 4 * mmap.PAGESIZE) as mapped, open(os.memfd_create("open"), "wb") as opened:
            none = conformance_limit.sample(os.getpid(), "/none")[1]
            mapped[0] = mapped[mmap.PAGESIZE] = 1
            self.assertEqual(2 * mmap.PAGESIZE, conformance_limit.sample(os.getpid(), "/none")[1] - none)
            os.pwrite(opened.fileno(), b"12", mmap.PAGESIZE - 1)
            self.assertEqual(4 * mmap.PAGESIZE, conformance_limit.sample(os.getpid(), "/none")[1] - none)

    def verdict(self, most, swap=1, **stats):
        sampler = conformance_limit.Sampler("64M")
        sampler.most, sampler.swap, sampler.looks = most << 20, swap, 1
        sampler.stats = {"refaults": 1, "lost_pages": 0} | stats
        return sampler.verdict()[0]

    def test_TheLimitHolds(self):
        self.assertTrue(self.verdict(83))
        self.assertFalse(self.verdict(84), "five percent and 16 MiB are 83.2 MiB")
        self.assertFalse(self.verdict(60, swap=0))
        self.assertFalse(self.verdict(60, refaults=0))
        self.assertFalse(self.verdict(60, lost_pages=1))


    def test_WhereTheStoreIsAsItIsItsBytesAreAskedForInPlaceOfTheFiles(self):
        sampler = conformance_limit.Sampler("64M,compressed")
        sampler.most, sampler.looks, sampler.stats = 60 << 20, 1, {"refaults": 1, "lost_pages": 0}
        self.assertFalse(sampler.verdict()[0])
        sampler.most_compressed = 1
        self.assertTrue(sampler.verdict()[0])
        for limit, none_of_it in (("64M", True), ("64M,compressed", False)):
            with conformance_limit.Sampler(limit) as asked:
                self.assertIn("--memory-limit=64M", asked.options)
                self.assertEqual(none_of_it, "--compressed=0" in asked.options)


class Judgement(unittest.TestCase):
    def test_PassWantsAnEndWithoutFailure(self):
        self.assertEqual(["passed", "failed", "failed", "failed"],
                         [judged("a : pass", o) for o in ("pass", "fail", "skip", "timeout")])

    def test_SkipWantsTheTestToSaySo(self):
        self.assertEqual(["failed", "failed", "skipped", "failed"],
                         [judged("a : skip no SEV", o) for o in ("pass", "fail", "skip", "timeout")])

    def test_ReachWantsTheText(self):
        line = 'a : reach "slots: 32764"'
        self.assertEqual("passed", judged(line, "fail", "…slots: 32764\n"))
        self.assertEqual("failed", judged(line, "fail", "slots: 8"))
        self.assertEqual("failed", judged(line, "pass", "slots: 32764"), "an unexpected pass")

    def test_LaterNeverPasses(self):
        self.assertEqual(["failed", "skipped", "skipped", "skipped"],
                         [judged("a : later guest_memfd", o) for o in ("pass", "fail", "skip", "timeout")])


class Outcome(unittest.TestCase):
    def test_FourIsASkipWithItsReason(self):
        self.assertEqual(("skip", "Requirement not met: x"),
                         conformance.outcome_of(4, "Random seed: 1\n1..0 # SKIP - Requirement not met: x\n"))

    def test_NoDeviceIsNoSkip(self):
        text = "1..0 # SKIP - lib/kvm_util.c:34: fd >= 0; Failed to open '/dev/kvm'\n"
        self.assertEqual("fail", conformance.outcome_of(4, text)[0])

    def test_APassThatLeftOutItsModeIsASkip(self):
        text = "Log mode 'dirty-ring' not supported, skipping test\n"
        self.assertEqual(("skip", text.strip()), conformance.outcome_of(0, text))

    def test_APassInPartSaysSo(self):
        text = "Skipping tests for KVM_MEM_GUEST_MEMFD memory regions\n"
        self.assertEqual(("pass", "in part: " + text.strip()), conformance.outcome_of(0, text))
        self.assertEqual(("pass", ""), conformance.outcome_of(0, "# Totals: pass:4 fail:0 xpass:0 skip:0\n"))

    def test_ASignalIsAFailure(self):
        self.assertEqual(("fail", "signal 11: last"), conformance.outcome_of(-11, "first\nlast\n"))

    def test_AnAssertionIsQuoted(self):
        text = "==== Test Assertion Failure ====\n  lib/x.c:1: ret == 0\n  pid=1 tid=1 errno=22\n     1\t0x1: f\n  words\n"
        self.assertEqual("exit status 254: lib/x.c:1: ret == 0; words", conformance.outcome_of(254, text)[1])


class Report(unittest.TestCase):
    def test_WhatFailedIsSaidOnceMoreAtTheEndWithTheEndOfItsLog(self):
        run = read("a_test -x : pass")[0]
        run.status, run.reason = "failed", "the limit was exceeded"
        with tempfile.TemporaryDirectory() as folder:
            log = conformance.log_of(Path(folder), run)
            log.write_text("".join(f"line {n}\n" for n in range(100)))
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                conformance.print_failures([("kvm", run, log)])
        said = out.getvalue()
        self.assertIn("FAILED: kvm a_test -x", said)
        self.assertIn("the limit was exceeded", said)
        self.assertIn("line 99", said)
        self.assertNotIn("line 59\n", said)

    def test_NothingIsSaidWhereNothingFailed(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            conformance.print_failures([])
        self.assertEqual("", out.getvalue())


class Device(unittest.TestCase):
    def test_AnOpenOfAWatchedFileIsNoticed(self):
        device = conformance.Device()
        with tempfile.NamedTemporaryFile() as f:
            self.assertTrue(device.watch(f.name.encode()))
            self.assertFalse(device.was_opened())
            with open(f.name, "rb"):
                pass
            self.assertTrue(device.was_opened())
            self.assertFalse(device.was_opened(), "noticed once")


if __name__ == "__main__":
    unittest.main()
