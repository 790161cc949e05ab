# SPDX-License-Identifier: Apache-2.0
"""The kernel's own performance tests and one of ours, the same binary turn about under `stagetwo run` and on the
machine's /dev/kvm. Each figure is the median of the rounds; its ratio says how many times as fast ours is.
Without /dev/kvm the figures stand alone, without yardstick and target.
"""
import os
import re
import statistics
import subprocess
from pathlib import Path

SLOTS = 32763  # What KVM_CAP_NR_MEMSLOTS leaves to a test besides slot 0.


class Figure:
    """One figure of a test: where its number stands in the output, and what it should come to."""

    def __init__(self, name, unit, pattern, scale=1.0, at_least=None, more_is_better=False):
        self.name, self.unit, self.pattern, self.scale = name, unit, pattern, scale
        self.at_least, self.more_is_better = at_least, more_is_better
        self.ours, self.theirs = [], []

    def read(self, output):
        numbers = re.findall(self.pattern, output, re.MULTILINE)
        return statistics.mean(float(n) for n in numbers) * self.scale if numbers else None

    def row(self, yardstick):
        ours = statistics.median(self.ours)
        theirs = statistics.median(self.theirs) if self.theirs else None
        ratio = None
        if theirs:
            ratio = ours / theirs if self.more_is_better else theirs / ours
        bounded = ratio is not None and self.at_least is not None
        return {"room": "kernel", "name": self.name, "unit": self.unit, "value": ours,
                "yardstick": yardstick if theirs else None, "yardstick_value": theirs, "ratio": ratio,
                "target": f">= {self.at_least:g}" if bounded else None,
                "met": ratio >= self.at_least if bounded else None}


def dirty_log(name, line, at_least=None):
    return Figure(f"dirty log, 256 MiB: {name}", "ms", rf"{line} time: ([\d.]+)s", 1e3, at_least)


def memslots(number, name, slots):
    """-s counts slot 0, too. Two seconds, so that a round of all tests stays below a minute."""
    arguments = ["-f", str(number), "-e", str(number), "-s", str(slots), "-l", "2"]
    count = SLOTS if slots < 0 else slots - 1
    return arguments, Figure(f"{name}, {count} slots", "us", r"^Done \d+ iterations, avg ([\d.]+)s each", 1e6, 1)


def plan():
    """(program, arguments, figures)"""
    tests = [
        ("demand_paging_test", ["-b", "256M"],
         [Figure("demand paging, 256 MiB", "pages/s", r"^Overall demand paging rate:\s+([\d.]+)", 1, 10, True)]),
        ("dirty_log_perf_test", ["-b", "256M"],
         [dirty_log("populate", "Populate memory"), dirty_log("enable", "Enabling dirty logging"),
          dirty_log("a pass that dirties all", r"Iteration \d+ dirty memory", 5),
          dirty_log("get", r"Iteration \d+ get dirty log"), dirty_log("clear", r"Iteration \d+ clear dirty log"),
          dirty_log("disable", "Disabling dirty logging")]),
        ("dirty_harvest", [],
         [Figure("get of 4096 dirty pages beside their vCPU", "us", r"^Harvest \d+ beside the guest time: ([\d.]+)s",
                 1e6)]),
    ]
    for number, name, slots in ((3, "slot move, active", -1), (4, "slot move, inactive", -1),
                                (0, "map", 512), (1, "unmap", 512), (2, "unmap in chunks", 512)):
        arguments, figure = memslots(number, name, slots)
        figures = [figure]
        if number == 3:
            figures.append(Figure(f"set-up of {SLOTS} slots", "ms", r"^Test took ([\d.]+)s for slot setup", 1e3, 1))
        tests.append(("memslot_perf_test", arguments, figures))
    return tests


def run(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                              timeout=300, cwd="/tmp")
    except subprocess.TimeoutExpired:
        print(f"bench: {' '.join(command)}: not over after 300 s")
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None


def describe(pages_per_second):
    """Whose figures the yardstick's are; a ratio means nothing without it."""
    vendors = [v for v in ("kvm_pvm", "kvm_amd", "kvm_intel") if Path(f"/sys/module/{v}").exists()]
    vendor = vendors[0] if vendors else "its module unknown"
    fault = f"{1e6 / pages_per_second:.0f} us a new page in this run" if pages_per_second else "not measured"
    if vendor == "kvm_pvm":
        return (f"/dev/kvm: a PVM without two-dimensional paging, about 33 us a fault ({fault}); on hardware KVM "
                "the ratios would be other ones")
    return f"/dev/kvm: {vendor} ({fault})"


def measure(stagetwo, suite, ours, rounds):
    """`suite` and `ours` are the folders of the programs. Answers (rows, the yardstick in words or None)."""
    kernel = os.access("/dev/kvm", os.R_OK | os.W_OK)
    if not kernel:
        print("bench: there is no /dev/kvm to hold the figures against")
    tests = plan()
    for program, arguments, figures in tests:
        print(f"bench: {program} {' '.join(arguments)}", flush=True)
        folder = ours if (ours / program).exists() else suite
        command = [str(folder / program), *arguments]
        for _ in range(rounds):  # Turn about, so that a change of weather hits both.
            for prefix, which in (([str(stagetwo), "run", "--"], "ours"), ([], "theirs")):
                if which == "theirs" and not kernel:
                    continue
                output = run(prefix + command)
                for figure in figures:
                    number = figure.read(output) if output else None
                    if number is not None:
                        getattr(figure, which).append(number)
    paging = tests[0][2][0]
    yardstick = describe(statistics.median(paging.theirs) if paging.theirs else None) if kernel else None
    rows = []
    for program, _, figures in tests:
        for figure in figures:
            if figure.ours:
                rows.append(figure.row(yardstick))
            else:
                print(f"skipped: {figure.name}: {program} did not tell it")
    return rows, yardstick


def print_table(rows, yardstick):
    width = max(len(r["name"]) for r in rows)
    print(f"\nheld against {yardstick or 'nothing: there is no /dev/kvm here'}")
    print(f"{'figure':{width}}  {'stagetwo':>10} {'/dev/kvm':>10} {'unit':8} {'times as fast':>13}  {'target':9} met")
    for r in rows:
        met = {True: "yes", False: "NO", None: "-"}[r["met"]]
        theirs = "-" if r["yardstick_value"] is None else f"{r['yardstick_value']:.4g}"
        ratio = "-" if r["ratio"] is None else f"{r['ratio']:.2f}"
        print(f"{r['name']:{width}}  {r['value']:>10.4g} {theirs:>10} {r['unit']:8} {ratio:>13}  "
              f"{r['target'] or '-':9} {met}")
