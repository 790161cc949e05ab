# SPDX-License-Identifier: Apache-2.0
"""What code that lives in a client's process may not do. Everything in src/ but the command line."""
import re
import unittest

import house

ALLOCATING = ("vector string map multimap set multiset unordered_map unordered_set list forward_list deque "
              "queue stack priority_queue function move_only_function any shared_ptr make_shared unique_ptr "
              "make_unique thread jthread mutex shared_mutex recursive_mutex condition_variable future "
              "promise async ostream istream iostream cout cerr stringstream ostringstream fstream ifstream "
              "ofstream to_string stoi regex filesystem locale call_once").split()


def resident():
    return [p for p in house.code("src") if p.parts[1] != "cli"]


def outside(*folders):
    return [p for p in resident() if not any(str(p).startswith(f"src/{f}") for f in folders)]


class Resident(unittest.TestCase):
    def test_NothingAllocatesBehindOurBack(self):
        names = "|".join(ALLOCATING)
        house.report(self, house.hits(resident(), rf"\bstd::({names})\b(?!_)"))

    def test_NoHeaderOfAnAllocatingType(self):
        names = "|".join(set(ALLOCATING) - {"function"} | {"functional", "sstream"})
        house.report(self, house.hits(resident(), rf"#\s*include\s*<({names})>", house.text))

    def test_NoNewAndNoMallocOutsideTheArena(self):
        # Placement new names its place; a call of malloc is somebody else's heap.
        house.report(self, house.hits(
            outside("base/alloc", "shim/"),
            r"(?<![\w:.])new\s+(?!\()[A-Za-z_:]+|(?<![\w.>])(malloc|calloc|realloc|strdup)\s*\("))

    def test_NoExceptions(self):
        house.report(self, house.hits(resident(), r"\b(throw|try|catch)\b\s*[\w({]"))

    def test_FencesAreNeverAlone(self):
        house.report(self, house.hits(
            house.code("src"), r"atomic_thread_fence|__sync_synchronize"))

    def test_AtomicsAndLocksComeFromSync(self):
        # base stands below sync and keeps to the compiler's own builtins.
        house.report(self, house.hits(
            outside("sync/", "base/"),
            r"\bstd::(atomic|mutex|shared_mutex|lock_guard|unique_lock|scoped_lock)\w*\b|\b__atomic_|\b__sync_|"
            r"\bpthread_(mutex|rwlock|spin|cond)_"))

    def test_ClientMemoryIsTouchedByHostAccessOnly(self):
        house.report(self, house.hits(
            outside("host/"),
            r"reinterpret_cast<[^<>]*\*\s*>\s*\(\s*[\w.>-]*hva\b|\*\s*\(\s*\w+\s*\*\s*\)\s*\w*hva"))

    def test_SystemCallsGoThroughOneDoor(self):
        # sys.cc has the one instruction; the shim forwards a client's own calls to libc.
        raw = house.hits([p for p in outside("base/sys", "base/arch", "shim/")],
                         r"\bsyscall\s*\(\s*(SYS_|__NR_|\w+\s*[,)])|::(mmap|munmap|madvise|mprotect|open|close|ioctl|read|write|pread|"
                         r"pwrite|ftruncate|fcntl)\s*\(")
        house.report(self, [h for h in raw if not re.search(r"\bsys::\w+\s*\(|\w::(mmap|munmap|madvise|mprotect|"
                                                            r"open|close|ioctl|read|write|pread|pwrite|ftruncate|"
                                                            r"fcntl)\s*\(", h)])

    def test_TheTableOfAbsentPagesIsMetInAnEngineSection(self):
        # Else the stack of the thread that has its lock may be absent (host/footing.h). The room alone that
        # calls come in by: what is below it is in their section. tell() makes one around what it is given.
        meets = re.compile(
            r"\bhost::(change|replace|gain|undivided|discard|remap|owners_see_mapping|join_watched|take_away|"
            r"pages_with_devices|owners_before_fork|owners_after_fork_parent|bring_back\w*)\s*[(<]|"
            r"\bhost::(FileChange|OwnedChange)\s+\w+\s*[({]")
        offences, met = [], 0
        for path in (p for p in house.code("src") if p.parts[1] == "shim"):
            begun = 0  # A function begins where a line does that is not indented.
            lines = house.bare(path).splitlines()
            for number, line in enumerate(lines):
                if re.match(r"[\w\[]", line) and not re.match(r"(public|private|protected)\b", line):
                    begun = number
                if meets.search(line):
                    met += 1
                    if not re.search(r"\bEngineSection\s+\w+\s*[({]|\btell\(", "\n".join(lines[begun:number + 1])):
                        offences.append(f"{path}:{number + 1}: {line.strip()}")
        house.report(self, offences)
        self.assertGreater(met, 10, "the calls have other names by now")


if __name__ == "__main__":
    unittest.main()
