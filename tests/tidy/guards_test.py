# SPDX-License-Identifier: Apache-2.0
"""Each guard of the stage-2 rooms is removed by a test, and the checks that docs/checks*.md list have the tests they name."""
import re
import unittest
from pathlib import Path

import house

CHECKS = [Path("docs/checks.md"), Path("docs/checks-private-memory.md")]


def guards():
    return {name for p in house.code("src") if p.parts[1] in ("sync", "pt", "stage2")
            for name in re.findall(r"\bST_GUARD\(\s*([a-z0-9_]+)", house.bare(p))}


def removed():
    return {name for p in house.code("tests") if p.parts[1] == "mutation"
            for name in re.findall(r'"([a-z0-9_]+)"', house.text(p))}


def tests():
    """Suite.Name of every test, a parameterised one without its instances."""
    return {f"{m[0]}.{m[1]}" for p in house.code("tests")
            for m in re.findall(r"\bTE?ST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\s*\)", house.bare(p))}


class Guards(unittest.TestCase):
    def test_EveryGuardIsRemovedBySomeTest(self):
        house.report(self, [f"no test of tests/mutation removes ST_GUARD({g})" for g in sorted(guards() - removed())])

    def test_EveryNamedTestExists(self):
        known = tests()
        for checks in CHECKS:
            named = set(re.findall(r"`(\w+\.[A-Z]\w+)`", house.text(checks)))
            self.assertTrue(named)
            house.report(self, [f"{checks}: there is no test {t}" for t in sorted(named - known)])

    def test_EveryCheckHasATest(self):
        for checks in CHECKS:
            rows = re.findall(r"^\| (\d+) \|.*$", house.text(checks), re.MULTILINE)
            self.assertEqual([str(n) for n in range(1, 21)], rows)
            for row in re.findall(r"^\| \d+ \|.*$", house.text(checks), re.MULTILINE):
                self.assertRegex(row, r"`\w+\.[A-Z]\w+`")

    def test_EveryGuardOfACheckExists(self):
        known = guards()
        for checks in CHECKS:
            named = set(re.findall(r"ST_GUARD\((\w+)\)", house.text(checks)))
            house.report(self, [f"{checks}: there is no guard {g}" for g in sorted(named - known)])


if __name__ == "__main__":
    unittest.main()
