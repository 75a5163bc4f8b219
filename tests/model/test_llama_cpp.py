"""llama.cpp itself runs the files that we write, in an environment of its own (`make peers`), and agrees with us.

Without that environment these tests are skipped; `test_gguf.py` reads every file back in any case.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from musespark.chat.ranks import SPLIT_PATTERN
from musespark.chat.tokenizer import SPECIAL_TOKENS, Tokenizer
from musespark.model.checkpoint import BUNDLED, save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.gguf import GgufType, convert_to_gguf
from musespark.model.network import Network, build_network, load_network
from musespark.model.presets import PRESETS
from musespark.model.quantize import quantize_checkpoint

ROOT = Path(__file__).parent.parent.parent
PEER = ROOT / ".venv-peers" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PEER.exists(), reason="needs llama.cpp: make peers")

# Half as wide as scout-nano, with llama.cpp's chunk and no image tower: the file holds none.
SCOUT: dict[str, Any] = {
    **PRESETS["scout-nano"]["text_config"],
    "vocab_size": 288,
    "hidden_size": 96,
    "intermediate_size": 64,
    "intermediate_size_mlp": 128,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "attention_chunk_size": 8192,
}
GLIMMER: dict[str, Any] = {
    **PRESETS["toy-glimmer"]["text_config"],
    "vocab_size": 288,
    "num_hidden_layers": 6,
    "sliding_window": 32,
    "output_multiplier": 0.5,
}


# One that makes little of small differences: with the published qk_scale_factor, attention of random keys is sharp.
CALM = GLIMMER | {"num_hidden_layers": 2, "qk_scale_factor": 1.0}


def config(model_type: str, text: dict[str, Any], **changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({"model_type": model_type, "text_config": text | changes, "image_token_id": 10})


def random_checkpoint(folder: Path, config: ModelConfig) -> Network:
    """Weights far from their initial values, over a tokenizer of bytes."""
    network, generator = build_network(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.normal_(std=tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.3, generator=generator)
            if name.endswith("layernorm.weight") and config.model_type == "llama4":
                tensor.add_(1.0)
    Tokenizer.bytes_only().save(folder.with_name("tokenizer.json"))
    save_checkpoint(folder, config, network.state_dict(), files={"tokenizer.json": folder.with_name("tokenizer.json")})
    return network


def ask(**request: Any) -> dict[str, Any]:
    command = [PEER, ROOT / "benchmarks" / "llama_cpp_peer.py"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def their_logits(model: Path, ids: torch.Tensor) -> np.ndarray:
    out = model.with_suffix(".npy")
    ask(do="logits", model=str(model), tokens=ids[0].tolist(), out=str(out))
    logits: np.ndarray = np.load(out)
    return logits


@torch.no_grad()
def our_logits(network: Network, ids: torch.Tensor) -> np.ndarray:
    hidden, _ = network.hidden_states(ids)
    return network.logits(hidden[0]).numpy()


def prompt(length: int) -> torch.Tensor:
    return torch.randint(32, 288, (1, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "model",
    [
        config("llama4", SCOUT),
        config("llama4", SCOUT, interleave_moe_layer_step=2),
        config("llama4", SCOUT, num_experts_per_tok=3, num_local_experts=5),
        config("llama4", SCOUT, use_qk_norm=False, num_local_experts=128),
        config("llama4", SCOUT, rope_parameters={**SCOUT["rope_parameters"], "high_freq_factor": 4.0}),
        config("llama4", SCOUT, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}),
        config("llama4", SCOUT, num_hidden_layers=4),
        config("muse_glimmer", GLIMMER),
        config("muse_glimmer", GLIMMER, layer_types=["sliding_attention"] * 6, layer_rope_theta=[1] * 6),
    ],
    ids=[
        *("scout", "interleaved", "three of five experts", "maverick", "smooth rope", "plain rope"),
        *("four layers", "glimmer", "glimmer with sliding layers only"),
    ],
)
def test_llama_cpp_computes_our_logits_in_float32(tmp_path: Path, model: ModelConfig) -> None:
    network = random_checkpoint(tmp_path / "toy", model)
    convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type="f32")
    ids = prompt(100)
    ours, theirs = our_logits(network, ids), their_logits(tmp_path / "toy.gguf", ids)
    assert ours.std() > 0.1
    assert np.abs(ours - theirs).max() < 1e-4
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()


def test_llama_cpp_agrees_across_the_edge_of_a_chunk_and_a_step_of_temperature(tmp_path: Path) -> None:
    """Position 8192 opens the second chunk, 8191 the second step. A float32 angle of 8192 radians is good to 5e-4."""
    small = {"hidden_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 4}
    network = random_checkpoint(tmp_path / "toy", config("llama4", SCOUT, **small))
    convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type="f32")
    ids = prompt(8200)
    ours, theirs = our_logits(network, ids), their_logits(tmp_path / "toy.gguf", ids)
    differences = np.abs(ours - theirs).max(axis=1)
    assert differences.max() < 2e-4
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.999


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the logits, against their spread. A random network's best token is best by too little to compare those."""
    return float(np.sqrt(((ours - theirs) ** 2).mean()) / ours.std())


@pytest.mark.parametrize(("type", "limit"), [("bf16", 0.02), ("q8_0", 0.05), ("q4_0", 0.3)])
def test_rounded_files_run_and_are_as_far_off_as_their_rounding(tmp_path: Path, type: GgufType, limit: float) -> None:
    network = random_checkpoint(tmp_path / "toy", config("muse_glimmer", CALM))
    convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type=type)
    ids = prompt(100)
    found = error(our_logits(network, ids), their_logits(tmp_path / "toy.gguf", ids))
    assert limit / 10 < found < limit


@pytest.mark.parametrize(("bits", "type"), [(8, "q8_0"), (4, "q4_0")])
def test_integers_that_were_taken_over_mean_the_same_there(tmp_path: Path, bits: Any, type: GgufType) -> None:
    """Against our float network of the quantised weights: what is left is that llama.cpp rounds activations to q8_0."""
    random_checkpoint(tmp_path / "float", config("muse_glimmer", CALM))
    quantize_checkpoint(tmp_path / "float", tmp_path / "integers", bits=bits, group_size=32)
    convert_to_gguf(tmp_path / "integers", tmp_path / "toy.gguf", type=type)
    ids = prompt(100)
    found = error(our_logits(load_network(tmp_path / "integers"), ids), their_logits(tmp_path / "toy.gguf", ids))
    assert found < 0.05


TEXTS = [
    "Hello, world! It's what they'll say: don't, DON'T, I've.",
    "1 12 123 1234 12345 3.14159 1,000,000",
    'def f(x):\n    return {"a": [x ** 2, x // 3]}  # ok\n\n\n\tif x != y:\r\n',
    "naïve Café — “quoted” … école, straße, Ελληνικά, Русский текст",
    "日本語のテキスト 中文 한국어 العربية עברית",
    "🚀🎉 emoji 👩‍👩‍👧 ½ ² ㎏",
    "  leading, trailing   and   inner spaces   ",
    "<|eot|> <|begin_of_text|> is text here",
    "CamelCaseAndHTTPServer2Go",
    "नमस्ते दुनिया, हिन्दी; ภาษาไทย; Tiếng Việt, e\u0301",
    "",
]


OTHER_THERE = ["ÉCOLE", "mot ÉCOLE"]  # llama.cpp takes É for a small letter, too


def published_split(path: Path) -> Path:
    """A tokenizer with the split pattern of Llama 4, up to three digits together, that knows the texts by heart."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated")
    bytes_of_it = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of_it])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, *OTHER_THERE, *map(str, range(1000, 9999))], trainer)
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("which", ["of the model in the box", "with the published split"])
def test_llama_cpp_reads_text_as_our_tokenizer_does(tmp_path: Path, which: str) -> None:
    """Neither reads control tokens out of text."""
    bundled = which == "of the model in the box"
    path = BUNDLED / "tokenizer.json" if bundled else published_split(tmp_path / "tokenizer.json")
    ours = Tokenizer.from_file(path)
    model = config("muse_glimmer", GLIMMER, vocab_size=ours.vocab_size)
    save_checkpoint(tmp_path / "toy", model, build_network(model).state_dict(), files={"tokenizer.json": path})
    convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type="bf16")
    theirs = ask(do="tokenize", model=str(tmp_path / "toy.gguf"), texts=TEXTS)["tokens"]
    assert dict(zip(TEXTS, theirs, strict=True)) == {text: ours.encode(text) for text in TEXTS}


def test_llama_cpp_cuts_capitals_outside_ascii_in_its_own_way(tmp_path: Path) -> None:
    """What docs/convert.md says; if this fails, llama.cpp has become exact, and that sentence can go."""
    ours = Tokenizer.from_file(published_split(tmp_path / "tokenizer.json"))
    model = config("muse_glimmer", GLIMMER, vocab_size=ours.vocab_size)
    files = {"tokenizer.json": tmp_path / "tokenizer.json"}
    save_checkpoint(tmp_path / "toy", model, build_network(model).state_dict(), files=files)
    convert_to_gguf(tmp_path / "toy", tmp_path / "toy.gguf", type="bf16")
    theirs = ask(do="tokenize", model=str(tmp_path / "toy.gguf"), texts=OTHER_THERE)["tokens"]
    assert all(tokens != ours.encode(text) for text, tokens in zip(OTHER_THERE, theirs, strict=True))
