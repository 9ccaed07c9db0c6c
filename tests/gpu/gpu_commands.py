"""Commands with a limit, whose output is logged as it comes, and whose children end with them.

Contract
--------
- A command runs in a process group of its own, which is killed when its time is up, when this
  process is told to end (SIGTERM, SIGINT), and when anything is raised while it runs.
- What it prints goes to the log; the last characters are kept with the command.  Only a line that
  tells which command runs is printed, since the reader of a check may see no more than its end.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

TAIL = 6000  # characters of a command's output that are kept
MOST_SECONDS = 86_400.0  # what a timer may be given
LOG_BYTES = 12 * 2**20  # the log stops here


class InterruptedCheckError(BaseException):
    """This process was told to end."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise InterruptedCheckError in the main thread at SIGTERM and SIGINT, and at SIGHUP."""

    def raise_it(number: int, frame: Any) -> None:
        raise InterruptedCheckError(signal.Signals(number).name)

    before = {
        number: signal.signal(number, raise_it)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def own_environment() -> dict[str, str]:
    """Return this process' environment without settings of fastreg's, which change results."""
    return {name: text for name, text in os.environ.items() if not name.startswith("FASTREG_")}


@dataclass
class Command:
    """A command that was run, and what came of it."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    return_code: int | None = None
    timed_out: bool = False
    seconds: float = 0.0
    tail: str = ""

    @property
    def succeeded(self) -> bool:
        return self.return_code == 0

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(text)}" for name, text in self.environment.items()]
        return " ".join([*settings, shlex.join(self.command)])


class Runner:
    """Runs commands until `end`, by the monotonic clock."""

    def __init__(self, log: Path | None = None, dry_run: bool = False) -> None:
        self.log, self.dry_run = log, dry_run
        self.commands: list[Command] = []
        self.end = float("inf")

    def remaining(self) -> float:
        return max(self.end - time.monotonic(), 1.0)

    def run(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: dict[str, str] | None = None,
        most: float = float("inf"),
    ) -> Command:
        """Run a command for at most `most` seconds, and no longer than until `end`."""
        done = Command(list(command), dict(environment or {}))
        self.commands.append(done)
        print(f"$ {done}" if self.dry_run else f"$ {shortened(str(done))}", flush=True)
        if self.dry_run:
            return done
        start = time.monotonic()
        with self._opened_log() as log:
            log.write(f"$ {done}\n")
            self._run(done, directory, min(self.remaining(), most, MOST_SECONDS), log)
        done.seconds = round(time.monotonic() - start, 3)
        return done

    def _run(self, done: Command, directory: Path, seconds: float, log: IO[str]) -> None:
        with subprocess.Popen(
            done.command,
            cwd=directory,
            env=own_environment() | done.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all of its processes can be ended
        ) as process:
            timer = threading.Timer(seconds, self._end, (process, done))
            timer.daemon = True
            timer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if log.tell() < LOG_BYTES:
                        log.write(line)
                        log.flush()
                    done.tail = (done.tail + line)[-TAIL:]
                done.return_code = process.wait()
            except BaseException:  # an interruption is for the command as well
                self._end(process, done)
                raise
            finally:
                timer.cancel()

    @contextlib.contextmanager
    def _opened_log(self) -> Iterator[IO[str]]:
        path = self.log if self.log is not None else Path(os.devnull)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            yield log

    @staticmethod
    def _end(process: subprocess.Popen[str], done: Command) -> None:
        done.timed_out = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def shortened(text: str, length: int = 100) -> str:
    """Return a text of at most `length` characters, its middle left out where it has more.

    >>> shortened("0123456789", 7)
    '01...89'
    """
    if len(text) <= length:
        return text
    half = (length - 3) // 2
    return f"{text[: length - 3 - half]}...{text[-half:]}"
