"""A bar on the terminal while the weights of a large model are read."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from musespark.api.load import LoadedModel, load_model
from musespark.api.settings import Settings

SHOWN_FROM = 256 << 20  # bytes; less is read before anyone wonders


def load_with_bar(settings: Settings) -> LoadedModel:
    """`load_model`, and on standard error, if that is a terminal, how much of the weights is read."""
    columns = TextColumn("reading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", visible=False)

    def show(done: int, all_bytes: int) -> None:
        bar.update(task, completed=done, total=all_bytes, visible=all_bytes >= SHOWN_FROM)

    with bar:
        return load_model(settings, show)
