# SPDX-License-Identifier: Apache-2.0
"""What the conformance harness takes of the machine it gives back, and two runs share it fairly."""
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import conformance_machine as machine  # noqa: E402


class Pool(machine.HugePages):
    """A pool in a folder; it grows up to `most`, as the kernel's does when memory is broken up."""

    def __init__(self, folder, size=0, used=0, most=10_000):
        super().__init__(Path(folder))
        self.used, self.most, self.asked = used, most, []
        self.set(size)

    def set(self, size):
        (self.folder / "nr_hugepages").write_text(f"{size}\n")
        (self.folder / "free_hugepages").write_text(f"{size - self.used}\n")

    def resize(self, pages):
        self.asked.append(pages)
        self.set(min(pages, self.most))


class HugePages(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def test_APoolIsMadeForTheRunAndTheOldSizePutBack(self):
        pool = Pool(self.folder.name, size=4, used=1)
        with pool.at_least(10) as kind:
            self.assertEqual("pool", kind)
            self.assertEqual(10, pool.read("free_hugepages"))
        self.assertEqual(4, pool.read("nr_hugepages"))

    def test_APoolThatIsThereIsNotTouched(self):
        pool = Pool(self.folder.name, size=16)
        with pool.at_least(10) as kind:
            self.assertEqual("pool", kind)
        self.assertEqual([], pool.asked)

    def test_WhereNoneCanBeMadeTheStandInIsNamedAndNothingKept(self):
        pool = Pool(self.folder.name, size=2, most=5)
        with pool.at_least(10) as kind:
            self.assertEqual("standin", kind)
            self.assertEqual(2, pool.read("nr_hugepages"))
        self.assertEqual(2, pool.read("nr_hugepages"))

    def test_AFailureAndAnInterruptPutTheOldSizeBack(self):
        for failure in (RuntimeError, KeyboardInterrupt, SystemExit):
            pool = Pool(self.folder.name, size=3)
            with self.assertRaises(failure):
                with pool.at_least(8):
                    raise failure
            self.assertEqual(3, pool.read("nr_hugepages"))

    def test_WhatARunChangedAndCouldNotPutBackIsPutBack(self):
        pool = Pool(self.folder.name, size=3)
        with pool.at_least(1):
            pool.set(6)
        self.assertEqual(3, pool.read("nr_hugepages"))

    def test_TwoHarnessesOfOneMachineTakeTurns(self):
        one, other, order = Pool(self.folder.name, size=3), machine.HugePages(Path(self.folder.name)), []

        def wait_for_it():
            with other.at_least(1):
                order.append(other.read("nr_hugepages"))
        with one.at_least(8):
            waiter = threading.Thread(target=wait_for_it)
            waiter.start()
            time.sleep(0.05)
            self.assertEqual([], order)
        waiter.join()
        self.assertEqual([3], order, "it found what was there before, not what the first had made")

    def test_AFileThatMayNotBeWrittenMeansNoPool(self):
        pool = machine.HugePages(Path(self.folder.name) / "absent")
        with pool.at_least(1) as kind:
            self.assertEqual("standin", kind)


class Needs(unittest.TestCase):
    def read(self, text):
        with tempfile.NamedTemporaryFile("w") as f:
            f.write(text)
            f.flush()
            return machine.read_needs(Path(f.name))

    def test_TheFirstLineThatMatchesTheWholeTitleCounts(self):
        table = self.read("# words\n\na -v 2 : memory=2 alone\na.* : seconds=7 hugepages=3\n")
        self.assertEqual(machine.Needs(memory=2, alone=True), machine.needs_of(table, "a -v 2"))
        self.assertEqual(machine.Needs(seconds=7, hugepages=3), machine.needs_of(table, "a -v 2 -o"))
        self.assertEqual(machine.Needs(), machine.needs_of(table, "b"))

    def test_ParametersBecomeOptionsOfTheRun(self):
        self.assertEqual([], machine.parameters_of(machine.Needs()))
        needs = self.read("a : kvm=first=1,second=20\n")[0][1]
        self.assertEqual(["--param=kvm.first=1", "--param=kvm.second=20"], machine.parameters_of(needs))
        needs = machine.Needs(module="test_hmm.spm_addr_dev0=0x100,test_hmm.spm_addr_dev1=0x200")
        self.assertEqual(["--param=test_hmm.spm_addr_dev0=0x100", "--param=test_hmm.spm_addr_dev1=0x200"],
                         machine.parameters_of(needs))

    def test_ACapabilityIsTakenFromRootAlone(self):
        needs = self.read("a : without=sys_boot\n")[0][1]
        self.assertEqual(["setpriv", "--bounding-set=-sys_boot", "--"], machine.prefix_of(needs, True))
        self.assertEqual([], machine.prefix_of(needs, False))
        self.assertEqual([], machine.prefix_of(machine.Needs(), True))

    def test_RefusesALineItDoesNotUnderstand(self):
        for line in ("a", "a : memory", "a : alone=1", "a : colour=red"):
            with self.assertRaises(SystemExit, msg=line):
                self.read(line)

    def test_OursMatchesARunWithEachLine(self):
        titles = [line.rpartition(" : ")[0].strip()
                  for line in (ROOT / "tests/conformance/expected/kvm.txt").read_text().splitlines()]
        titles = [t.partition(" : ")[0] for t in titles if t and not t.startswith("#")]
        for pattern, _ in machine.read_needs(ROOT / "tests/conformance/needs/kvm.txt"):
            self.assertTrue(any(pattern.fullmatch(t) for t in titles), f"no run matches {pattern.pattern}")


class Sharing(unittest.TestCase):
    def test_NothingRunsBesideWhatWantsToBeAlone(self):
        alone, other = machine.Needs(alone=True), machine.Needs()
        self.assertTrue(machine.fits(alone, [], 2, 8))
        self.assertFalse(machine.fits(alone, [other], 2, 8))
        self.assertFalse(machine.fits(other, [alone], 2, 8))

    def test_TwoShareTheMemoryAndNeverThePool(self):
        big, small = machine.Needs(memory=5), machine.Needs(memory=3)
        self.assertTrue(machine.fits(small, [big], 2, 8))
        self.assertFalse(machine.fits(big, [big], 2, 8))
        self.assertTrue(machine.fits(machine.Needs(memory=99), [], 2, 8), "one always may")
        self.assertFalse(machine.fits(small, [small, small], 2, 8), "two at once")
        self.assertFalse(machine.fits(machine.Needs(hugepages=1), [machine.Needs(hugepages=1)], 2, 8))

    @dataclasses.dataclass(eq=False)
    class Run:
        needs: machine.Needs

    def test_EachRunHappensOnceTheLonelyFirstThenTheLongest(self):
        wanted = [machine.Needs(seconds=s, alone=a)
                  for s, a in ((1, False), (9, False), (5, True), (3, False))]
        order, most, lock, now = [], [0], threading.Lock(), set()

        def perform(run):
            with lock:
                order.append(run.needs.seconds)
                now.add(run)
                most[0] = max(most[0], len(now))
                self.assertFalse(len(now) > 1 and any(r.needs.alone for r in now))
            time.sleep(0.02)
            with lock:
                now.discard(run)
        machine.run_all([self.Run(n) for n in wanted], perform, 2, 8, machine.Processes())
        self.assertEqual([5, 1, 3, 9], [order[0], *sorted(order[1:])])
        self.assertEqual(1, order[-1])
        self.assertEqual(2, most[0])

    def test_AFailureOfTheHarnessEndsWhatIsUnderWay(self):
        processes = machine.Processes()
        with tempfile.TemporaryDirectory() as folder:
            def perform(run):
                if run.needs.seconds == 1:
                    raise RuntimeError("harness")
                processes.execute(["sleep", "60"], Path(folder) / "log", 60)
            start = time.monotonic()
            with self.assertRaises(RuntimeError):
                machine.run_all([self.Run(machine.Needs(seconds=s)) for s in (1, 2)], perform, 2, 8, processes)
            self.assertLess(time.monotonic() - start, 20)


class Interrupt(unittest.TestCase):
    PROGRAM = """
import signal, sys, tempfile, pathlib
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[2])
import conformance_machine as machine
from conformance_machine_test import Pool, Sharing
pool, processes = Pool(sys.argv[3], size=2), machine.Processes()
machine.end_on_signals()
def perform(run):
    with pool.at_least(8):
        print("under way", flush=True)
        processes.execute(["sleep", "60"], pathlib.Path(sys.argv[3]) / "log", 60)
machine.run_all([Sharing.Run(machine.Needs(hugepages=8))], perform, 2, 8, processes)
"""

    def test_ASignalEndsTheRunAndPutsThePoolBack(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with tempfile.TemporaryDirectory() as folder:
                child = subprocess.Popen([sys.executable, "-c", self.PROGRAM, str(ROOT / "tools"),
                                          str(ROOT / "tests/tools"), folder],
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                         # Under nohup a hang-up is ignored, and that is inherited.
                                         preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
                self.assertEqual("under way\n", child.stdout.readline())
                os.kill(child.pid, number)
                self.assertNotEqual(0, child.wait(timeout=30))
                child.stdout.close()
                self.assertEqual("2\n", (Path(folder) / "nr_hugepages").read_text())

    def test_ASignalThatAnotherThreadGotEndsTheRun(self):
        program = self.PROGRAM.replace('print("under way", flush=True)', """
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        print("under way", flush=True)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)""")
        program = "import threading" + program
        with tempfile.TemporaryDirectory() as folder:
            child = subprocess.Popen([sys.executable, "-c", program, str(ROOT / "tools"),
                                      str(ROOT / "tests/tools"), folder],
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.assertNotEqual(0, child.wait(timeout=30))
            child.stdout.close()


if __name__ == "__main__":
    unittest.main()
