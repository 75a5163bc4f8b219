"""Tokens/s of TorchRunner on M at several batch sizes, as a fraction of the bandwidth roofline, beside transformers.

    python runs/gpu/bench.py [--tiny] [--seconds 400] [--out FOLDER]

One JSON file per measurement; those that are there are not measured again. Stops before the next one when `seconds`
are over, and says how many are left.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import MODELS, bytes_of_step, transformers_twin

from musespark.engine.engine import Engine
from musespark.engine.request import FinishReason, Request, SampledToken, SamplingParams
from musespark.engine.runner import NO_PAGE, PAGE_SIZE, Batch
from musespark.engine.torch_runner import TorchRunner
from musespark.engine.torch_runner.weights import random_network
from musespark.model.config import ModelConfig

PROMPT, STEPS, REPEATS = 128, 64, 5
CHUNK = 512  # rows of a prefill, as in serving


class Bench:
    """A model on a device, and how long steps take."""

    def __init__(self, *, tiny: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16
        self.name = "tiny" if tiny else "M"
        self.config = ModelConfig.from_dict(MODELS[self.name])
        self.steps, self.repeats = (4, 2) if tiny else (STEPS, REPEATS)
        self.batches = (1, 3) if tiny else (1, 16, 64, 256)

    def measurements(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Name -> what to call. The bandwidth first, which the others refer to."""
        found: dict[str, Callable[[], dict[str, Any]]] = {"bandwidth": self.bandwidth}
        for batch in self.batches:
            found[f"runner-{batch}"] = lambda batch=batch: self.runner(batch)  # type: ignore[misc]
            found[f"engine-{batch}"] = lambda batch=batch: self.engine(batch)  # type: ignore[misc]
            found[f"transformers-{batch}"] = lambda batch=batch: self.transformers(batch)  # type: ignore[misc]
        found["runner-1-unrecorded"] = lambda: self.runner(1, records=False)
        found["logits"] = self.logits
        return found

    def bandwidth(self) -> dict[str, Any]:
        """Bytes/s of reading, the best of several: a sum over more than any cache."""
        size = 4 << 30 if self.device.type == "cuda" else 64 << 20
        values = torch.ones(size // 4, device=self.device)
        best = min(self._time(values.sum) for _ in range(5))
        return {"read_bytes_per_s": size / best}

    def runner(self, batch: int, *, records: bool = True) -> dict[str, Any]:
        """Decoding steps of the runner alone, logits on the host."""
        runner = self._runner(batch, records=records)
        tables = np.arange(runner.num_full_pages, dtype=np.int32).reshape(batch, -1)
        self._prefill(runner, tables)
        at, times = PROMPT, []
        for _ in range(self.repeats + 1):  # the first records, and is not counted
            at = PROMPT
            started = time.perf_counter()
            for _ in range(self.steps):
                runner.forward(self._step(batch, tables, at, 1))
                at += 1
            times.append(time.perf_counter() - started)
        return self._speed(batch, times[1:]) | {"records": runner.records}

    def engine(self, batch: int) -> dict[str, Any]:
        """Decoding steps of the engine: scheduler, runner, greedy sampler. Counted once all prompts are computed."""
        times = []
        engine = Engine(self._runner(batch), max_batch_tokens=max(CHUNK, batch), max_running=batch, max_waiting=batch)
        for round_ in range(self.repeats + 1):
            outputs = [_Silent() for _ in range(batch)]
            for index, output in enumerate(outputs):
                engine.submit(self._request(f"{round_} {index}", output, seed=1000 * round_ + index))
            while any(output.num_tokens < 1 for output in outputs):
                engine.step()
            before, started = sum(output.num_tokens for output in outputs), time.perf_counter()
            num_steps = 0
            while engine.has_work and num_steps < self.steps:
                engine.step()
                num_steps += 1
            tokens = sum(output.num_tokens for output in outputs) - before
            times.append((time.perf_counter() - started) * batch * self.steps / tokens)
            while engine.has_work:
                engine.step()
        return self._speed(batch, times[1:])

    def transformers(self, batch: int) -> dict[str, Any]:
        """Decoding steps of transformers with its own cache, argmax on the host."""
        from transformers import DynamicCache

        twin = transformers_twin(self.config, self.dtype, self.device)
        ids = torch.from_numpy(self._ids(batch, PROMPT)).to(self.device)
        times = []
        with torch.no_grad():
            for _ in range(self.repeats + 1):
                cache = DynamicCache(config=twin.config)
                twin(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                self._wait()
                token, started = ids[:, -1:], time.perf_counter()
                for _ in range(self.steps):
                    logits = twin(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                    token = logits[:, -1:].argmax(-1)
                    token.cpu()
                times.append(time.perf_counter() - started)
        import transformers

        return self._speed(batch, times[1:]) | {"transformers": transformers.__version__, "attention": "sdpa"}

    def logits(self) -> dict[str, Any]:
        """How far the two are apart on the same weights and text: mean KL divergence in nats, and equal best tokens."""
        network = random_network(self.config, self.dtype, self.device)
        twin = transformers_twin(self.config, self.dtype, self.device, network)
        runner = TorchRunner.of_network(
            network, device=self.device, dtype=self.dtype, num_full_pages=8, num_sliding_pages=8
        )
        batch = self._step(1, np.arange(8, dtype=np.int32)[None], 0, PROMPT)
        every = np.arange(PROMPT, dtype=np.int32)
        got = runner.forward(Batch(**{**_fields(batch), "logit_rows": every}))
        with torch.no_grad():
            theirs = twin(input_ids=torch.from_numpy(batch.token_ids[None].astype(np.int64)).to(self.device)).logits[0]
        p, q = (torch.log_softmax(x.double(), dim=-1) for x in (theirs.cpu(), torch.from_numpy(got)))
        same = (p.argmax(-1) == q.argmax(-1)).double().mean()
        return {"divergence": float((p.exp() * (p - q)).sum(-1).mean()), "same_best_token": float(same)}

    def _runner(self, batch: int, *, records: bool = True) -> TorchRunner:
        network = random_network(self.config, self.dtype, self.device)
        pages = batch * (-(-(PROMPT + 2 * STEPS) // PAGE_SIZE) + 1)
        return TorchRunner.of_network(
            network,
            device=self.device,
            dtype=self.dtype,
            num_full_pages=pages,
            num_sliding_pages=pages,
            records=records,
        )

    def _prefill(self, runner: TorchRunner, tables: np.ndarray) -> None:
        some = CHUNK // PROMPT
        for start in range(0, len(tables), some):
            part = tables[start : start + some]
            runner.forward(self._step(len(part), part, 0, PROMPT))

    def _step(self, batch: int, tables: np.ndarray, start: int, num_tokens: int) -> Batch:
        """The next tokens of every sequence, at random."""
        pages = -(-(start + num_tokens) // PAGE_SIZE)
        table = np.where(np.arange(tables.shape[1]) < pages, tables, NO_PAGE).astype(np.int32)
        ends = np.arange(batch + 1, dtype=np.int32) * num_tokens
        return Batch(
            token_ids=self._ids(batch, num_tokens, start).reshape(-1).astype(np.int32),
            positions=np.tile(np.arange(start, start + num_tokens, dtype=np.int64), batch),
            query_start=ends,
            full_block_table=table,
            sliding_block_table=table,
            embed_rows=np.empty(0, np.int32),
            embeds=np.empty((0, self.config.text.hidden_size), np.float32),
            logit_rows=ends[1:] - 1,
        )

    def _ids(self, batch: int, num_tokens: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(20, self.config.text.vocab_size, (batch, num_tokens))

    def _request(self, name: str, output: _Silent, seed: int) -> Request:
        prompt = tuple(int(token) for token in self._ids(1, PROMPT, seed)[0])
        # Twice as long as is counted: others prefill meanwhile.
        params = SamplingParams(max_tokens=2 * STEPS, temperature=0.0)
        return Request(id=name, prompt=prompt, sampling=params, make_output=lambda index: output)

    def _speed(self, batch: int, times: list[float]) -> dict[str, Any]:
        """Of `steps` steps, in seconds each."""
        step_s = statistics.median(times) / self.steps
        bytes_read = bytes_of_step(self.config, self.dtype, batch, PROMPT + self.steps // 2)
        return {"batch": batch, "tokens_per_s": batch / step_s, "step_ms": 1000 * step_s, "bytes_of_step": bytes_read}

    def _time(self, work: Callable[[], object]) -> float:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class _Silent:
    """An output that counts."""

    reasoning_tokens = 0

    def __init__(self) -> None:
        self.num_tokens = 0

    def push(self, token: SampledToken) -> FinishReason | None:
        self.num_tokens += 1
        return None

    def finish(self, stop_token: int | None) -> None:
        pass

    def take(self) -> list[object]:
        return []


def _fields(batch: Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in Batch.__slots__}


def table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Markdown of what is measured so far."""
    bandwidth = results.get("bandwidth", {}).get("read_bytes_per_s")
    if bandwidth:
        yield f"Read bandwidth: {bandwidth / 1e9:,.0f} GB/s. {results.get('logits', '')}\n"
    yield "| measured | batch | tokens/s | ms a step | of the roofline |"
    yield "|---|---|---|---|---|"
    for name, result in results.items():
        if "tokens_per_s" in result:
            share = result["bytes_of_step"] / bandwidth / (result["step_ms"] / 1000) if bandwidth else float("nan")
            speed = f"{result['tokens_per_s']:,.0f} | {result['step_ms']:.2f}"
            what = name.replace(f"-{result['batch']}", "")
            yield f"| {what} | {result['batch']} | {speed} | {share:.0%} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a toy model, a few steps")
    parser.add_argument("--seconds", type=float, default=400.0, help="start nothing new after these")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "runs/out/gpu"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    bench = Bench(tiny=args.tiny)
    results: dict[str, dict[str, Any]] = {}
    left = []
    for name, measure in bench.measurements().items():
        path = args.out / f"bench-{bench.name}-{bench.device.type}-{name}.json"
        if not path.exists():
            if time.monotonic() - started > args.seconds:
                left.append(name)
                continue
            result = measure()
            gc.collect()
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
            path.write_text(json.dumps(result) + "\n", encoding="utf-8")
        results[name] = json.loads(path.read_text(encoding="utf-8"))
        print(name, json.dumps(results[name]), flush=True)
    lines = "\n".join(table(results))
    (args.out / f"bench-{bench.name}-{bench.device.type}.md").write_text(lines + "\n", encoding="utf-8")
    print(lines)
    print(f"left: {', '.join(left)}; run this again" if left else "all done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
