# SPDX-License-Identifier: Apache-2.0
"""No function of libc's that hands a caller's memory to the kernel is forgotten.

Where userfaultfd is denied the kernel answers EFAULT for memory that is away, so such functions stand in
src/shim/buffered_calls.def or are interposed for more than that. Which there are is read out of libc itself: an exported
function that makes a system call with pointers, or calls one that does, is interposed or stands in libc_own_buffers.txt
with its reason. The list is of one libc: elsewhere the test does not know."""
import bisect
import re
import subprocess
import unittest
from collections import defaultdict
from functools import cache
from pathlib import Path

import house

LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
VERSION = "2.36"
NUMBERS = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"

# System calls whose arguments are numbers, or addresses that are not looked behind.
NUMBERS_ONLY = set("""
    close lseek munmap brk dup dup2 pause alarm getpid shutdown socket listen fork vfork exit kill semget shmget msgget flock
    fsync fdatasync ftruncate fchdir fchmod fchown umask getuid getgid setuid setgid geteuid getegid setpgid getppid getpgrp
    setsid setreuid setregid getpgid setfsuid setfsgid getsid personality getpriority setpriority sched_getscheduler
    sched_get_priority_max sched_get_priority_min mlockall munlockall munlock vhangup iopl ioperm gettid readahead tkill
    tgkill exit_group timer_getoverrun timer_delete epoll_create epoll_create1 inotify_init inotify_init1 inotify_rm_watch
    unshare sync_file_range eventfd eventfd2 timerfd_create dup3 fanotify_init syncfs setns sched_yield fallocate setresuid
    setresgid pidfd_open pkey_alloc pkey_free close_range madvise mremap mmap mprotect pkey_mprotect fadvise64 rt_sigreturn
    sync reboot shmdt tee membarrier process_mrelease fsmount""".split())
# On libc's own words: what becomes of them is the page's "libc itself hands to the kernel".
LIBCS_OWN = set("futex rt_sigprocmask set_robust_list set_tid_address rseq get_robust_list".split())


def output(*command):
    return subprocess.run(command, text=True, capture_output=True, check=False).stdout  # readelf warns by its status


def table():
    rows = house.text(Path("src/shim/buffered_calls.def"))
    return set(re.findall(r"^ST_(?:FILE_|RECEIVING_|PROGRAM_)?CALL\([^,]*, (\w+),", rows, re.MULTILINE)) | set(
        re.findall(r"^ST_(?:ERROR|EXEC|SPAWN)_CALL\((\w+),", rows, re.MULTILINE))


def interposed():
    exports = house.text(Path("src/shim/exports.map"))
    return table() | set(re.findall(r"(\w+);", exports[exports.index("global:"):]))


def listed():
    """Names of libc_own_buffers.txt, each with the reason that stands over it."""
    names, reason = {}, ""
    for line in house.text(Path("tests/tidy/libc_own_buffers.txt")).splitlines():
        if line.startswith("# "):
            reason = line[2:]
        else:
            names.update((name, reason) for name in line.split())
    return names


class Libc:
    """Its functions, as their unwinding table bounds them, the system calls in each and whom each calls."""

    def __init__(self):
        self.exported = defaultdict(set)
        for line in output("nm", "-D", "--defined-only", LIBC).splitlines():
            address, kind, name = line.split()
            if kind in "TWi":
                self.exported[int(address, 16)].add(name.split("@")[0])
        frames = re.findall(r" FDE .*pc=([0-9a-f]+)\.\.([0-9a-f]+)", output("readelf", "-wF", LIBC))
        self.bounds = sorted((int(start, 16), int(end, 16)) for start, end in frames)
        self.starts = [start for start, _ in self.bounds]
        self.numbers, self.calls = defaultdict(set), defaultdict(set)
        self.read()

    def function(self, address):
        at = bisect.bisect_right(self.starts, address) - 1
        return self.starts[at] if at >= 0 and address < self.bounds[at][1] else None

    def read(self):
        known = {int(n): name for name, n in re.findall(r"#define __NR_(\w+) (\d+)", Path(NUMBERS).read_text())}
        wanted = r"\t(syscall|call  |j[a-z]+ |mov    \$0x[0-9a-f]+,%eax|xor    %eax,%eax)"
        with subprocess.Popen(["objdump", "-d", "--no-show-raw-insn", LIBC], stdout=subprocess.PIPE) as code:
            lines = subprocess.run(["grep", "-P", wanted], stdin=code.stdout, text=True, capture_output=True,
                                   check=True).stdout
        loaded = (None, 0)
        for address, what, operands in re.findall(r"^ +([0-9a-f]+):\t(\S+) *([^\n]*)", lines, re.MULTILINE):
            function = self.function(int(address, 16))
            if what == "mov":
                loaded = (function, int(operands[3:operands.index(",")], 16))
            elif what == "xor":
                loaded = (function, 0)
            elif what == "syscall":
                if loaded[0] == function:  # a number from a register is an argument of syscall() and its like
                    self.numbers[function].add(known.get(loaded[1], "?"))
            elif re.match(r"[0-9a-f]+ ", operands):
                target = self.function(int(operands.split()[0], 16))
                if target not in (None, function):
                    self.calls[function].add(target)

    def passing_pointers(self):
        """The names of each exported function, and its system calls with pointers."""
        for address, names in self.exported.items():
            calls = set(self.numbers[address])
            for callee in self.calls[address]:
                calls |= self.numbers[callee]
            calls -= NUMBERS_ONLY | LIBCS_OWN
            if calls:
                yield names, calls


@cache
def libc():
    return Libc()


def offences(ours, own):
    for names, calls in libc().passing_pointers():
        public = {name for name in names if not name.startswith("_")} or names
        for name in sorted(public - ours - set(own)):
            yield f"{name} ({' '.join(sorted(calls))}): neither interposed nor in tests/tidy/libc_own_buffers.txt"


class LibcBuffers(unittest.TestCase):
    def setUp(self):
        if not Path(LIBC).exists() or f"stable release version {VERSION}" not in output(LIBC):
            self.skipTest(f"the list of functions is of glibc {VERSION}, which is not here")

    def test_EveryFunctionThatPassesACallersMemoryIsKnown(self):
        house.report(self, list(offences(interposed(), listed())))

    def test_AForgottenOneIsFound(self):
        found = "\n".join(offences(interposed() - {"getsockopt", "remove"}, listed()))
        self.assertIn("getsockopt (getsockopt)", found)
        self.assertIn("remove (", found)

    def test_TheListNamesNothingThatIsInTheTable(self):
        house.report(self, [f"{name}: is in the table as well" for name in set(listed()) & table()])

    def test_WhatIsPassedOnUnheldIsDocumented(self):
        page = house.text(Path("docs/what-is-not-seen.md"))
        missing = [n for n, reason in listed().items() if reason.startswith("documented")
                   and n.removesuffix("64") not in page]
        house.report(self, [f"{name}: docs/what-is-not-seen.md does not name it" for name in missing])


if __name__ == "__main__":
    unittest.main()
