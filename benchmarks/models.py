"""The random-weight models of the engine benchmark: S, M and G, in our formats and in llama.cpp's, of the same weights.

    python benchmarks/models.py FOLDER                          # all of them, about 32 GB
    python benchmarks/models.py FOLDER --models S --formats bf16 int8 q8_0

    S   Llama 4 shape, hidden 512, 12 layers, 16 experts       0.36B parameters
    M   Llama 4 shape, hidden 2048, 16 layers, 16 experts      2.87B, 0.54B a token
    G   Muse Glimmer shape, hidden 2560, 36 layers, dense      2.9B

FOLDER gets S-bf16, S-int8 and S-int4 (checkpoints), S-q8_0.gguf and S-q4_0.gguf with the same integers as S-int8 and
S-int4, and S-q4_k_m.gguf; if asked for, S-bf16.gguf and S-vllm, the bf16 weights under the names that vLLM reads. They
are the same every time. Speed does not depend on them; divergence does, so they are of the size that training starts
from. What is there already is left alone.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers import tool

from musespark.chat.tokenizer import LLAMA4_TOKENS, Tokenizer
from musespark.errors import ConfigError, MuseSparkError
from musespark.model.checkpoint import BUNDLED
from musespark.model.checkpoint_folder import INDEX_FILE, replacing_folder, write_json
from musespark.model.config import ModelConfig
from musespark.model.convert import split_into_shards
from musespark.model.gguf import GgufType, convert_to_gguf
from musespark.model.pack_quantized import Bits
from musespark.model.quantize import SHARD_BYTES, quantize_checkpoint
from musespark.model.tensor_file import TensorWriter, float32_to_bfloat16
from musespark.model.tensors import expected_tensors, is_float32, is_transposed

VOCAB_SIZE = 32_064
CONTEXT = 131_072
LLAMA4 = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 5, "vocab_size": VOCAB_SIZE}
ROPE = {"rope_type": "default", "rope_theta": 500_000.0}

MODELS: dict[str, dict[str, Any]] = {
    "S": {
        "model_type": "llama4",
        "image_token_index": 10,
        "text_config": {
            **LLAMA4,
            "hidden_size": 512,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "intermediate_size": 1024,  # of an expert, and of the shared one
            "max_position_embeddings": CONTEXT,
            "rope_parameters": ROPE,
        },
    },
    "M": {
        "model_type": "llama4",
        "image_token_index": 10,
        "text_config": {
            **LLAMA4,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 1536,
            "max_position_embeddings": CONTEXT,
            "rope_parameters": ROPE,
        },
    },
    "G": {
        "model_type": "muse_glimmer",
        "image_token_id": 10,
        "text_config": {
            **LLAMA4,
            "hidden_size": 2560,
            "intermediate_size": 7680,  # three times the width, as in the published one
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "max_position_embeddings": CONTEXT,
            "output_multiplier": (2560 / 256) ** -0.5,
            "rope_parameters": ROPE,
        },
    },
}
FORMATS = ("bf16", "int8", "int4", "q8_0", "q4_0", "gguf_bf16", "q4_k_m", "vllm")
DEFAULT_FORMATS = (*FORMATS[:5], "q4_k_m")
VALUES_AT_ONCE = 1 << 22


def model_config(name: str) -> ModelConfig:
    return ModelConfig.from_dict(MODELS[name])


def path_of(folder: Path, name: str, form: str) -> Path:
    """Where a model is in one of FORMATS."""
    if form in ("bf16", "int8", "int4", "vllm"):
        return folder / f"{name}-{form}"
    return folder / f"{name}-{form.removeprefix('gguf_')}.gguf"


def make_tokenizer(family: str) -> Tokenizer:
    """The tokenizer of the model in the box, with as many entries as the models have rows: every id has a text.

    The entries that come on top are a word and a word's end together, merged last. For llama4 the reserved control
    tokens take its names.
    """
    description = json.loads((BUNDLED / "tokenizer.json").read_text())
    if family == "llama4":
        known = {token["content"] for token in description["added_tokens"]}
        missing = iter([name for name in LLAMA4_TOKENS if name not in known])
        for token in description["added_tokens"]:
            if token["content"].startswith("<|reserved_") and (name := next(missing, None)):
                vocab = description["model"]["vocab"]
                vocab[name] = vocab.pop(token["content"])
                token["content"] = name
    _lengthen(description["model"])
    return Tokenizer(description, f"the tokenizer of {family}")


def _lengthen(model: dict[str, Any]) -> None:
    vocab, merges = model["vocab"], model["merges"]
    for first, second in _pairs(list(vocab)):
        if len(vocab) == VOCAB_SIZE:
            return
        if first + second not in vocab:
            vocab[first + second] = len(vocab)
            merges.append([first, second])


def _pairs(tokens: list[str]) -> Iterator[tuple[str, str]]:
    """Words after a space, and what may follow them: only letters of ASCII, so that no two digits are joined."""
    begins = [token for token in tokens if token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha()]
    ends = [token for token in tokens if token.isascii() and token.isalpha() and token.islower()]
    for distance in range(len(begins)):
        for i, second in enumerate(ends):
            yield begins[(i + distance) % len(begins)], second


def write_bf16(folder: Path, name: str) -> None:
    """A checkpoint of random weights, the same ones every time, some rows at a time."""
    config = model_config(name)
    shapes = expected_tensors(config)
    sizes = {tensor: math.prod(shape) * (4 if is_float32(tensor) else 2) for tensor, shape in shapes.items()}
    shards = split_into_shards(sizes, SHARD_BYTES)
    with replacing_folder(folder, plan=json.dumps([config.to_dict(), shards])) as new:
        write_json(new / "config.json", config.to_dict())
        make_tokenizer(config.model_type).save(new / "tokenizer.json")
        for file, names in shards.items():
            layout = {tensor: ("F32" if is_float32(tensor) else "BF16", shapes[tensor]) for tensor in names}
            with TensorWriter(new / file, layout) as out:
                for tensor in names:
                    for start, values in random_rows(tensor, shapes[tensor], config.model_type):
                        out.write(tensor, values if is_float32(tensor) else float32_to_bfloat16(values), start)
        if len(shards) > 1:
            files = {tensor: file for file, names in shards.items() for tensor in names}
            write_json(new / INDEX_FILE, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files})


def random_rows(name: str, shape: tuple[int, ...], family: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 values) of a tensor, in order; matrices with a spread of 1/sqrt(inputs)."""
    if len(shape) == 1:  # the norms of Glimmer hold weight - 1, but for the last
        yield 0, np.full(shape, 1.0 if family == "llama4" or name.endswith("model.norm.weight") else 0.0, np.float32)
        return
    random = np.random.default_rng(zlib.crc32(name.encode()))
    spread = np.float32(shape[1 if is_transposed(name) else -1] ** -0.5)
    step = max(1, VALUES_AT_ONCE // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield start, random.standard_normal((min(step, shape[0] - start), *shape[1:]), np.float32) * spread


def write(folder: Path, name: str, form: str) -> None:
    """One model in one of FORMATS, from what is there already; bf16 first if need be."""
    target = path_of(folder, name, form)
    if target.exists():
        return
    sources = {"int8": "bf16", "int4": "bf16", "gguf_bf16": "bf16", "vllm": "bf16", "q8_0": "int8", "q4_0": "int4"}
    if form in sources:
        write(folder, name, sources[form])
    source = path_of(folder, name, sources.get(form, "bf16"))
    print(f"writing {target.name}", flush=True)
    if form == "bf16":
        write_bf16(target, name)
    elif form in ("int8", "int4"):
        bits: Bits = 8 if form == "int8" else 4
        quantize_checkpoint(source, target, bits=bits)
    elif form == "q4_k_m":
        _write_q4_k_m(folder, name, target)
    elif form == "vllm":
        _write_text_only(source, target)
    else:
        kind: GgufType = "bf16" if form == "gguf_bf16" else "q8_0" if form == "q8_0" else "q4_0"
        convert_to_gguf(source, target, type=kind)


def _write_q4_k_m(folder: Path, name: str, target: Path) -> None:
    """llama.cpp's own rounding, from the bf16 file, which goes again if it was not there before."""
    original = path_of(folder, name, "gguf_bf16")
    was_there = original.exists()
    write(folder, name, "gguf_bf16")
    begun = target.with_suffix(".partial")
    subprocess.run([tool("llama-quantize"), original, begun, "Q4_K_M"], check=True, capture_output=True)
    begun.rename(target)
    if not was_there:
        original.unlink()


def _write_text_only(source: Path, target: Path) -> None:
    """The bf16 checkpoint as `Llama4ForCausalLM` of transformers and vLLM has it: other names, the same bytes."""
    config = json.loads((source / "config.json").read_text())
    if config["model_type"] != "llama4":
        raise ConfigError(f"{source} is {config['model_type']}; only Llama 4 has a text-only form in vLLM")
    with replacing_folder(target, plan=str(source)) as new:
        text = config["text_config"] | {"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text"}
        write_json(new / "config.json", text | {"torch_dtype": "bfloat16"})
        (new / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        write_json(new / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        for file in source.glob("*.safetensors"):
            with file.open("rb") as old, (new / file.name).open("wb") as out:
                header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
                renamed = json.dumps({name.removeprefix("language_model."): entry for name, entry in header.items()})
                data = renamed.encode() + b" " * (-len(renamed) % 8)
                out.write(len(data).to_bytes(8, "little") + data)
                shutil.copyfileobj(old, out, 1 << 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(DEFAULT_FORMATS))
    args = parser.parse_args()
    for name in args.models:
        for form in args.formats:
            write(args.folder, name, form)


if __name__ == "__main__":
    try:
        main()
    except MuseSparkError as error:
        sys.exit(error.message)
