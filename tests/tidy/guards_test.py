# SPDX-License-Identifier: Apache-2.0
"""Each guard of the house is removed by a test, and the checks that docs/checks*.md list have the tests they name."""
import re
import unittest
from pathlib import Path

import house

CHECKS = {Path("docs/checks.md"): list(range(1, 21)),
          Path("docs/checks-private-memory.md"): list(range(1, 21)),
          Path("docs/checks-notifiers.md"): [*range(1, 12), 15, 16, 19, 20, 12, 13, 14, 17, 18]}
LOCKING = Path("docs/locking.md")
SECURE_GUESTS = Path("docs/checks-secure-guests.md")
DEVICES = Path("docs/checks-devices.md")
# One that listens only while its maker looks, and keeps nothing: tests/unit/mirror/snapshot_test.cc.
# Or that holds no translation and lets go at the end of a change: tests/unit/abi/vfio/mappings_test.cc.
LISTENS_FOR_A_CALL = {"Watch", "Mappings"}


def guards():
    """Of every room; base has the macro."""
    return {name for p in house.code("src") if p.parts[1] != "base"
            for name in re.findall(r"\bST_GUARD\(\s*([a-z0-9_]+)", house.bare(p))}


def removed():
    return {name for p in house.code("tests") if p.parts[1] == "mutation"
            for name in re.findall(r'"([a-z0-9_]+)"', house.text(p))}


def tests():
    """Suite.Name of every test, a parameterised one without its instances."""
    return {f"{m[0]}.{m[1]}" for p in house.code("tests")
            for m in re.findall(r"\b(?:TYPED_)?TE?ST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\s*\)", house.bare(p))}


class Guards(unittest.TestCase):
    def test_EveryGuardIsRemovedBySomeTest(self):
        house.report(self, [f"no test of tests/mutation removes ST_GUARD({g})" for g in sorted(guards() - removed())])

    def test_EveryNamedTestExists(self):
        known = tests()
        for path in [*CHECKS, SECURE_GUESTS, DEVICES, LOCKING]:
            named = set(re.findall(r"`(\w+\.[A-Z]\w+)`", house.text(path)))
            self.assertTrue(named)
            house.report(self, [f"{path}: there is no test {t}" for t in sorted(named - known)])

    def test_EveryCheckHasATest(self):
        for path, numbers in CHECKS.items():
            rows = re.findall(r"^\| (\d+) \|.*$", house.text(path), re.MULTILINE)
            self.assertEqual([str(n) for n in numbers], rows)
            for row in re.findall(r"^\| \d+ \|.*$", house.text(path), re.MULTILINE):
                self.assertRegex(row, r"`\w+\.[A-Z]\w+`")

    def test_EveryCheckOfDevicesHasATest(self):
        """All but S4-18, which is out, and those that name others or figures."""
        rows = dict(re.findall(r"^\| (S4-\d+|I\d+) \|(.*)$", house.text(DEVICES), re.MULTILINE))
        self.assertEqual([f"S4-{n}" for n in range(1, 22)] + [f"I{n}" for n in range(1, 24)], list(rows))
        for name, row in rows.items():
            if name not in {"S4-11", "S4-12", "S4-13", "S4-14", "S4-18", "S4-21"}:
                self.assertRegex(row, r"`\w+\.[A-Z]\w+`", name)

    def test_EveryCheckOfSecureGuestsHasATest(self):
        """S0-1 to S0-24, W1 to W15, DOC-1 to DOC-5, and what upstream mended: races by a schedule."""
        rows = dict(re.findall(r"^\| (S0-\d+|A7-\d+|W\d+|DOC-\d) \|(.*)$", house.text(SECURE_GUESTS), re.MULTILINE))
        names = ([f"S0-{n}" for n in range(1, 25)] + [f"A7-{n}" for n in range(1, 22)] +
                 [f"W{n}" for n in range(1, 16)] + [f"DOC-{n}" for n in range(1, 6)])
        self.assertEqual(sorted(names), sorted(rows))
        for name, row in rows.items():
            prefix = name.replace("-", "_" if name[0] == "S" else "")
            number = re.sub(r"\d+$", lambda m: m[0].zfill(1 if name[0] == "D" else 2), prefix)
            self.assertRegex(row, rf"`\w+\.{number}_" if name[0] != "A" else r"`\w+\.[A-Zt]\w+`", name)
        for race in (2, 3, 4, 5, 6, 14, 15, 17, 21):
            self.assertIn("`SecurePages.", rows[f"A7-{race}"])

    def test_EveryGuardOfACheckExists(self):
        for path in CHECKS:
            named = set(re.findall(r"ST_GUARD\((\w+)\)", house.text(path)))
            house.report(self, [f"{path}: there is no guard {g}" for g in sorted(named - guards())])

    def test_EverySubscriberOfTheBellRunsTheContract(self):
        """R1 to R13: a class of src that listens is named by a file of tests that instantiates the suite."""
        listeners = {m[0]: p for p in house.code("src")
                     for m in re.findall(r"^class (\w+) (?:final )?: [^{;]*\b(MmuNotifier|IntervalNotifier)\b",
                                         house.bare(p), re.MULTILINE)}
        self.assertTrue(listeners)
        suites = [house.bare(p) for p in house.code("tests")
                  if "INSTANTIATE_TYPED_TEST_SUITE_P" in house.bare(p) and "NotifierContract" in house.bare(p)]
        house.report(self, [f"{path}: nobody runs NotifierContract for {name}" for name, path in listeners.items()
                            if name not in LISTENS_FOR_A_CALL
                            and not any(re.search(rf"\b{name}\b", s) for s in suites)])

    def test_EachObligationStandsBesideTheCodeThatDischargesIt(self):
        """The table of docs/locking.md names files; each says which obligation it is about."""
        rows = re.findall(r"^\| (O\d) \|(.*)$", house.text(LOCKING), re.MULTILINE)
        self.assertEqual([f"O{n}" for n in range(1, 9)], [name for name, _ in rows])
        for name, row in rows:
            files = re.findall(r"`(src/[a-z0-9_/]+\.(?:cc|h))`", row)
            self.assertTrue(files, name)
            house.report(self, [f"{f} does not say ({name})" for f in files
                                if not re.search(rf"\b{name}\b", house.text(Path(f)))])


if __name__ == "__main__":
    unittest.main()
