"""How far a command is: a bar or a spinner on a terminal, plain lines on standard error where nobody watches."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console


def say(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _terminal() -> Iterator[Console]:
    """The terminal behind standard error, whatever stands in its place meanwhile.

    While a run goes on, Dagster puts the file of the run's log there.
    """
    from rich.console import Console

    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal:
        yield Console(file=terminal)


@contextmanager
def windows_bar(name: str) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """A bar of windows under the steps on a terminal; plain lines where nobody watches."""
    if not sys.stderr.isatty():
        yield say, lambda done, total: say(f"{name}: {done} of {total} windows")
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("windows"))
    with _terminal() as console, Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(name, total=None)

        def show(line: str) -> None:
            if not line.startswith(" "):  # what a step says of its own progress is in the bar
                progress.console.print(line, markup=False, highlight=False)

        yield show, lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def file_bar(name: str) -> Iterator[Callable[[str], None]]:
    """How much of a file has been read, with the present step, on a terminal; plain lines where nobody watches."""
    if not sys.stderr.isatty():
        yield say
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[share]}"))
    with _terminal() as console, Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(name, total=None, share="")
        reading: list[TaskID] = []

        def show(line: str) -> None:
            if found := re.search(r"\b(\d+) % of the file read", line):
                if not reading:
                    reading.append(progress.add_task("reading it", total=100, share=""))
                progress.update(reading[0], completed=int(found.group(1)), share=f"{found.group(1)} %")
                return
            while reading:
                progress.remove_task(reading.pop())
            words = line.strip() if line.startswith(name) else f"{name}: {line.strip()}"
            progress.update(task, description=words)

        yield show


class status_line:  # noqa: N801 - used like a function
    """Progress on the terminal: a spinner with the present step, or plain lines where nobody watches."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown = ExitStack()

    def __enter__(self) -> Callable[[str], None]:
        if not sys.stderr.isatty():
            return say
        console = self._shown.enter_context(_terminal())
        status = self._shown.enter_context(console.status(self._name))

        def show(line: str) -> None:
            if line.startswith(" "):
                status.update(f"{self._name}: {line.strip()}")
            else:
                console.print(line, markup=False, highlight=False)

        return show

    def __exit__(self, *exception: object) -> None:
        self._shown.close()


@contextmanager
def count_bar(name: str, unit: str) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """A bar of things done with the time that is left on a terminal; of what is said, lines alone elsewhere."""
    if not sys.stderr.isatty():
        yield say, lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with _terminal() as console, Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(name, total=None)
        yield (
            lambda line: progress.console.print(line, markup=False, highlight=False),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
