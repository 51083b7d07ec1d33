"""Every durable step a process takes below one folder, as a place to stand in its way."""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITING = set("wax+")


@dataclass(frozen=True)
class Step:
    """One call that changes what is on disk, the `number`th of its process; the path is relative to the folder.

    Kinds are `mkdir open write flush fsync link rename unlink`, and where looks count too `stat scandir read lock`.
    """

    number: int
    kind: str
    path: str

    @property
    def family(self) -> tuple[str, str]:
        """Kind and path but for which bucket or part it is: steps of one family are taken by the same code."""
        return self.kind, re.sub(r"mint_bucket=[0-9a-f]{2}|part-\d+", "*", self.path)


# Gets the step, what does it and, for a write, what does half of it; returns what the call returns.
Handler = Callable[[Step, Callable[[], Any], Callable[[], Any]], Any]


class _File:
    """A file open for writing whose writes and flushes are steps."""

    def __init__(self, file: Any, step: Callable[..., Any], path: str) -> None:
        self._file, self._step, self._path = file, step, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(memoryview(data)[: len(data) // 2])
            self._file.flush()

        return self._step("write", self._path, lambda: self._file.write(data), half)

    def flush(self) -> Any:
        return self._step("flush", self._path, self._file.flush)


@contextlib.contextmanager
def intercepted(root: Path, handler: Handler, *, looks: bool = False) -> Iterator[None]:
    """Pass every durable step below `root` to `handler`, with the real call in its hand; with `looks`, looks too."""
    numbers = itertools.count()
    lock = threading.Lock()
    changes = ("mkdir", "link", "rename", "replace", "unlink", "remove", "fsync")
    real = {name: getattr(os, name) for name in (*changes, "stat", "scandir", "open")}
    open_file = io.open

    def below(path: Any) -> str | None:
        if isinstance(path, int):
            return None
        text = os.path.abspath(os.fspath(path))  # noqa: PTH100 - no resolving: that would look at the disk
        if not text.startswith(f"{root}{os.sep}"):
            return None
        return re.sub(r"\.lake-tmp-[0-9a-f-]+", ".lake-tmp-", text[len(str(root)) + 1 :])

    def step(kind: str, path: str, action: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        with lock:
            number = next(numbers)
        return handler(Step(number, kind, path), action, half)

    def wrapped(kind: str, call: Callable[..., Any], position: int) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            path = below(args[position])
            if path is None:
                return call(*args, **more)
            return step(kind, path, lambda: call(*args, **more))

        return run

    def fsync(descriptor: int) -> Any:
        path = below(Path(f"/proc/self/fd/{descriptor}").readlink())
        return real["fsync"](descriptor) if path is None else step("fsync", path, lambda: real["fsync"](descriptor))

    def opened(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        path = None if isinstance(file, int) else below(file)
        if path is None or not (looks or _WRITING & set(mode)):
            return open_file(file, mode, *args, **more)
        if not _WRITING & set(mode):
            return step("read", path, lambda: open_file(file, mode, *args, **more))
        return _File(step("open", path, lambda: open_file(file, mode, *args, **more)), step, path)

    replaced: list[tuple[Any, str, Any]] = [
        (os, "mkdir", wrapped("mkdir", real["mkdir"], 0)),
        (os, "link", wrapped("link", real["link"], 1)),
        (os, "rename", wrapped("rename", real["rename"], 1)),
        (os, "replace", wrapped("rename", real["replace"], 1)),
        (os, "unlink", wrapped("unlink", real["unlink"], 0)),
        (os, "remove", wrapped("unlink", real["remove"], 0)),
        (os, "fsync", fsync),
        (io, "open", opened),
        (builtins, "open", opened),
    ]
    if looks:
        replaced += [
            (os, "stat", wrapped("stat", real["stat"], 0)),
            (os, "scandir", wrapped("scandir", real["scandir"], 0)),
            (os, "open", wrapped("lock", real["open"], 0)),
        ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, function in replaced:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def recorder(steps: list[Step]) -> Handler:
    """Take each step and write it down."""

    def handle(step: Step, action: Callable[[], Any], half: Callable[[], Any]) -> Any:
        steps.append(step)
        return action()

    return handle


def killer(number: int, when: str) -> Handler:
    """SIGKILL to this process before, in the middle of or after a step."""

    def handle(step: Step, action: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if step.number != number:
            return action()
        try:
            if when != "before":
                (half if when == "during" else action)()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    return handle


def failer(number: int, code: int, kinds: frozenset[str], when: str, *, lasting: bool) -> Handler:
    """An OSError in place of a step, or of all steps of these kinds from then on; `after` does the step and fails."""

    def handle(step: Step, action: Callable[[], Any], half: Callable[[], Any]) -> Any:
        hit = step.number == number or (lasting and step.number > number and step.kind in kinds)
        if not hit:
            return action()
        if when != "before":
            (half if when == "during" else action)()
        raise OSError(code, os.strerror(code), step.path)

    return handle


def surprise(number: int, happening: Callable[[], None]) -> Handler:
    """Something happens to the folder before a step, which then is taken."""

    def handle(step: Step, action: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if step.number == number:
            happening()
        return action()

    return handle
