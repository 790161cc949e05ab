# SPDX-License-Identifier: Apache-2.0
"""A run of tools/conformance whose guest memory is under a limit, watched from outside.

A line of an expected file that begins with `--memory-limit=SIZE` is such a run. While it lasts the
program's memory is sampled: what is resident of the memory a VMM can give to a guest (all private
anonymous memory of the client; the blocks of each file of shared memory that it maps or has open, with
or without a name, those that hold the pages of its guest_memfds among them), and what the engine keeps
of it compressed. The run passes if the program does and

    the sum never exceeds the limit by more than 5 % and 16 MiB,
    pages came back (refaults), and the swap file had blocks on the disk, where it has to have them.

With `--memory-limit=SIZE,compressed` the store is as it is by default, a quarter of the limit at most: then its
bytes have to be more than none, in place of those in the file.

Memory that the engine itself has is told by its flag "not in core dumps". The swap file is in a
folder of the run, and compressed pages have none of the memory else (`--compressed=0`): what these tests leave
in their pages is theirs to say, and gets very small. The pattern of which half does not get any smaller is
that of tests/guest/swapping_vmm.c, whose run asserts the same.
"""
import json
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

MIB = 1 << 20
UNITS = {"": 1, "K": 1 << 10, "M": MIB, "G": 1 << 30}


def bytes_of(text):
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(match[1]) * UNITS[match[2]]


SHARED_MEMORY = ("/memfd:", "/dev/zero (deleted)", "/SYSV", "/dev/shm/")


def client_memory(smaps):
    """Resident bytes: of private anonymous mappings that are the client's own, and of its mappings of
    shared memory, (start, end) -> (file, bytes)."""
    total, rss, counts, shared = 0, 0, False, {}
    for line in smaps.splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ (\S+) (\d+) *(.*)$", line):
            place, name = (int(head[1], 16), int(head[2], 16)), head[6]
            private = head[3][3] == "p"
            counts = private and (name == "" or name.startswith(("[anon:", "[heap]")))
            file = None if private or not name.startswith(SHARED_MEMORY) else (head[4], int(head[5]))
            rss = 0
        elif line.startswith("Rss:"):
            rss = int(line.split()[1]) * 1024
            if file:
                shared[place] = file, rss
        elif line.startswith("VmFlags:") and counts and " dd" not in line:
            total += rss
    return total, shared


def blocks_of_files(pid, shared, folder):
    """Bytes of files of shared memory, and of the swap file, each file once. Of one that is mapped and not
    open only root can ask for its blocks: others get what the mappings show of it."""
    memory, swap, seen = {}, 0, {}
    for (start, end), (file, rss) in shared.items():
        try:
            stat = Path(f"/proc/{pid}/map_files/{start:x}-{end:x}").stat()
            memory[stat.st_ino] = stat.st_blocks * 512
        except OSError:
            seen[file] = max(seen.get(file, 0), rss)
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target, stat = os.readlink(fd), fd.stat()
        except OSError:
            continue
        if target.startswith(SHARED_MEMORY):
            memory[stat.st_ino] = stat.st_blocks * 512
        elif target.startswith(f"{folder}/"):
            swap = stat.st_blocks * 512
    return sum(memory.values()) + sum(rss for (_, inode), rss in seen.items() if inode not in memory), swap


def sample(pid, folder):
    """Bytes of (private anonymous memory, files of shared memory, the swap file)."""
    held, shared = client_memory(Path(f"/proc/{pid}/smaps").read_text())
    return held, *blocks_of_files(pid, shared, folder)


class Sampler:
    """`with Sampler(limit) as sampler`: options for `stagetwo run`, and afterwards what was seen."""

    def __init__(self, limit):
        self.size, _, kind = limit.partition(",")
        self.limit = bytes_of(self.size)
        self.stores = kind == "compressed"
        self.most = self.swap = self.looks = self.most_compressed = 0
        self.parts = (0, 0, 0)
        self.stop = threading.Event()

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="stagetwo-limit-"))
        self.options = [f"--memory-limit={self.size}", f"--swap={self.folder}", *([] if self.stores else ["--compressed=0"]),
                        f"--stats={self.folder}/stats.json",
                        f"--wss=100ms,file={self.folder}/wss.jsonl", f"--log-file={self.folder}/log"]
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        try:
            self.stats = json.loads((self.folder / "stats.json").read_text())
        except (OSError, ValueError):
            self.stats = {}
        shutil.rmtree(self.folder)

    def find(self):
        """The program is the one whose environment names our statistics."""
        mark = f"stats={self.folder}/stats.json".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in environ.read_bytes():
                    return int(environ.parent.name)
            except OSError:
                continue
        return None

    def compressed(self):
        try:
            lines = (self.folder / "wss.jsonl").read_text().splitlines()
            return json.loads(lines[-1])["compressed"] if lines else 0
        except (OSError, ValueError):
            return 0

    def watch(self):
        pid = None
        while not self.stop.wait(0.02):
            pid = pid or self.find()
            if pid is None:
                continue
            try:
                held, files, swap = sample(pid, self.folder)
            except OSError:
                pid = None
                continue
            parts = (held, files, self.compressed())
            if sum(parts) > self.most:
                self.most, self.parts = sum(parts), parts
            self.swap = max(self.swap, swap)
            self.most_compressed = max(self.most_compressed, parts[2])
            self.looks += 1
            time.sleep(0.02)

    def verdict(self):
        """Answers (was all kept to, what was seen)."""
        allowed = self.limit * 105 // 100 + 16 * MIB
        parts = " + ".join(f"{part / MIB:.1f}" for part in self.parts)
        said = f"{self.most / MIB:.1f} MiB of {self.limit // MIB} at most (memory, files of it, compressed: {parts}), {self.stats.get('refaults', 0)} refaults, " \
               f"{self.swap // MIB} MiB in the swap file, {self.looks} looks"
        if not self.looks or not self.stats:
            return False, f"nobody looked, or no statistics were left: {said}"
        kept = self.most <= allowed and self.stats["refaults"] and (self.most_compressed if self.stores else self.swap) and not self.stats["lost_pages"]
        return bool(kept), said
