# SPDX-License-Identifier: Apache-2.0
"""The figures beside the kernel are read from what its tests print, and a ratio above 1 is always ours."""
import sys
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import bench_kvm  # noqa: E402

DIRTY_LOG = """Populate memory time: 0.486400000s
Enabling dirty logging time: 0.000020950s

Iteration 1 dirty memory time: 0.100000000s
Iteration 1 get dirty log time: 0.000010000s
Iteration 1 clear dirty log time: 0.000024517s
Iteration 2 dirty memory time: 0.300000000s
Disabling dirty logging time: 0.000078618s
"""
MEMSLOTS = """Testing move active area performance with 1 runs, 5 seconds each
Test took 0.762628460s for slot setup + 5.000990352s all iterations
Done 756237 iterations, avg 0.000006612s each
"""
PAGING = "Per-vcpu demand paging rate:\t113402.85 pgs/sec/vcpu\nOverall demand paging rate:\t113402.85 pgs/sec\n"


class Figures(unittest.TestCase):
    def setUp(self):
        self.by_name = {f.name: f for _, _, figures in bench_kvm.plan() for f in figures}

    def read(self, name, output):
        return self.by_name[name].read(output)

    def test_AreReadFromWhatTheTestsPrint(self):
        self.assertAlmostEqual(113402.85, self.read("demand paging, 256 MiB", PAGING))
        self.assertAlmostEqual(200, self.read("dirty log, 256 MiB: a pass that dirties all", DIRTY_LOG))
        self.assertAlmostEqual(0.01, self.read("dirty log, 256 MiB: get", DIRTY_LOG))
        self.assertAlmostEqual(6.612, self.read("slot move, active, 32763 slots", MEMSLOTS))
        self.assertAlmostEqual(762.62846, self.read("set-up of 32763 slots", MEMSLOTS))
        self.assertIsNone(self.read("map, 511 slots", "Memslot count too high for this test\n"))

    def row(self, ours, theirs, **more):
        figure = bench_kvm.Figure("f", "ms", "", **more)
        figure.ours, figure.theirs = ours, theirs
        return figure.row("stick")

    def test_ATimeIsBetterWhenItIsLess(self):
        row = self.row([1, 2, 90], [10, 8, 9], at_least=4)
        self.assertEqual((2, 9, 4.5, True), (row["value"], row["yardstick_value"], row["ratio"], row["met"]))

    def test_ARateIsBetterWhenItIsMore(self):
        row = self.row([300], [100], at_least=10, more_is_better=True)
        self.assertEqual((3, False, ">= 10"), (row["ratio"], row["met"], row["target"]))

    def test_WithoutTheDeviceThereIsNoRatioAndNoTarget(self):
        row = self.row([5], [], at_least=1)
        self.assertEqual((5, None, None, None), (row["value"], row["ratio"], row["target"], row["met"]))

    def test_EachTargetIsHeldToItsFigure(self):
        targets = {f.name: f.at_least for f in self.by_name.values() if f.at_least}
        self.assertEqual({"demand paging, 256 MiB": 10, "dirty log, 256 MiB: a pass that dirties all": 5,
                          "slot move, active, 32763 slots": 1, "slot move, inactive, 32763 slots": 1,
                          "set-up of 32763 slots": 1, "map, 511 slots": 1, "unmap, 511 slots": 1,
                          "unmap in chunks, 511 slots": 1}, targets)


if __name__ == "__main__":
    unittest.main()
