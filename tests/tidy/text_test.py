# SPDX-License-Identifier: Apache-2.0
"""Licences, words, sizes and names."""
import re
import unittest
from pathlib import Path

import house

HEADER_LINES, SOURCE_LINES, FUNCTION_LINES, COLUMNS = 200, 600, 60, 110
SCRIPTS = {Path("Makefile"), Path(".ci/run"), Path(".clang-tidy"), Path("CMakeLists.txt")}


def scripts():
    return [p for p in house.files()
            if p in SCRIPTS or p.name == "CMakeLists.txt" or p.suffix in (".cmake", ".py", ".sh")
            or (p.parts[0] == "tools" and p.suffix == "")]


def own_text():
    """Everything a person wrote here, but the list of words itself."""
    return [p for p in house.files() if p.parts[:2] != ("tests", "tidy") and p.name != "LICENSE"
            and (p.suffix in house.CODE | {".md", ".txt", ".cmake", ".py", ".sh", ".in", ".json", ".supp"}
                 or p in scripts())]


def over_the_limit(case, list_name, measured, limit):
    """Each (name, size) is within the limit or stands in the list, which may only shrink."""
    allowed = house.exceptions(list_name)
    offences = []
    for name, size in measured.items():
        bound = allowed.get(name, limit)
        if size > bound:
            offences.append(f"{name}: {size} lines, the limit is {bound}")
        elif name in allowed and size <= limit:
            offences.append(f"{name}: {size} lines is fine; take it out of exceptions/{list_name}")
    offences += [f"{name} does not exist; take it out of exceptions/{list_name}"
                 for name in allowed if name not in measured]
    house.report(case, offences)


class Text(unittest.TestCase):
    def test_EveryCodeFileNamesItsLicence(self):
        want = "SPDX-License-Identifier: Apache-2.0"
        paths = house.code("src", "tests", "bench", "examples") + scripts()
        house.report(self, [str(p) for p in paths
                            if want not in "\n".join(house.text(p).splitlines()[:2])])

    def test_NoWordHidesUnfinishedWork(self):
        house.report(self, house.hits(
            own_text(), r"\b(TODO|FIXME|XXX|HACK|[Nn]ot implemented|[Uu]nimplemented|[Ff]or now|[Ss]tub)\b",
            house.text))

    def test_EverySkipHasAReason(self):
        house.report(self, house.hits(house.code("tests"), r"GTEST_SKIP\(\)\s*;", house.text))

    def test_NoTextPointsOutsideTheRepository(self):
        house.report(self, house.hits(own_text(), r"\.\./shared|\.library\b|/work/", house.text))

    def test_NoFileIsAJunkDrawer(self):
        house.report(self, [str(p) for p in house.files()
                            if p.parts[0] == "src" and re.fullmatch(r"utils?|common|misc|helpers?|manager", p.stem)])

    def test_HeadersAreShort(self):
        measured = {str(p): house.text(p).count("\n") for p in house.code("src") if p.suffix == ".h"
                    and p.name != "uapi.h"}
        over_the_limit(self, "header_length.txt", measured, HEADER_LINES)

    def test_SourcesAreShort(self):
        measured = {str(p): house.text(p).count("\n") for p in house.code("src", "tests", "bench", "examples")
                    if p.suffix in (".cc", ".c")}
        over_the_limit(self, "source_length.txt", measured, SOURCE_LINES)

    def test_FunctionsAreShort(self):
        measured = {}
        for p in house.code("src", "examples"):
            if p.suffix in (".h", ".cc", ".c"):
                for name, _, size in house.functions(p):
                    key = f"{p}:{name}"
                    measured[key] = max(size, measured.get(key, 0))
        over_the_limit(self, "function_length.txt", measured, FUNCTION_LINES)

    def test_LinesFitAScreen(self):
        house.report(self, [
            f"{p}:{n}: {len(line)} columns" for p in house.code("src", "tests", "bench", "examples")
            for n, line in enumerate(house.text(p).splitlines(), 1) if len(line) > COLUMNS])

    def test_EverySourceHasItsUnitTest(self):
        # At the mirrored place, or by a test that includes the header the source implements: its first.
        tests = {str(p) for p in house.code("tests")}
        included = {i for p in house.code("tests") if p.suffix == ".cc" for _, i in house.includes(p)}

        def tested(source):
            stem = source.relative_to("src").with_suffix("")
            own = [i for _, i in house.includes(source)][:1]
            implements = own and house.room_of(own[0]) == house.room_of(str(stem))
            return f"tests/unit/{stem}_test.cc" in tests or (implements and own[0] in included)

        untested = {str(p) for p in house.code("src") if p.suffix == ".cc" and not tested(p)}
        allowed = set(house.exceptions("untested.txt"))
        house.report(self, [f"{p} has no tests/unit/…/{Path(p).stem}_test.cc" for p in sorted(untested - allowed)]
                     + [f"{p} has its test (or is gone); take it out of exceptions/untested.txt"
                        for p in sorted(allowed - untested)])

    def test_EachUntestedSourceNamesItsTest(self):
        lines = house.text(Path("tests/tidy/exceptions/untested.txt")).splitlines()[1:]
        house.report(self, [line for line in lines if line.strip() and not (
            house.ROOT / line.partition("#")[2].strip()).is_file()])


if __name__ == "__main__":
    unittest.main()
