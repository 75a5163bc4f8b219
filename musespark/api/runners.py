"""Which runner serves: the native one on the CPU, or torch's on a GPU. torch is imported only for the latter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from musespark.api.settings import Settings
from musespark.engine.native import NativeRunner, default_kv_precision, default_precision, page_bytes
from musespark.engine.runner import Runner
from musespark.errors import ConfigError
from musespark.model.checkpoint import Checkpoint
from musespark.model.weight_memory import planned_weight_bytes
from musespark.model.weight_reader import Progress


@dataclass(frozen=True, slots=True)
class RunnerPlan:
    """A runner that is not made yet: so that its pages can be counted first."""

    precision: str  # of weights, and of KV where it is not the usual one
    page_bytes: tuple[int, int]  # of one full and one sliding page
    weight_bytes: int  # in the memory of this machine; 0 where they are another device's
    make: Callable[[int, int, Progress | None], Runner]  # of so many full and sliding pages


def plan_runner(settings: Settings, checkpoint: Checkpoint) -> RunnerPlan:
    """Raises ConfigError for a device that isn't there or a precision that it doesn't have. Reads no weights."""
    if settings.device != "cpu":
        return _plan_torch(settings, checkpoint)
    precision = settings.precision or default_precision(checkpoint)

    def make(num_full: int, num_sliding: int, progress: Progress | None) -> Runner:
        return NativeRunner(
            checkpoint,
            precision=precision,
            kv_precision=settings.kv_precision,
            num_full_pages=num_full,
            num_sliding_pages=num_sliding,
            num_threads=settings.threads,
            progress=progress,
        )

    kv_precision = settings.kv_precision or default_kv_precision(precision)
    label = precision if kv_precision == default_kv_precision(precision) else f"{precision} kv {kv_precision}"
    pages = page_bytes(checkpoint.config, precision, kv_precision)
    return RunnerPlan(label, pages, planned_weight_bytes(checkpoint, precision), make)


def _plan_torch(settings: Settings, checkpoint: Checkpoint) -> RunnerPlan:
    try:
        from musespark.engine import torch_runner
    except ImportError as error:
        raise ConfigError(
            f"MUSESPARK_DEVICE is {settings.device}, which needs torch ({error}); install it with: "
            "pip install 'musespark[gpu]'"
        ) from None
    if settings.kv_precision:
        raise ConfigError(
            f"MUSESPARK_KV_PRECISION is {settings.kv_precision}, but device {settings.device} keeps keys and values "
            "in its own precision; leave it out"
        )
    device = torch_runner.usable_device("cpu" if settings.device == "torch-cpu" else settings.device)
    precision = settings.precision or "bf16"
    dtype = torch_runner.DTYPES.get(precision)
    if dtype is None:
        raise ConfigError(
            f"MUSESPARK_PRECISION is {precision}, but device {settings.device} computes in bf16 or float32; leave it "
            "out, and integers in the checkpoint are expanded while they are loaded"
        )

    def make(num_full: int, num_sliding: int, progress: Progress | None) -> Runner:
        return torch_runner.TorchRunner(
            checkpoint,
            device=device,
            dtype=dtype,
            num_full_pages=num_full,
            num_sliding_pages=num_sliding,
            progress=progress,
        )

    return RunnerPlan(precision, torch_runner.page_bytes(checkpoint.config, dtype), 0, make)
