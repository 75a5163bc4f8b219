"""What `musespark inspect` prints: counts and sizes as tables, or as one JSON document."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from musespark.engine.machine_memory import total_memory_bytes
from musespark.errors import CheckpointError
from musespark.model.checkpoint import open_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.presets import PRESETS, preset
from musespark.model.size import Report, describe

GB = 10**9


def print_report(model: str, context: int | None, memory_gb: float | None, *, as_json: bool) -> None:
    """Describe a preset or a checkpoint folder: of a folder, what its weights will take as they are stored there.

    Raises ConfigError if it is neither, CheckpointError if it is empty or can't be loaded.
    """
    folder = None if model in PRESETS or not Path(model).exists() else Path(model)
    config = preset(model) if folder is None else ModelConfig.from_file(folder / "config.json")
    stored_bytes = None if folder is None else _stored_bytes(folder)
    checkpoint = None if folder is None else open_checkpoint(folder, check_while_reading=True)
    memory = total_memory_bytes() if memory_gb is None else int(memory_gb * GB)
    report = describe(config, context_tokens=context, memory_bytes=memory, checkpoint=checkpoint)
    if as_json:
        print(json.dumps({"model": model, "stored_bytes": stored_bytes, **report.to_dict()}))
        return
    console = Console()
    console.print(_parameters(model, report))
    console.print(_fits(report))
    if stored_bytes is not None:
        console.print(f"stored: {stored_bytes:,} bytes of safetensors", highlight=False)
    kv = report.kv_cache["bf16"]
    console.print(
        f"KV cache in bf16: {kv.full_bytes_per_token:,} B a token in {kv.num_full_layers} full layers; "
        f"at most {kv.largest_sliding_bytes / 2**20:,.1f} MiB a sequence in {kv.num_sliding_layers} local layers"
    )
    flops = report.flops_per_token
    console.print(
        f"work for the last token of this context: {flops.weights / GB:,.3f} GFLOP with weights, "
        f"{flops.attention / GB:,.3f} in attention"
    )


def _stored_bytes(folder: Path) -> int:
    files = list(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no safetensors")
    return sum(file.stat().st_size for file in files)


def _parameters(model: str, report: Report) -> Table:
    p = report.parameters
    table = Table(title=f"{model}: parameters", box=None, title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for name, count in p.components.items():
        table.add_row(name, f"{count:,}")
    table.add_section()
    for name, count in (
        ("total", p.total),
        ("text without embedding and head", p.text_body),
        ("active per token, without embedding and head", p.active_body),
        ("active per token, with head", p.active_with_lm_head),
        ("buffers (selection bias)", p.buffers),
    ):
        table.add_row(name, f"{count:,}")
    return table


def _fits(report: Report) -> Table:
    memory = (report.memory_bytes or 0) / GB
    table = Table(
        title=f"a sequence of {report.context_tokens:,} tokens in {memory:,.1f} GB", box=None, title_justify="left"
    )
    for name in ("precision", "weights GB", "KV GB", "fits", "longest context that fits"):
        table.add_column(name, justify="left" if name == "precision" else "right")
    for fit in report.fits:
        table.add_row(
            fit.precision,
            f"{fit.weights_bytes / GB:,.3f}",
            f"{fit.kv_bytes / GB:,.3f}",
            "yes" if fit.fits else "no",
            f"{fit.longest_context:,}",
        )
    return table
