# SPDX-License-Identifier: Apache-2.0
"""The repository read as data: what the tidy tests share."""
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = {".h", ".cc", ".c", ".S", ".inc"}


@cache
def files():
    """Every file of the repository, as paths relative to its root; build folders and git are not it."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in ("build", ".git") or "__pycache__" in relative.parts:
            continue
        if path.is_file():
            found.append(relative)
    return found


def code(*tops):
    return [p for p in files() if p.parts[0] in tops and p.suffix in CODE]


@cache
def text(path):
    """A file's text; of a file that is not there, none."""
    return (ROOT / path).read_text(errors="replace") if (ROOT / path).is_file() else ""


@cache
def bare(path):
    """The code without comments, and with empty strings: same lines, nothing to be misled by."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"([^(\s]*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)

    def blank(match):
        lines = "\n" * match[0].count("\n")
        return '""' + lines if match[0][0] in '"R' else ("' '" if match[0][0] == "'" else lines)

    # A digit separator is no quote.
    return pattern.sub(blank, re.sub(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])", "", text(path)))


@cache
def includes(path):
    """The quoted includes of a file, with their line numbers."""
    found = []
    for number, line in enumerate(text(path).splitlines(), 1):
        if match := re.match(r'\s*#\s*include\s*"([^"]+)"', line):
            found.append((number, match[1]))
    return found


@cache
def floors():
    """room → floor, from the one place that knows: cmake/StagetwoRoom.cmake."""
    block = re.search(r"set\(STAGETWO_FLOORS(.*?)\)", text(Path("cmake/StagetwoRoom.cmake")), re.DOTALL)
    return {m[1]: int(m[2]) for m in re.finditer(r"([a-z0-9/]+):(\d+)", block[1])}


def room_of(include):
    """The room a path below src/ belongs to, or None."""
    best = None
    for room in floors():
        if include.startswith(room + "/") and (best is None or len(room) > len(best)):
            best = room
    return best


def exceptions(name):
    """A list of offenders that may only shrink: path → the number it may not exceed (or None)."""
    found = {}
    for line in text(Path("tests/tidy/exceptions") / name).splitlines():
        words = line.split("#")[0].split()
        if words:
            found[words[0]] = int(words[1]) if len(words) > 1 else None
    return found


def report(case, offences):
    if offences:
        case.fail("\n".join(offences))


def hits(paths, pattern, read=bare):
    """path:line: text of each match."""
    regex = re.compile(pattern)
    found = []
    for path in paths:
        for number, line in enumerate(read(path).splitlines(), 1):
            if regex.search(line):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    return found


def functions(path):
    """(name, first line, line count) of each function body of a C or C++ file.

    A brace opens a function when it stands outside of any function and what precedes it has a
    parameter list and is no control statement, initialiser or type.
    """
    source = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: "\n" * m[0].count("\n"), bare(path),
                    flags=re.MULTILINE)
    found, stack, head, line = [], [], "", 1
    for character in source:
        if character == "\n":
            line += 1
        if character == "{":
            inside = any(kind == "function" for kind, *_ in stack)
            name = re.search(r"([~\w:]+|operator\s*\S+)\s*\(", head)
            is_function = (not inside and name and not re.search(r"=\s*$", head)
                           and not re.match(r"\s*(?:template\s*<[^{]*>\s*)?"
                                            r"(namespace|class|struct|union|enum|extern)\b(?![^{]*\()", head)
                           and not re.match(r"\s*(class|struct|union|enum)\b", head))
            stack.append(("function" if is_function else "other", name[1] if name else "", line))
            head = ""
        elif character == "}":
            if stack:
                kind, name, start = stack.pop()
                if kind == "function":
                    found.append((name, start, line - start + 1))
            head = ""
        elif character == ";":
            head = ""
        else:
            head += character
    return found
