"""llama.cpp in a process of its own: run with `.venv-peers/bin/python`, one JSON object a line in, one out.

    {"do": "tokenize", "model": PATH, "texts": [...]}                     -> {"tokens": [[...], ...]}
    {"do": "logits", "model": PATH, "tokens": [...], "out": PATH.npy, "exact": true}
                                                                          -> writes float32 (tokens, vocabulary)
    {"do": "speed", "model": PATH, "prompt": 512, "decode": 32, "threads": 2, "repeats": 3, "exact": false}
                                                                          -> seconds and peak memory
    {"do": "load", "model": PATH, "threads": 2, "context": 33000, "streams": 1}  -> {"start_s": ...}
    {"do": "prefill", "tokens": 512}                                      -> {"seconds": ...}
    {"do": "decode", "depth": 4096, "streams": 1, "count": 32}            -> {"seconds": ...}

The last three keep the model: benchmarks/engine.py measures by turns. "exact" keeps keys and values in float32 and
leaves flash attention off. Messages of llama.cpp go to standard error.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as api
import numpy as np

F32 = 0  # ggml's number of the type


class Model:
    """A model and one context: `num_tokens` places for each of `streams` sequences."""

    def __init__(
        self, path: str, num_tokens: int, threads: int, *, exact: bool, batch: int = 512, streams: int = 1
    ) -> None:
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp can't load {path}")
        params = api.llama_context_default_params()
        params.n_ctx = num_tokens * streams
        params.n_seq_max = streams
        params.n_batch = batch
        params.n_ubatch = min(512, batch)  # its default
        params.swa_full = False  # as its server has it; faster on layers with windows
        params.n_threads = params.n_threads_batch = threads
        if exact:
            params.type_k = params.type_v = F32
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.batch = batch
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp can't make a context of {num_tokens:,} tokens")
        self.vocab = api.llama_model_get_vocab(self.model)
        self.vocab_size = api.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        tokens = (api.llama_token * room)()
        # Neither the beginning token, nor control tokens out of a text.
        count = api.llama_tokenize(self.vocab, data, len(data), tokens, room, False, False)
        return list(tokens[:count])

    def forward(self, tokens: list[int], first: int, *, all_logits: bool) -> np.ndarray | None:
        """Tokens at positions from `first`, at most a batch of them. Logits (tokens, V), or (1, V) of the last."""
        wanted = range(len(tokens)) if all_logits else (len(tokens) - 1,)
        self.decode([(token, first + i, 0, i in wanted) for i, token in enumerate(tokens)])
        rows = len(tokens) if all_logits else 1
        pointer = api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (rows, self.vocab_size))

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """One step. Each row: token, position, sequence, and whether its logits are wanted."""
        batch = api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        status = api.llama_decode(self.context, batch)
        api.llama_synchronize(self.context)
        api.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode gave {status} at position {rows[0][1]:,}")

    def prefill(self, tokens: list[int], *, all_logits: bool = False) -> list[np.ndarray]:
        parts = range(0, len(tokens), self.batch)
        return [self.forward(tokens[i : i + self.batch], i, all_logits=all_logits).copy() for i in parts]

    def clear(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)


def tokenize(request: dict[str, Any]) -> dict[str, Any]:
    model = Model(request["model"], 64, 1, exact=False)
    return {"tokens": [model.tokenize(text) for text in request["texts"]]}


def logits(request: dict[str, Any]) -> dict[str, Any]:
    tokens = request["tokens"]
    exact = request.get("exact", True)
    model = Model(request["model"], len(tokens) + 64, request.get("threads", 1), exact=exact)
    np.save(request["out"], np.concatenate(model.prefill(tokens, all_logits=True)))
    return {"rows": len(tokens)}


def speed(request: dict[str, Any]) -> dict[str, Any]:
    """What benchmarks/load.py asks of us, too: the same steps, and all of it after the imports."""
    prompt, decode, repeats = request["prompt"], request["decode"], request["repeats"]
    begun = time.perf_counter()
    model = Model(request["model"], prompt + decode + 64, request["threads"], exact=request.get("exact", False))
    start_s = time.perf_counter() - begun
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, prompt).tolist()
    model.forward(tokens[:1], 0, all_logits=False)  # what is mapped and not yet read is read now
    first_token_s = time.perf_counter() - begun
    prefills, decodes = [], []
    for _ in range(repeats):
        model.clear()
        prefills.append(_timed(lambda: model.prefill(tokens)))
        decodes.append(_timed(lambda: [model.forward([i], prompt + i, all_logits=False) for i in range(decode)]))
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "version": f"llama-cpp-python {api.__version__}",
        "system": api.llama_print_system_info().decode(),
        "start_s": start_s,
        "first_token_s": first_token_s,
        "prefill_s": prefills,
        "decode_s": decodes,
        "peak_bytes": int(fields["VmHWM"].split()[0]) * 1024,
        "own_bytes": int(fields["RssAnon"].split()[0]) * 1024,
    }


class Kept:
    """A model between requests, for measuring by turns. Tokens are random and never the same twice."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self.random = np.random.default_rng(0)
        self.lengths: list[int] = []

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        begun = time.perf_counter()
        streams = request["streams"]
        self.model = Model(
            request["model"], request["context"], request["threads"], exact=False, batch=2048, streams=streams
        )
        self.lengths = [0] * streams
        self._feed([0], 1)  # what is mapped and not yet read is read now
        return {
            "start_s": time.perf_counter() - begun,
            "version": f"llama.cpp of llama-cpp-python {api.__version__}",
        }

    def prefill(self, request: dict[str, Any]) -> dict[str, Any]:
        self._clear()
        return {"seconds": _timed(lambda: self._feed([0], request["tokens"]))}

    def decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """`count` tokens of every stream, at a depth that is at least the one asked for, and 5 % more at most."""
        depth, streams, count = request["depth"], list(range(request["streams"])), request["count"]
        if not all(depth <= self.lengths[i] <= depth * 1.05 + 256 for i in streams):
            self._clear()
            for stream in streams:
                self._feed([stream], depth)
        self._feed(streams, 1)
        return {"seconds": _timed(lambda: [self._feed(streams, 1) for _ in range(count)])}

    def _feed(self, streams: list[int], count: int) -> None:
        """The next `count` tokens of each stream, in batches; logits of the last."""
        assert self.model is not None
        rows = []
        for stream in streams:
            tokens = self.random.integers(0, self.model.vocab_size, count).tolist()
            first = self.lengths[stream]
            rows += [(token, first + i, stream, i == count - 1) for i, token in enumerate(tokens)]
            self.lengths[stream] += count
        for start in range(0, len(rows), self.model.batch):
            self.model.decode(rows[start : start + self.model.batch])

    def _clear(self) -> None:
        assert self.model is not None
        self.model.clear()
        self.lengths = [0] * len(self.lengths)


def _timed(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    kept = Kept()
    actions = {"tokenize": tokenize, "logits": logits, "speed": speed}
    actions |= {"load": kept.load, "prefill": kept.prefill, "decode": kept.decode}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(actions[request["do"]](request)), flush=True)
