"""Who gets how much of the memory: one plan before anything is loaded, printed, and kept to.

Without a budget each part has the size of its setting. With one (`--memory`), requests get at most a quarter of it,
which bounds what they may send (settings.py); the program, the weights and what a step computes take what they take;
encoded pictures get a sixteenth; all that is left are pages of the KV cache, which hold running requests and, as long
as nobody needs them, prefixes for later ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from musespark.api.settings import MAX_BATCH_TOKENS, MIB, Settings
from musespark.engine.machine_memory import available_memory_bytes, resident_bytes, total_memory_bytes
from musespark.engine.runner import PAGE_SIZE
from musespark.errors import ConfigError, NotEnoughMemory
from musespark.model.config import ModelConfig, TextConfig

FEATURES_BYTES = 64 * MIB
FEATURES_SHARE = 16
PIXEL_BYTES = 512 * MIB
SPARE_BYTES = 32 * MIB  # what the program grows by while it works: connections, threads, the allocator's blocks


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of each part. `reading` is what the largest tensor takes while the pages are still empty."""

    program: int
    requests: int
    weights: int
    reading: int
    step: int
    features: int
    pages: int
    num_full_pages: int
    num_sliding_pages: int
    max_pixel_bytes: int  # of the pictures of admitted requests, a part of `requests`

    @property
    def total(self) -> int:
        """The most at any time."""
        working = self.step + self.features + self.pages + self.requests
        return self.program + self.weights + max(working, self.reading)

    def table(self, budget: int | None) -> str:
        """For the operator, one line a part."""
        parts = {
            "program": self.program,
            "weights": self.weights,
            "one step": self.step,
            "KV pages": self.pages,
            "encoded pictures": self.features,
            "requests": self.requests,
        }
        asked = "" if budget is None else f" of {_size(budget)}"
        lines = [f"memory    at most {_size(self.total)}{asked}:"]
        lines += [f"  {name:<18}{_size(num_bytes):>10}" for name, num_bytes in parts.items()]
        return "\n".join(lines)


def plan_memory(
    settings: Settings, config: ModelConfig, page_bytes: tuple[int, int], *, weights: int, largest_tensor: int
) -> MemoryPlan:
    """`page_bytes` of one full and one sliding page, `weights` and `largest_tensor` in bytes.

    Raises ConfigError for a budget that is above what this machine or container has, NotEnoughMemory, with the numbers,
    for one in which not even one request fits.
    """
    program = resident_bytes() + SPARE_BYTES
    budget, total = settings.memory, total_memory_bytes()
    if budget is not None and budget > total:
        raise ConfigError(f"MUSESPARK_MEMORY is {_size(budget)}; this machine or container has {_size(total)}")
    reads_images = config.image_tower is not None
    features = FEATURES_BYTES if reads_images else 0
    pixels = PIXEL_BYTES if reads_images else 0
    if budget is not None:
        features, pixels = min(features, budget // FEATURES_SHARE), min(pixels, settings.request_share)
    bodies = settings.bodies_bytes
    requests = bodies + pixels + (settings.decoding_bytes if reads_images else 0)
    step = step_bytes(config, settings.max_running)
    least = least_pages(config)
    if budget is None:
        memory = settings.kv_memory_mb * MIB
    else:
        memory = budget - program - weights - step - features - requests
        needed = sum(count * size for count, size in zip(least, page_bytes, strict=True))
        short = max(needed - memory, program + weights + largest_tensor - budget)
        if short > 0:
            raise NotEnoughMemory(
                f"MUSESPARK_MEMORY is {_size(budget)}, which is {_size(short)} too little: the program takes "
                f"{_size(program)}, the weights {_size(weights)} (and {_size(largest_tensor)} while they are read), a "
                f"step {_size(step)}, encoded pictures {_size(features)}, requests {_size(requests)}, and pages for "
                f"one request {_size(needed)}"
            )
        if "kv_memory_mb" in settings.model_fields_set:
            memory = min(memory, settings.kv_memory_mb * MIB)
    num_full, num_sliding = plan_pages(config, *page_bytes, memory_bytes=memory, max_running=settings.max_running)
    pages = num_full * page_bytes[0] + num_sliding * page_bytes[1]
    return MemoryPlan(
        program, requests, weights, largest_tensor, step, features, pages, num_full, num_sliding, pixels or MIB
    )


def step_bytes(config: ModelConfig, max_running: int) -> int:
    """About what a step computes at once, counted generously: rows of 512 tokens, logits of all that run, a picture."""
    text = config.text
    widest = max(
        text.num_experts_per_tok * (2 * text.moe_intermediate_size + (text.moe_hidden_size or text.hidden_size)),
        3 * text.intermediate_size,
    )
    heads = (text.num_attention_heads * 2 + text.num_key_value_heads * 2) * text.head_dim
    rows = MAX_BATCH_TOKENS * 4 * (8 * text.hidden_size + heads + widest)
    logits = text.vocab_size * (4 * max_running + 48)  # float32 of all, and of one row the sampler's float64 copies
    return rows + logits + _picture_bytes(config)


def _picture_bytes(config: ModelConfig) -> int:
    """Of the largest picture, while its tower works."""
    if config.vision is not None:
        patches = 4 * 4096  # the most tokens of a picture, four patches each
        return patches * (24 * config.vision.hidden_size + 4 * config.vision.intermediate_size)
    return 0 if config.tile_vision is None else 64 * MIB


def least_pages(config: ModelConfig) -> tuple[int, int]:
    """Full and sliding pages with which one request of `MAX_BATCH_TOKENS` tokens can run."""
    chunk_pages = math.ceil(MAX_BATCH_TOKENS / PAGE_SIZE) + 1
    return min(chunk_pages, _context_pages(config.text)), _window_pages(config.text) + chunk_pages


def plan_pages(
    config: ModelConfig, full_page_bytes: int, sliding_page_bytes: int, *, memory_bytes: int, max_running: int
) -> tuple[int, int]:
    """How many pages of each group fit into `memory_bytes`.

    Sliding pages first, up to half: enough for every running choice to keep its window while one is prefilled. Full
    pages get the rest, up to twice what all running choices can ever fill. Raises ConfigError if not even one request
    of `MAX_BATCH_TOKENS` tokens fits.
    """
    least_full, least_sliding = least_pages(config)
    least_bytes = least_sliding * sliding_page_bytes + least_full * full_page_bytes
    if memory_bytes < least_bytes:
        raise ConfigError(
            f"MUSESPARK_KV_MEMORY_MB is {memory_bytes // MIB}; this model needs at least {math.ceil(least_bytes / MIB)}"
        )
    num_sliding = 2 * max_running * _window_pages(config.text) + math.ceil(MAX_BATCH_TOKENS / PAGE_SIZE) + 1
    if sliding_page_bytes:
        affordable = max(memory_bytes // 2, least_sliding * sliding_page_bytes) // sliding_page_bytes
        num_sliding = min(num_sliding, affordable)
    num_full = 2 * max_running * _context_pages(config.text)
    if full_page_bytes:
        num_full = min(num_full, (memory_bytes - num_sliding * sliding_page_bytes) // full_page_bytes)
    return num_full, num_sliding


def _window_pages(text: TextConfig) -> int:
    return math.ceil(min(text.local_span, text.max_position_embeddings) / PAGE_SIZE) + 1


def _context_pages(text: TextConfig) -> int:
    return math.ceil(text.max_position_embeddings / PAGE_SIZE)


def check_available(plan: MemoryPlan, settings: Settings) -> None:
    """Raise NotEnoughMemory if a budget that somebody asked for isn't free now."""
    free = available_memory_bytes() + resident_bytes()
    if settings.memory is not None and plan.total > free:
        raise NotEnoughMemory(
            f"MUSESPARK_MEMORY is {_size(settings.memory)}, of which {_size(plan.total)} are planned; only "
            f"{_size(free)} of this machine or container are free"
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"
