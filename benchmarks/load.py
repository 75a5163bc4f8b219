"""A random-weight Muse Glimmer of full size in int4: how it loads, what it takes and how fast it is, beside llama.cpp.

    python benchmarks/load.py FOLDER                        # writes 16.8 GB and 16.3 GB there, once
    python benchmarks/load.py FOLDER --write-only
    python benchmarks/load.py FOLDER --preset toy-glimmer   # the same in small
    python benchmarks/load.py FOLDER --layers 1             # or a slice of the large one, at its full width

FOLDER gets a checkpoint in compressed-tensors int4, one scale for 64 inputs, and the same integers as a GGUF in Q4_0,
which repeats each scale, if llama.cpp knows the family. It knows muse_glimmer, so both engines run the same network.
Text only, since the GGUF holds no image tower (`--vision` adds ours, 3.8 GB). llama.cpp comes from `make peers`;
without it only we are measured.

Each engine runs in a process of its own, after its files were dropped from the page cache. Printed are the time until
it is ready (ours checks its checksums meanwhile), the time until the first token is out, the largest resident
size and what is resident in the end without the pages of mapped files, and tokens a second, best and median. One
stream, the same number of threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from decode import Streams

from musespark.chat.tokenizer import Tokenizer
from musespark.engine.native import NativeRunner, build_info, usable_cores
from musespark.engine.runner import PAGE_SIZE
from musespark.errors import MuseSparkError
from musespark.model.checkpoint import open_checkpoint
from musespark.model.checkpoint_folder import INDEX_FILE, need_space, replacing_folder, write_json
from musespark.model.config import ModelConfig
from musespark.model.convert import split_into_shards
from musespark.model.gguf import convert_to_gguf
from musespark.model.gguf_families import refuse_unknown
from musespark.model.pack_quantized import Quantization
from musespark.model.presets import preset
from musespark.model.quantize import IGNORED_MODULES, SHARD_BYTES, Part, default_group_size, quantized_parts
from musespark.model.tensor_file import TensorWriter, float32_to_bfloat16
from musespark.model.tensors import expected_tensors

PEER = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"
PEER_SCRIPT = Path(__file__).with_name("llama_cpp_peer.py")
GROUP = 64
VALUES_AT_ONCE = 1 << 22
STEP = 512  # tokens of a prompt that are computed at once, in both engines


def choose(name: str, layers: int | None, *, vision: bool) -> ModelConfig:
    config = preset(name)
    if not vision:
        config = dataclasses.replace(config, vision=None, tile_vision=None)
    if layers is None:
        return config
    text = config.text
    if not 1 <= layers <= text.num_hidden_layers:
        sys.exit(f"--layers is {layers}; {name} has {text.num_hidden_layers}")
    # The kinds of layers repeat from the last one back in the Muse families, from the first in Llama 4.
    kept = slice(0, layers) if config.model_type == "llama4" else slice(text.num_hidden_layers - layers, None)
    lists = {field: getattr(text, field)[kept] for field in ("layer_types", "mlp_layer_types", "layer_uses_rope")}
    return dataclasses.replace(config, text=dataclasses.replace(text, num_hidden_layers=layers, **lists))


def write_checkpoint(folder: Path, config: ModelConfig) -> None:
    """Random int4 weights of about the size that training starts from, some rows at a time. The same every time."""
    try:
        quantization = Quantization(4, GROUP)
        parts = {part.name: part for part in quantized_parts(config, quantization)}
    except MuseSparkError:  # small presets have widths that are not multiples of 64
        quantization = Quantization(4, default_group_size(config, 4))
        parts = {part.name: part for part in quantized_parts(config, quantization)}
    sizes = {name: part.size_bytes for name, part in parts.items()}
    need_space(folder, sum(sizes.values()) + gguf_bytes(config))
    shards = split_into_shards(sizes, SHARD_BYTES)
    plan = json.dumps([config.to_dict(), shards])
    with replacing_folder(folder, plan=plan) as new:
        write_json(
            new / "config.json", {**config.to_dict(), "quantization_config": quantization.to_dict(IGNORED_MODULES)}
        )
        Tokenizer.bytes_only().save(new / "tokenizer.json")
        for file, names in shards.items():
            if (new / file).is_file():
                continue
            print(f"writing {file}", flush=True)
            begun, layout = new / f"{file}.partial", {}
            for name in names:
                layout |= parts[name].stored
            with TensorWriter(begun, layout) as out:
                for name in names:
                    write_part(out, parts[name], is_llama4=config.model_type == "llama4")
            begun.rename(new / file)
        if len(shards) > 1:
            files = {stored: file for file, names in shards.items() for name in names for stored in parts[name].stored}
            write_json(new / INDEX_FILE, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files})


def write_part(out: TensorWriter, part: Part, *, is_llama4: bool) -> None:
    for name, (dtype, shape) in part.stored.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        rows = max(1, VALUES_AT_ONCE // math.prod(shape[1:]))
        for start in range(0, shape[0], rows):
            block = (min(rows, shape[0] - start), *shape[1:])
            if name.endswith("_shape"):
                values = np.array([part.stored[f"{part.name}_packed"][1][0], width_of(part)], np.int64)
            elif name.endswith("_packed"):  # every word: eight integers from -8 to 7, spread 4.6
                values = random.integers(0, 1 << 32, block, np.uint32).view(np.int32)
            elif name.endswith("_scale"):
                values = random.uniform(0.8, 1.2, block) / (4.6 * math.sqrt(width_of(part)))
            elif len(shape) > 1:
                values = random.standard_normal(block, np.float32) / math.sqrt(shape[-1])
            else:  # the norms of the Muse families hold weight - 1, but for the last
                values = np.full(block, 1.0 if is_llama4 or name.endswith("model.norm.weight") else 0.0)
            if dtype == "BF16":
                values = float32_to_bfloat16(values.astype(np.float32))
            out.write(name, values.astype(np.float32) if dtype == "F32" else values, start)


def width_of(part: Part) -> int:
    """Inputs of a packed matrix: eight in each of its words."""
    return part.stored[f"{part.name}_packed"][1][1] * 8


def gguf_bytes(config: ModelConfig) -> int:
    """About: 18 bytes for 32 weights, 34 of the embedding."""
    sizes = {name: math.prod(shape) for name, shape in expected_tensors(config).items() if "vision" not in name}
    return sum(size * (34 if "embed_tokens" in name else 18) // 32 for name, size in sizes.items())


def forget(*paths: Path) -> None:
    """Drop files from the page cache, so that the next reader finds them on the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_ours(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Runs in a process of its own."""
    begun = time.perf_counter()
    checkpoint = open_checkpoint(folder, check_while_reading=True)  # as `musespark serve` does
    pages = (args.prompt + args.decode) // PAGE_SIZE + 1
    runner = NativeRunner(
        checkpoint,
        precision=args.precision,
        num_full_pages=pages,
        num_sliding_pages=pages,
        num_threads=args.threads,
    )
    start_s = time.perf_counter() - begun
    Streams(runner, 1).feed(1)
    first_token_s = time.perf_counter() - begun
    prefills, decodes = [], []
    for _ in range(args.repeats):
        stream = Streams(runner, 1)
        prefills.append(timed(stream, [min(STEP, args.prompt - i) for i in range(0, args.prompt, STEP)]))
        decodes.append(timed(stream, [1] * args.decode))
    return {
        "version": metadata.version("musespark"),
        "system": f"{runner.precision}, {runner.isa}, {build_info().get('compiler', '')}",
        "start_s": start_s,
        "first_token_s": first_token_s,
        "prefill_s": prefills,
        "decode_s": decodes,
        **memory(),
    }


def memory() -> dict[str, int]:
    """The largest resident size so far, and what is resident now without pages of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"peak_bytes": "VmHWM", "own_bytes": "RssAnon"}
    return {name: int(fields[field].split()[0]) * 1024 for name, field in names.items()}


def timed(stream: Streams, steps: list[int]) -> float:
    begun = time.perf_counter()
    for num_tokens in steps:
        stream.feed(num_tokens)
    return time.perf_counter() - begun


def in_own_process(command: list[Any], request: dict[str, Any]) -> dict[str, Any]:
    words = [str(part) for part in command]
    done = subprocess.run(words, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def per_second(count: int, seconds: list[float]) -> tuple[float, float]:
    """Best and median."""
    return count / min(seconds), count / statistics.median(seconds)


def report(results: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    print(
        f"{'':12} {'ready s':>9} {'1st token s':>12} {'peak GB':>8} {'own GB':>8} "
        f"{'prefill tok/s':>18} {'decode tok/s':>18}"
    )
    for engine, found in results.items():
        found["prefill_per_s"] = per_second(args.prompt, found["prefill_s"])
        found["decode_per_s"] = per_second(args.decode, found["decode_s"])
        print(
            f"{engine:12} {found['start_s']:9.2f} {found['first_token_s']:12.2f} {found['peak_bytes'] / 1e9:8.2f} "
            f"{found['own_bytes'] / 1e9:8.2f} {found['prefill_per_s'][0]:9,.2f} ({found['prefill_per_s'][1]:6,.2f}) "
            f"{found['decode_per_s'][0]:9,.2f} ({found['decode_per_s'][1]:6,.2f})"
        )
    ratio = None
    if "llama.cpp" in results:
        ours, theirs = results["musespark"], results["llama.cpp"]
        ratio = {name: ours[name][0] / theirs[name][0] for name in ("prefill_per_s", "decode_per_s")}
        ratio |= {name: ours[name] / theirs[name] for name in ("start_s", "first_token_s", "peak_bytes", "own_bytes")}
    cpu = next(
        (line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    machine = {
        "cpu": cpu or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": args.threads,
    }
    asked = {name: getattr(args, name) for name in ("preset", "layers", "vision", "prompt", "decode")}
    print(json.dumps({"benchmark": "load", **asked, "machine": machine, "ratio": ratio, "results": results}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the weights are, or are written")
    parser.add_argument("--preset", default="muse-glimmer-30b")
    parser.add_argument("--vision", action="store_true", help="with our image tower in bfloat16")
    parser.add_argument("--layers", type=int, help="only so many of its layers")
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--precision", help="of our runner; the checkpoint's own if left out")
    parser.add_argument("--prompt", type=int, default=STEP, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded after it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--ours-in-this-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    name = args.preset + ("" if args.layers is None else f"-{args.layers}-layers") + ("-vision" if args.vision else "")
    checkpoint, gguf = args.folder / f"{name}-int4", args.folder / f"{name}-q4_0.gguf"
    if args.ours_in_this_process:
        print(json.dumps(measure_ours(checkpoint, args)))
        return
    config = choose(args.preset, args.layers, vision=args.vision)
    with_peer = PEER.exists()
    try:
        refuse_unknown(config)
    except MuseSparkError as error:
        print(f"llama.cpp is left out: {error.message}")
        with_peer = False
    if not checkpoint.exists():
        write_checkpoint(checkpoint, config)
    if with_peer and not gguf.exists():
        print(f"writing {gguf.name}", flush=True)
        convert_to_gguf(checkpoint, gguf, type="q4_0")
    if args.write_only:
        return
    forget(*checkpoint.glob("*.safetensors"))
    results = {"musespark": in_own_process([sys.executable, __file__, *sys.argv[1:], "--ours-in-this-process"], {})}
    if with_peer:
        forget(gguf)
        speed = {"prompt": args.prompt, "decode": args.decode, "threads": args.threads, "repeats": args.repeats}
        results["llama.cpp"] = in_own_process([PEER, PEER_SCRIPT], {"do": "speed", "model": str(gguf), **speed})
    elif not PEER.exists():
        print("llama.cpp is left out: it is not there; `make peers` compiles it")
    report(results, args)


if __name__ == "__main__":
    try:
        main()
    except MuseSparkError as error:
        sys.exit(error.message)
