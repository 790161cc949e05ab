# SPDX-License-Identifier: Apache-2.0
"""What runs of tools/conformance take of the machine: huge pages made and given back, memory and
cores shared by two runs at once, and nothing left behind when we are interrupted.

tests/conformance/needs/SUITE.txt, one line a kind of run, the first that matches counts:

    REGEX : key=value…

    memory=GIB     resident at its height (default 0.3)
    seconds=N      about how long, for the order: longest first (default 1)
    timeout=N      seconds after which it is given up, where the runner's own limit is too short
    hugepages=N    2 MiB pages it maps with MAP_HUGETLB; runs that have any never run side by side
    kvm=NAME=VALUE,…   parameters of the module kvm, which the test's own script would write first
    module=NAME.PARAMETER=VALUE,…   the same of other modules
    alone          nothing beside it, because it counts on both processors or measures time
    root           asks for root itself
    without=CAP    a capability it must not have, so that it sees the refusal: taken from it if we are root
    with=CAP       a capability it must have: where this root is without it (a container), it is given one of its own
"""
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@dataclasses.dataclass
class Needs:
    memory: float = 0.3
    seconds: float = 1.0
    timeout: float = 0.0
    hugepages: int = 0
    kvm: str = ""
    module: str = ""
    without: str = ""
    having: str = ""
    alone: bool = False
    root: bool = False


def read_needs(path):
    """Answers a list of (compiled pattern, Needs)."""
    table = []
    if not path.exists():
        return table
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        pattern, colon, words = line.rpartition(" : ")
        needs = Needs()
        for word in words.split():
            key, equals, value = word.partition("=")
            kind = {"memory": float, "seconds": float, "timeout": float, "hugepages": int, "kvm": str, "module": str, "alone": bool,
                    "root": bool, "without": str, "with": str}.get(key)
            if not colon or kind is None or (kind is bool) == bool(equals):
                sys.exit(f"{path}:{number}: not a line of needs: {line}")
            setattr(needs, "having" if key == "with" else key, kind(value) if equals else True)
        table.append((re.compile(pattern), needs))
    return table


def needs_of(table, title):
    return next((needs for pattern, needs in table if pattern.fullmatch(title)), Needs())


def parameters_of(needs):
    """The options of `stagetwo run` for what the test's own script would write first."""
    settings = [f"kvm.{setting}" for setting in needs.kvm.split(",") if setting]
    settings += [setting for setting in needs.module.split(",") if setting]
    return [f"--param={setting}" for setting in settings]


# Numbers of capabilities, as in /proc/self/status.
CAPABILITIES = {"CAP_SYS_RESOURCE": 24}


def has_capability(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)[1], 16) >> CAPABILITIES[name] & 1 == 1


def prefix_of(needs, is_root):
    if needs.having and not has_capability(needs.having):
        return ["unshare", "--user", "--map-root-user", "--"]
    return ["setpriv", f"--bounding-set=-{needs.without}", "--"] if needs.without and is_root else []


# ---- huge pages -----------------------------------------------------------------------------

class HugePages:
    """The machine's pool of 2 MiB pages. One user at a time; the size found is put back whatever happens."""

    def __init__(self, folder=HUGE_PAGES):
        self.folder = folder
        self.lock = threading.Lock()

    def read(self, name):
        try:
            return int((self.folder / name).read_text())
        except (OSError, ValueError):
            return 0

    def resize(self, pages):
        try:
            (self.folder / "nr_hugepages").write_text(f"{pages}\n")
        except OSError:
            pass  # Not root, or a container's read-only /sys: what was asked for did not happen.

    @contextlib.contextmanager
    def whole_machine(self):
        """Another harness on this machine waits: what it found would be what we made."""
        try:
            file = open(self.folder / "nr_hugepages", "rb")
        except OSError:
            yield
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def at_least(self, pages):
        """Answers "pool" when that many pages are free now, else "standin"."""
        with self.lock, self.whole_machine():
            before = self.read("nr_hugepages")
            try:
                missing = pages - self.read("free_hugepages")
                if missing > 0:
                    self.resize(before + missing)
                if self.read("free_hugepages") >= pages:
                    yield "pool"
                else:
                    self.resize(before)
                    yield "standin"
            finally:
                # The run may have changed it too, and been killed before it could put it back.
                if self.read("nr_hugepages") != before:
                    self.resize(before)


# ---- processes ------------------------------------------------------------------------------

ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Processes:
    """Programs under way, each the leader of a group that goes when the program goes."""

    def __init__(self):
        self.lock = threading.Lock()
        self.running = set()
        self.stopped = False

    def execute(self, command, log, limit):
        """Runs to the end or to the limit; answers (exit status or None, seconds, output)."""
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="stagetwo-conformance-") as cwd, open(log, "wb") as out:
            with self.lock:
                if self.stopped:
                    return None, 0.0, "interrupted"
                # This thread began inside signals_later(); its programs hear everything.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
                child = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out,
                                         stderr=subprocess.STDOUT, start_new_session=True)
                self.running.add(child.pid)
            try:
                status = child.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                status = None
            with self.lock:
                self.running.discard(child.pid)
                kill_group(child.pid)  # Whatever the run left behind goes with it.
            child.wait()
        return status, time.monotonic() - start, log.read_text(errors="replace")

    def stop(self):
        with self.lock:
            self.stopped = True
            for pid in self.running:
                kill_group(pid)


def kill_group(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def end_on_signals():
    """SIGTERM and SIGHUP leave through the same `finally` as SIGINT does."""
    def leave(number, _):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


@contextlib.contextmanager
def signals_later():
    """A pool that is interrupted while it starts a thread waits for that thread for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- two at once ----------------------------------------------------------------------------

def memory_budget():
    """GiB that runs may hold together."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 0.7 * int(line.split()[1]) / (1 << 20)
    return 1.0


def fits(needs, beside, at_once, budget):
    """May a run start beside those under way? One that is alone always may."""
    if not beside:
        return True
    if len(beside) >= at_once or needs.alone or any(n.alone for n in beside):
        return False
    if needs.hugepages and any(n.hugepages for n in beside):
        return False
    return needs.memory + sum(n.memory for n in beside) <= budget


def run_all(runs, perform, at_once, budget, processes):
    """Those that want to be alone first, then the longest first, as many at once as fit."""
    pending = sorted(runs, key=lambda r: (not r.needs.alone, -r.needs.seconds))
    under_way = {}
    with concurrent.futures.ThreadPoolExecutor(max(1, at_once)) as pool:
        try:
            while pending or under_way:
                beside = [r.needs for r in under_way.values()]
                nearest = next((r for r in pending if fits(r.needs, beside, at_once, budget)), None)
                if nearest is not None:
                    pending.remove(nearest)
                    with signals_later():
                        under_way[pool.submit(perform, nearest)] = nearest
                    continue
                # A signal that the kernel gave to another thread is acted on by this one, once it wakes.
                done, _ = concurrent.futures.wait(under_way, timeout=1,
                                                  return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    del under_way[future]
                    future.result()
        except BaseException:
            processes.stop()  # The pool's threads end with their children; leaving it waits for them.
            raise
