"""One way to show that long work goes on: a bar on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    total: int, what: str, *, done: int = 0, show: bool | None = None
) -> Iterator[Callable[[int, str], None]]:
    """Show progress on stderr and yield ``advance(steps, note)``.

    Args:
        total: steps of the whole work.
        what: what is being done, in a few words.
        done: steps done before, by a run that is now resumed.
        show: True always, False never, None where stderr is a terminal.

    >>> with progress_bar(3, "counting", show=False) as advance:
    ...     for _ in range(3):
    ...         advance(1, "")
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield lambda steps, note: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(escape(what), total=total, completed=done, note="")
        yield lambda steps, note: bar.update(task, advance=steps, note=escape(note))
