# SPDX-License-Identifier: Apache-2.0
"""A run of tools/conformance whose guest memory is under a limit, watched from outside.

A line of an expected file that begins with `--memory-limit=SIZE` is such a run. While it lasts the
program's memory is sampled: what is resident of the memory a VMM can give to a guest (all private
anonymous memory of the client, and the blocks of every memfd it has), and what the engine keeps of it
compressed. The run passes if the program does and

    the sum never exceeds the limit by more than 5 % and 16 MiB,
    pages came back (refaults), and the swap file had blocks on the disk, where it has to have them.

Memory that the engine itself has is told by its flag "not in core dumps". The swap file is in a
folder of the run, and compressed pages have none of the memory (`--compressed=0`): what these tests leave
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


def client_memory(smaps):
    """Resident bytes of private anonymous mappings that are the client's own."""
    total, rss, counts = 0, 0, False
    for line in smaps.splitlines():
        if head := re.match(r"[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ \d+ *(.*)$", line):
            counts = head[1][3] == "p" and (head[2] == "" or head[2].startswith(("[anon:", "[heap]")))
            rss = 0
        elif line.startswith("Rss:"):
            rss = int(line.split()[1]) * 1024
        elif line.startswith("VmFlags:") and counts and " dd" not in line:
            total += rss
    return total


def blocks_of_files(pid, folder):
    """Bytes on memfds, and of the swap file, each file once."""
    memory, swap = {}, 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target, stat = os.readlink(fd), fd.stat()
        except OSError:
            continue
        if target.startswith("/memfd:"):
            memory[stat.st_ino] = stat.st_blocks * 512
        elif target.startswith(f"{folder}/"):
            swap = stat.st_blocks * 512
    return sum(memory.values()), swap


class Sampler:
    """`with Sampler(limit) as sampler`: options for `stagetwo run`, and afterwards what was seen."""

    def __init__(self, limit):
        self.limit = bytes_of(limit)
        self.most = self.swap = self.looks = 0
        self.parts = (0, 0, 0)
        self.stop = threading.Event()

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="stagetwo-limit-"))
        self.options = [f"--swap={self.folder}", "--compressed=0", f"--stats={self.folder}/stats.json",
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
                held = client_memory(Path(f"/proc/{pid}/smaps").read_text())
                files, swap = blocks_of_files(pid, self.folder)
            except OSError:
                pid = None
                continue
            parts = (held, files, self.compressed())
            if sum(parts) > self.most:
                self.most, self.parts = sum(parts), parts
            self.swap = max(self.swap, swap)
            self.looks += 1
            time.sleep(0.02)

    def verdict(self):
        """Answers (was all kept to, what was seen)."""
        allowed = self.limit * 105 // 100 + 16 * MIB
        parts = " + ".join(f"{part / MIB:.1f}" for part in self.parts)
        said = f"{self.most / MIB:.1f} MiB of {self.limit // MIB} at most (memory, memfds, compressed: {parts}), {self.stats.get('refaults', 0)} refaults, " \
               f"{self.swap // MIB} MiB in the swap file, {self.looks} looks"
        if not self.looks or not self.stats:
            return False, f"nobody looked, or no statistics were left: {said}"
        kept = self.most <= allowed and self.stats["refaults"] and self.swap and not self.stats["lost_pages"]
        return bool(kept), said
