"""Claims on folders, for many machines on one file system; a claim goes stale when its holder's heartbeat stops.

A claim is a file, created atomically with its content (a hard link, which works on NFS too; no flock), and touched every few
seconds. Clocks of two machines are never compared: a process that wants a folder watches the file and takes it when it has not
changed for ``STALE_SECONDS`` by its own clock. It need not wait for a holder on the same machine whose process is gone, nor
for an earlier attempt of the same job (same ticket). A holder that was suspended checks that the claim is still its own
(``Claims.confirm``) before it writes anything that lasts.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError, open_file, read_file
from kdbench.shown import NAME_LENGTH, printable
from kdbench.store.layout import CLAIM_FILE

#: Seconds between two heartbeats.
BEAT_SECONDS = 10.0
#: A claim that has not changed for so long is free. It is longer than NFS may show an old time stamp (60 s).
STALE_SECONDS = 120.0
#: More than a claim has.
CLAIM_BYTES = 10_000


class ClaimLostError(KdbenchError):
    """Another process has taken over what this one was training; nothing more may be written for it."""


@dataclass(frozen=True)
class Holder:
    """What a claim says. ``heartbeat`` is the file's time stamp (Unix seconds), ``stamp`` the same in nanoseconds."""

    token: str
    host: str = "unknown"
    pid: int = 0
    machine: str = ""
    born: str = ""
    since: float = 0.0
    ticket: str = ""
    events: str = ""
    stamp: int = 0

    @property
    def heartbeat(self) -> float:
        return self.stamp / 1e9

    @property
    def where(self) -> str:
        return f"{printable(self.host, NAME_LENGTH)}, process {self.pid}"

    def is_dead(self) -> bool:
        """Whether its process is known to be gone, which only the same machine can tell."""
        if not self.machine or self.machine != _machine():
            return False
        return _born(self.pid) != self.born

    def seems_alive(self) -> bool:
        """For showing only: a heartbeat that is not old. Machines whose clocks differ may be judged wrongly."""
        return not self.is_dead() and time.time() - self.heartbeat < STALE_SECONDS


def read_holder(folder: Path) -> Holder | None:
    """Who holds ``folder``; None when nobody does. Opens the file, so that NFS asks its server again."""
    try:
        with open_file(folder / CLAIM_FILE) as file:
            raw = file.read(CLAIM_BYTES)
            stamp = os.fstat(file.fileno()).st_mtime_ns
    except RefusedFileError as error:
        return Holder(token=f"damaged {error}")
    except OSError:
        return None
    return _parse(raw, stamp)


def _parse(raw: bytes, stamp: int = 0) -> Holder:
    """A claim's content. A damaged claim counts as an unknown holder until it goes stale."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
        content = json.loads(raw)
        words = {name: content[name] for name in ("token", "host", "machine", "born", "ticket", "events")}
        if all(isinstance(word, str) for word in words.values()):
            pid, since = int(content["pid"]), float(content["since"])
            if 0 <= pid < 2**32 and 0 <= since < 2**40 and "\0" not in words["events"]:
                return Holder(**words, pid=pid, since=since, stamp=stamp)
    return Holder(token=f"damaged {raw[:50]!r}", stamp=stamp)


def remove_claim(folder: Path, token: str) -> None:
    """Remove the claim ``token`` from ``folder``, and no other: one that was made meanwhile is put back."""
    path, aside = folder / CLAIM_FILE, folder / f".{CLAIM_FILE}.{secrets.token_hex(8)}.tmp"
    with contextlib.suppress(OSError):
        os.rename(path, aside)
        if _token_in(aside) != token:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        os.unlink(aside)


def _token_in(path: Path) -> str:
    try:
        return _parse(read_file(path, CLAIM_BYTES)).token
    except RefusedFileError as error:
        return f"damaged {path.with_name(CLAIM_FILE)} {error.reason}"


class Watch:
    """Tells claims that are alive from stale ones by watching them.

    Args:
        seconds: after which an unchanged claim is stale.
        clock: seconds that never go back.
    """

    def __init__(self, seconds: float = STALE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._seen: dict[Path, tuple[str, int, float]] = {}

    def free(self, folder: Path, ticket: str = "") -> bool:
        """Whether ``folder`` can be claimed: by nobody, or by a holder that is gone. Then the claim is removed."""
        holder = read_holder(folder)
        if holder is None:
            self._seen.pop(folder, None)
            return True
        if not (ticket and holder.ticket == ticket) and not holder.is_dead():
            token, stamp, since = self._seen.get(folder, ("", 0, 0.0))
            if (token, stamp) != (holder.token, holder.stamp):
                self._seen[folder] = (holder.token, holder.stamp, self._clock())
                return False
            if self._clock() - since < self.seconds:
                return False
        remove_claim(folder, holder.token)
        self._seen.pop(folder, None)
        return read_holder(folder) is None


class Claims:
    """The folders that this process holds, with the thread that keeps them.

    Args:
        ticket: the job's; an earlier attempt of the same job is taken over at once.
        events: file (below the run directory) in which the job tells how far it is.
        beat: seconds between heartbeats.
    """

    def __init__(self, ticket: str = "", events: str = "", beat: float = BEAT_SECONDS) -> None:
        self.ticket = ticket
        self.events = events
        self._beat = beat
        self._held: dict[Path, tuple[str, int]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def take(self, folder: Path) -> bool:
        """Claim ``folder``; False when somebody else holds it."""
        folder = Path(folder)
        if folder in self._held:
            return True
        for _ in range(5):
            if self._create(folder):
                return True
            holder = read_holder(folder)
            if holder is None:
                continue
            if not ((self.ticket and holder.ticket == self.ticket) or holder.is_dead()):
                return False
            remove_claim(folder, holder.token)
        return False

    def confirm(self, folder: Path) -> None:
        """See that ``folder`` is still held by this process. What was never claimed is not checked.

        Raises:
            ClaimLostError: if another process has taken it, or the claim is gone.
        """
        held = self._held.get(Path(folder))
        if held is None:
            return
        holder = read_holder(Path(folder))
        if holder is None or holder.token != held[0]:
            taker = f"by {holder.where}" if holder else "and given back"
            raise ClaimLostError(f"{folder} was taken over {taker} while this process did not answer")

    def release(self, folder: Path) -> None:
        """Give ``folder`` back."""
        with self._lock:
            held = self._held.pop(Path(folder), None)
        if held is not None:
            remove_claim(Path(folder), held[0])
            os.close(held[1])

    def close(self) -> None:
        """Give everything back."""
        self._ended.set()
        for folder in list(self._held):
            self.release(folder)

    def _create(self, folder: Path) -> bool:
        token = secrets.token_hex(8)
        holder = Holder(
            token,
            os.uname().nodename,
            os.getpid(),
            _machine(),
            _born(os.getpid()),
            time.time(),
            self.ticket,
            self.events,
        )
        content = json.dumps({key: value for key, value in asdict(holder).items() if key != "stamp"}).encode()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _create_whole(folder / CLAIM_FILE, folder / f".{CLAIM_FILE}.{token}.tmp", content)
        if descriptor is None:
            return False
        with self._lock:
            self._held[folder] = (token, descriptor)
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep, daemon=True, name="heartbeat")
            self._thread.start()
        return True

    def _keep(self) -> None:
        while not self._ended.wait(self._beat):
            with self._lock:
                for _, descriptor in self._held.values():
                    with contextlib.suppress(OSError):
                        os.utime(descriptor)  # of our own file, even where another one has its name now


def _create_whole(path: Path, temporary: Path, content: bytes) -> int | None:
    """Make a file that was not there, with its content at once; its descriptor, or None when there is one already."""
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS may answer so to a repeated request that the server has carried out.
            if os.stat(temporary).st_nlink != 2:
                os.close(descriptor)
                return None
        except OSError:  # a file system without hard links
            os.close(descriptor)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return None
            os.write(descriptor, content)
        return descriptor
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


@functools.cache
def _machine() -> str:
    """Names this machine since its start and this process's view of others; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process of this machine began, in ticks; empty when there is none, or only its remains."""
    try:
        fields: list[Any] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else str(fields[19])
