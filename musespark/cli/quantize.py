"""What `musespark quantize` does: the texts it is given, two bars, and the report as a table or as JSON."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from musespark.errors import DataError, SetupError
from musespark.model.checkpoint import Checkpoint, open_checkpoint
from musespark.model.pack_quantized import Bits
from musespark.model.quantize import Calibration, quantize_checkpoint

if TYPE_CHECKING:
    import numpy as np

    from musespark.model.network.divergence import Divergence

REPORT_WINDOWS = 8  # 4,096 tokens: the report takes about a minute on two cores for the bundled model


def run_quantize(
    source: Path,
    target: Path,
    *,
    bits: Bits,
    group_size: int | None,
    calibration_text: Path | None,
    report_text: Path | None,
    as_json: bool,
) -> None:
    """Raises SetupError if a text is given and torch is missing, DataError for a text that can't be used, and what
    `quantize_checkpoint` raises. Without `report_text` the report is on a quarter of the calibration text, kept back.
    """
    calibration: Calibration | None = None
    windows: np.ndarray | None = None
    held_out: np.ndarray | None = None
    if calibration_text is not None or report_text is not None:
        if find_spec("torch") is None:
            raise SetupError(
                "calibration and report run the model in torch, which serving does not install: "
                "pip install 'musespark[training]'; without --calibration and --report, quantize needs no torch"
            )
        windows, held_out = _texts(source, calibration_text, report_text)
    checkpoint = open_checkpoint(source)  # once for all steps: opening checks every byte
    if windows is not None:
        calibration = _calibration(checkpoint, windows)
    console = Console(stderr=True)
    with Progress(*_columns(DownloadColumn()), console=console) as bar:
        task = bar.add_task("quantising", total=None)
        quantize_checkpoint(
            checkpoint,
            target,
            bits=bits,
            group_size=group_size,
            calibration=calibration,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    report = None if held_out is None else _report(checkpoint, target, held_out, console)
    if as_json:
        method = "nearest" if calibration is None else "calibrated"
        divergence = None if report is None else report.to_dict()
        print(json.dumps({"target": str(target), "bits": bits, "method": method, "divergence": divergence}))
    elif report is None:
        print(f"{target} is written; --report TEXT_FILE would say how far it is from the original")
    else:
        _print_table(target, report)


def _texts(
    source: Path, calibration_text: Path | None, report_text: Path | None
) -> tuple[np.ndarray | None, np.ndarray]:
    """The windows of the calibration, if there is a text for it, and of the report: read before the work begins."""
    from musespark.model.calibration_text import read_windows

    held_out = None if report_text is None else read_windows(source, report_text, REPORT_WINDOWS)
    if calibration_text is None:
        assert held_out is not None, "one of the two texts is given"
        return None, held_out
    windows = read_windows(source, calibration_text)
    if held_out is None:
        num_kept_back = min(len(windows) // 4, REPORT_WINDOWS)
        if num_kept_back == 0:
            raise DataError(
                f"{calibration_text} has only {windows.size:,} tokens, too few to keep some back for the report; "
                "give a longer one, or another with --report"
            )
        windows, held_out = windows[:-num_kept_back], windows[-num_kept_back:]
    return windows, held_out


def _calibration(checkpoint: Checkpoint, windows: np.ndarray) -> Calibration:
    from musespark.model.network.calibration import TextCalibration

    return TextCalibration(checkpoint, windows)


def _report(source: Checkpoint, target: Path, held_out: np.ndarray, console: Console) -> Divergence:
    from musespark.model.network.divergence import compare

    with Progress(*_columns(MofNCompleteColumn()), console=console) as bar:
        task = bar.add_task("comparing layers", total=None)
        report = compare(
            source, target, held_out, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
        bar.update(task, completed=bar.tasks[0].total)
    return report


def _columns(count: DownloadColumn | MofNCompleteColumn) -> tuple[ProgressColumn, ...]:
    return TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn()


def _print_table(target: Path, report: Divergence) -> None:
    table = Table(
        title=f"{target} beside its original, on {report.num_tokens:,} tokens", box=None, title_justify="left"
    )
    for name in ("layer", "own error", "error so far", "KL here", "top-1 here"):
        table.add_column(name, justify="right")
    for layer in report.layers:
        table.add_row(
            str(layer.layer),
            f"{layer.own_error:.2%}",
            f"{layer.hidden_error:.2%}",
            f"{layer.kl:.5f}",
            f"{layer.top1_agreement:.2%}",
        )
    table.add_section()
    table.add_row("model", "", "", f"{report.kl:.5f}", f"{report.top1_agreement:.2%}")
    console = Console()
    console.print(table)
    console.print(
        "own error: of the layer alone; error so far: of the stream after it; KL (nats) and top-1 agreement 'here': if "
        "the head read the stream after this layer; model: of what the two models predict",
        style="dim",
    )
