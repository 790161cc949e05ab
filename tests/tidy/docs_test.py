# SPDX-License-Identifier: Apache-2.0
"""What the documents say is there, is there."""
import re
import unittest
from pathlib import Path

import house

README_LINES = 100
TOPS = ("src/", "tests/", "docs/", "tools/", "bench/", "examples/", "cmake/", ".ci/")


def documents():
    return [p for p in house.files() if p.suffix == ".md"]


def targets():
    return set(re.findall(r"^([a-z]+):", house.text(Path("Makefile")), re.MULTILINE))


def made(path):
    """The `make X` commands a document tells people to type."""
    return set(re.findall(r"`make ([a-z]+)", house.text(path))) | set(
        re.findall(r"^\s+(?:\$ )?make ([a-z]+)", house.text(path), re.MULTILINE))


class Docs(unittest.TestCase):
    def test_EveryMakeCommandExists(self):
        house.report(self, [f"{p}: there is no `make {t}`" for p in documents() for t in made(p) - targets()])

    def test_HackingNamesEveryMakeCommand(self):
        public = set(re.findall(r"^([a-z]+):[^\n]*## ", house.text(Path("Makefile")), re.MULTILINE)) - {"all"}
        self.assertEqual(set(), public - made(Path("HACKING.md")))

    def test_ReadmeAndCiRunTheSameCommands(self):
        commands = re.findall(r"^make ([a-z]+)$", house.text(Path(".ci/run")), re.MULTILINE)
        self.assertEqual(["test", "conformance"], commands)
        self.assertEqual(set(), set(commands) - made(Path("README.md")))

    def test_EveryPathInADocumentExists(self):
        rooms = {room.split("/")[0] for room in house.floors()}
        offences = []
        for p in documents():
            for word in re.findall(r"`([^`\s]+)`|\]\(([^)\s]+)\)", house.text(p)):
                path = (word[0] or word[1]).split("#")[0].split(":")[0]
                if word[1] and not re.match(r"[a-z]+:", word[1]) and path:
                    if not (house.ROOT / p.parent / path).exists():
                        offences.append(f"{p}: the link {path} leads nowhere")
                elif path.startswith(TOPS) and not re.search(r"[<>*{}…$]|NAME|NNNN|ROOM|PRESET|SUITE", path):
                    # A pair is named by its stem.
                    if not (house.ROOT / path).exists() and not list(house.ROOT.glob(path + ".*")):
                        offences.append(f"{p}: {path} does not exist")
                elif re.fullmatch(r"[a-z0-9_/]+\.(h|cc)", path) and path.split("/")[0] in rooms:
                    if not (house.ROOT / "src" / path).exists():
                        offences.append(f"{p}: src/{path} does not exist")
        house.report(self, offences)

    def test_JourneysNameFilesAndFunctionsThatExist(self):
        words = set(re.findall(r"\w+", "\n".join(house.text(p) for p in house.code("src"))))
        offences = []
        for p in documents():
            if p.parts[:2] != ("docs", "journeys"):
                continue
            for word in re.findall(r"`([^`\n]+)`", house.text(p)):
                if word.startswith("tests/"):
                    continue  # any document: test_EveryPathInADocumentExists
                if re.fullmatch(r"[a-z0-9_/]+\.(cc|h)", word) and "/" in word:
                    if not (house.ROOT / "src" / word.removeprefix("src/")).exists():
                        offences.append(f"{p}: {word} does not exist")
                elif match := re.fullmatch(r"(?:[\w]+::)*(\w+)\(\)", word):
                    if match[1] not in words:
                        offences.append(f"{p}: {word} does not exist in src/")
        house.report(self, offences)

    def test_EachStepOfAJourneyIsAFileAndAFunctionInIt(self):
        offences = []
        for p in documents():
            if p.parts[:2] != ("docs", "journeys"):
                continue
            for step in re.findall(r"^\| *\d+ \|([^|]*)\|", house.text(p), re.MULTILINE):
                path, functions = None, 0
                for word in re.findall(r"`([^`]+)`", step):
                    if word.endswith((".cc", ".h")):
                        path = Path("src", word)
                        continue
                    functions += 1
                    name = word.removesuffix("()").split("::")[-1]
                    if path is None or not re.search(rf"\b{name}\b *[({{]", house.bare(path)):
                        offences.append(f"{p}: {word} does not stand in {path}")
                if functions == 0:
                    offences.append(f"{p}: a step names no function:{step}")
        house.report(self, offences)

    def test_ARoomsReadmeIsAPage(self):
        rooms = [p for p in house.files() if p.parts[0] == "src" and p.name == "README.md"]
        house.report(self, [f"{p}: {house.text(p).count(chr(10))} lines; what is more than a page goes to docs/"
                            for p in rooms if house.text(p).count("\n") > README_LINES])

    def test_DecisionsAreNumberedAndListed(self):
        records = [p for p in house.files() if p.parts[:2] == ("docs", "decisions") and p.name != "README.md"]
        numbers = [p.name[:4] for p in records]
        index = house.text(Path("docs/decisions/README.md"))
        offences = [f"{p}: a name is NNNN-title.md" for p in records if not re.match(r"\d{4}-[a-z0-9-]+\.md$", p.name)]
        offences += [f"the number {n} is taken twice" for n in set(numbers) if numbers.count(n) > 1]
        offences += [f"docs/decisions/README.md does not list {p.name}" for p in records if p.name not in index]
        for p in records:
            for part in ("State:", "## Context", "## Decision", "## Alternatives", "## Consequences",
                         "## How we will notice"):
                if part not in house.text(p):
                    offences.append(f"{p}: no '{part}'")
        house.report(self, offences)


if __name__ == "__main__":
    unittest.main()
