#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs one file of unittest cases and speaks like a GoogleTest program (tools/run-tests).

    run_unittest.py FILE [--gtest_output=json:FILE] [--gtest_filter=[A:B][-C:D]]
"""
import fnmatch
import importlib.util
import json
import sys
import traceback
import unittest
from pathlib import Path


def case_name(test):
    return f"{type(test).__name__}.{test._testMethodName.removeprefix('test_')}"


def selected(name, pattern):
    wanted, _, unwanted = pattern.partition("-")
    inside = any(fnmatch.fnmatchcase(name, p) for p in (wanted or "*").split(":"))
    return inside and not any(fnmatch.fnmatchcase(name, p) for p in unwanted.split(":") if p)


class Result(unittest.TestResult):
    """Prints the lines GoogleTest prints and keeps what its report holds."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def startTest(self, test):
        super().startTest(test)
        print(f"[ RUN      ] {case_name(test)}", flush=True)
        self.row = {"name": case_name(test).split(".", 1)[1], "suite": type(test).__name__,
                    "status": "RUN", "result": "COMPLETED"}
        self.rows.append(self.row)

    def fail(self, test, error):
        text = "".join(traceback.format_exception(*error))
        if isinstance(error[1], AssertionError):  # The message says it; the stack is ours.
            text = str(error[1])
        print(text)
        self.row.setdefault("failures", []).append({"failure": text})

    addFailure = addError = fail

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.fail(test, error)

    def addSkip(self, test, reason):
        print(reason)
        self.row["result"] = "SKIPPED"

    def stopTest(self, test):
        word = "  FAILED  " if "failures" in self.row else (
            "  SKIPPED " if self.row["result"] == "SKIPPED" else "       OK ")
        print(f"[{word}] {case_name(test)}", flush=True)


def main():
    path, report, pattern = Path(sys.argv[1]).resolve(), None, ""
    for argument in sys.argv[2:]:
        if argument.startswith("--gtest_output=json:"):
            report = argument.partition(":")[2]
        elif argument.startswith("--gtest_filter="):
            pattern = argument.partition("=")[2]
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = Result()
    for group in suite:
        unittest.TestSuite(t for t in group if selected(case_name(t), pattern)).run(result)
    if report:
        suites = {}
        for row in result.rows:
            suites.setdefault(row.pop("suite"), []).append(row)
        Path(report).write_text(json.dumps(
            {"testsuites": [{"name": n, "testsuite": rows} for n, rows in suites.items()]}))
    return 1 if any("failures" in row for row in result.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
