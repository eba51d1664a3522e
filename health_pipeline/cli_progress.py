"""How far a command is: a bar or a spinner on a terminal, plain lines on standard error where nobody watches."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


def say(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def windows_bar(name: str) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """A bar of windows under the steps on a terminal; plain lines where nobody watches."""
    if not sys.stderr.isatty():
        yield say, lambda done, total: say(f"{name}: {done} of {total} windows")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("windows"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
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
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[share]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None, share="")

        def show(line: str) -> None:
            if found := re.search(r"\b(\d+) % of the file read", line):
                share = int(found.group(1))
                progress.update(task, completed=share, total=100, share=f"{share} %")
            elif line.startswith(" "):
                progress.update(task, description=line.strip())
            else:
                # The next step, which does not say how far it is.
                progress.update(task, description=f"{name}: {line}", total=None, share="")

        yield show


class status_line:  # noqa: N801 - used like a function
    """Progress on the terminal: a spinner with the present step, or plain lines where nobody watches."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._status: Any = None

    def __enter__(self) -> Callable[[str], None]:
        if not sys.stderr.isatty():
            return say
        from rich.console import Console

        console = Console(stderr=True)
        self._status = console.status(self._name)
        self._status.__enter__()

        def show(line: str) -> None:
            if line.startswith(" "):
                self._status.update(f"{self._name}: {line.strip()}")
            else:
                console.print(line, markup=False, highlight=False)

        return show

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.__exit__(*exception)


@contextmanager
def count_bar(name: str, unit: str) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """A bar of things done with the time that is left on a terminal; of what is said, lines alone elsewhere."""
    if not sys.stderr.isatty():
        yield say, lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield (
            lambda line: progress.console.print(line, markup=False, highlight=False),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
