"""What a run tells: one JSON line per step in metrics.jsonl, and one live line on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live

from musespark.training.progress import Progress
from musespark.training.recipe import Recipe

PLAIN_EVERY = 20  # steps between lines when the output is a file


class Reporter:
    def __init__(self, recipe: Recipe, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._recipe = recipe
        self._file: TextIO = (out / "metrics.jsonl").open("a", encoding="utf-8")
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=2) if self._console.is_terminal else None
        self._smooth: float | None = None
        self._tokens = 0

    def __enter__(self) -> Reporter:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._file.close()

    def step(self, progress: Progress, metrics: dict[str, Any], seconds: float) -> None:
        phase = self._recipe.phases[progress.phase].name
        speed = (progress.tokens - self._tokens) / seconds if self._tokens else 0.0
        self._tokens = progress.tokens
        record = {
            "step": progress.total_steps,
            "phase": phase,
            **{name: round(value, 5) for name, value in metrics.items()},
            "tokens": progress.tokens,
            "tokens_per_s": round(speed),
            "seconds": round(seconds, 3),
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        loss = metrics["loss"]
        self._smooth = loss if self._smooth is None else 0.95 * self._smooth + 0.05 * loss
        left = max(0, int(progress.seconds_left(self._recipe)))
        line = (
            f"{phase} {progress.step + 1:,}/{progress.steps:,} · loss {self._smooth:.3f} · {speed:,.0f} tokens/s · "
            f"{progress.tokens / 1e6:.2f}M tokens · {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        )
        if self._live is not None:
            self._live.update(line)
        elif progress.total_steps % PLAIN_EVERY == 0:
            self._console.print(line, highlight=False)
