# SPDX-License-Identifier: Apache-2.0
"""Each guard of the locks, the tables and the bell is removed by a test, and the checks that docs/checks*.md list have the tests they name."""
import re
import unittest
from pathlib import Path

import house

CHECKS = {Path("docs/checks.md"): list(range(1, 21)),
          Path("docs/checks-private-memory.md"): list(range(1, 21)),
          Path("docs/checks-notifiers.md"): [*range(1, 12), 15, 16, 19, 20]}
LOCKING = Path("docs/locking.md")


def guards():
    """Of the rooms that say so: the locks, the tables, and the bell of host."""
    return {name for p in house.code("src") if p.parts[1] in ("sync", "pt", "stage2") or "notifier" in p.name
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
        for path in [*CHECKS, LOCKING]:
            named = set(re.findall(r"`(\w+\.[A-Z]\w+)`", house.text(path)))
            self.assertTrue(named)
            house.report(self, [f"{path}: there is no test {t}" for t in sorted(named - known)])

    def test_EveryCheckHasATest(self):
        for path, numbers in CHECKS.items():
            rows = re.findall(r"^\| (\d+) \|.*$", house.text(path), re.MULTILINE)
            self.assertEqual([str(n) for n in numbers], rows)
            for row in re.findall(r"^\| \d+ \|.*$", house.text(path), re.MULTILINE):
                self.assertRegex(row, r"`\w+\.[A-Z]\w+`")

    def test_EveryGuardOfACheckExists(self):
        for path in CHECKS:
            named = set(re.findall(r"ST_GUARD\((\w+)\)", house.text(path)))
            everywhere = {name for p in house.code("src")
                          for name in re.findall(r"\bST_GUARD\(\s*([a-z0-9_]+)", house.bare(p))}
            house.report(self, [f"{path}: there is no guard {g}" for g in sorted(named - everywhere)])

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
