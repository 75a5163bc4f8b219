"""What `musespark bench` does: one checkpoint on this machine, measured through the engine, as a table or as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from musespark.engine.native import build_info
from musespark.engine.speed import EngineSpeed, bytes_of_a_token, read_bandwidth
from musespark.errors import ConfigError
from musespark.model.checkpoint import BUNDLED, open_checkpoint
from musespark.model.weight_memory import Precision


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Medians of some runs. decode_bytes_per_s: weights and context that one stream's tokens read from memory."""

    model: str
    precision: str
    isa: str
    threads: int
    prompt_tokens: int
    streams: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    streams_tokens_per_s: float
    decode_bytes_per_s: float
    read_bytes_per_s: float

    @property
    def share_of_reads(self) -> float:
        return self.decode_bytes_per_s / self.read_bytes_per_s


def run_bench(
    checkpoint: Path | None,
    *,
    precision: Precision | None,
    threads: int | None,
    prompt_tokens: int,
    decode_tokens: int,
    streams: int,
    runs: int,
    as_json: bool,
) -> None:
    """Raises CheckpointError, ConfigError and NotEnoughMemory."""
    report = measure(
        checkpoint or BUNDLED,
        precision=precision,
        threads=threads,
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        streams=streams,
        runs=runs,
    )
    if as_json:
        print(json.dumps({**asdict(report), "share_of_reads": report.share_of_reads, "machine": machine()}))
    else:
        print_report(report)


def measure(
    folder: Path,
    *,
    precision: Precision | None,
    threads: int | None,
    prompt_tokens: int,
    decode_tokens: int,
    streams: int,
    runs: int,
) -> BenchReport:
    """Prefill, decode and the memory by turns, `runs` times; tokens of the warm-up are not counted."""
    opened = open_checkpoint(folder.resolve(), check_while_reading=True)
    context = prompt_tokens + 2 * decode_tokens + 512
    longest = opened.config.text.max_position_embeddings
    if context > longest:
        raise ConfigError(
            f"a prompt of {prompt_tokens:,} tokens and {decode_tokens:,} after it, with some to spare, take "
            f"{context:,} places; {folder.name} has {longest:,}: take a smaller --prompt or --decode"
        )
    speed = EngineSpeed(opened, context=context, streams=streams, precision=precision, threads=threads)
    runner = speed.runner
    try:
        speed.decode(prompt_tokens, streams, 1)  # the prompts are in the prefix cache from here on
        prefill, decode, together, reads = [], [], [], []
        for _ in range(runs):
            prefill.append(prompt_tokens / speed.prefill(prompt_tokens))
            decode.append(decode_tokens / speed.decode(prompt_tokens, 1, decode_tokens))
            together.append(streams * decode_tokens / speed.decode(prompt_tokens, streams, decode_tokens))
            reads.append(read_bandwidth(runner.num_threads, 0.2))
        num_bytes = bytes_of_a_token(opened, runner.precision, prompt_tokens)
    finally:
        speed.close()
    return BenchReport(
        model=folder.resolve().name,
        precision=runner.precision,
        isa=runner.isa,
        threads=runner.num_threads,
        prompt_tokens=prompt_tokens,
        streams=streams,
        prefill_tokens_per_s=statistics.median(prefill),
        decode_tokens_per_s=statistics.median(decode),
        streams_tokens_per_s=statistics.median(together),
        decode_bytes_per_s=statistics.median(decode) * num_bytes,
        read_bytes_per_s=statistics.median(reads),
    )


def machine() -> dict[str, str | int]:
    """What a figure must be read with."""
    names = (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    return {
        "cpu": next(names, platform.processor() or platform.machine()),
        "cores": os.cpu_count() or 1,
        "musespark": metadata.version("musespark"),
        "compiler": str(build_info().get("compiler", "")),
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # not Linux
        return []


def print_report(report: BenchReport) -> None:
    title = f"{report.model} in {report.precision}, {report.isa}, threads: {report.threads}"
    table = Table(title=title, box=None, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"prefill of {report.prompt_tokens:,} tokens", f"{report.prefill_tokens_per_s:,.0f}", "tokens/s")
    table.add_row("decode, one stream", f"{report.decode_tokens_per_s:,.0f}", "tokens/s")
    table.add_row(
        "  of weights and context",
        f"{report.decode_bytes_per_s / 1e9:.1f}",
        f"GB/s, {report.share_of_reads:.0%} of what memory gives",
    )
    if report.streams > 1:
        name = f"decode, {report.streams} streams together"
        table.add_row(name, f"{report.streams_tokens_per_s:,.0f}", "tokens/s")
    table.add_row("memory reads", f"{report.read_bytes_per_s / 1e9:.1f}", "GB/s, measured by turns with the model")
    Console().print(table)
    if report.share_of_reads > 1:
        print("More than memory gives: the model lies in the processor's caches, and the work itself is the limit.")
