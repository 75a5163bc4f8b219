"""Loading takes the memory of the weights and of one tensor, reads every byte about once, and lets Python go on."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musespark.engine.native import NativeRunner
from musespark.errors import CheckpointError
from musespark.model import file_reader
from musespark.model.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from musespark.model.checkpoint_folder import replacing_folder, write_json
from musespark.model.config import ModelConfig
from musespark.model.pack_quantized import Quantization
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint, quantized_parts
from musespark.model.tensor_file import DTYPES, TensorWriter
from tests.model.files import random_tensors

STATUS = Path("/proc/self/status")
MARGIN = 24 << 20  # the allocator's leavings, pages of the header, threads


def wide_config() -> ModelConfig:
    """A text-only Muse Glimmer of 390M parameters in five layers."""
    config = preset("toy-glimmer")
    layers = 5
    text = dataclasses.replace(
        config.text,
        vocab_size=8192,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        layer_types=("full_attention",) * layers,
        mlp_layer_types=("dense",) * layers,
        layer_uses_rope=(True,) * layers,
    )
    return dataclasses.replace(config, text=text, vision=None)


def write_random_int4(folder: Path, config: ModelConfig) -> None:
    """Any words, all scales and floats one: about as large as the model in four bits."""
    quantization = Quantization(4, 32)
    layout = {name: what for part in quantized_parts(config, quantization) for name, what in part.stored.items()}
    random = np.random.default_rng(0)
    with replacing_folder(folder) as new:
        write_json(new / "config.json", {**config.to_dict(), "quantization_config": quantization.to_dict(())})
        with TensorWriter(new / "model.safetensors", layout) as out:
            for part in quantized_parts(config, quantization):
                for name, (dtype, shape) in part.stored.items():
                    if dtype == "I32":
                        values = np.frombuffer(random.bytes(4 * math.prod(shape)), np.int32).reshape(shape)
                    elif dtype == "I64":
                        out_features, words = part.stored[f"{part.name}_packed"][1]
                        values = np.array([out_features, words * 8], np.int64)
                    else:
                        values = np.full(shape, 0x3F80 if dtype == "BF16" else 1, DTYPES[dtype])
                    out.write(name, values)


PROGRAM = """
import json, re, sys
from pathlib import Path
from musespark.engine.native import NativeRunner
from musespark.model.checkpoint import open_checkpoint
from musespark.model.weight_memory import largest_tensor_bytes

def kib(field):
    return 1024 * int(re.search(rf"^{field}:\\s*(\\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])

checkpoint = open_checkpoint(sys.argv[1], check_while_reading=True)
before = kib("VmRSS")
runner = NativeRunner(checkpoint, num_full_pages=1, num_sliding_pages=1, num_threads=1)
print(json.dumps({
    "precision": runner.precision, "peak": kib("VmHWM") - before, "own": kib("RssAnon"),
    "weights": runner.weight_bytes, "largest": largest_tensor_bytes(checkpoint),
}))
"""


@pytest.mark.skipif(not STATUS.exists(), reason="this system does not say how much memory a process had at the most")
def test_the_peak_is_the_weights_and_one_tensor(tmp_path: Path) -> None:
    """In a process of its own. Through a mapping it would be twice the weights, with bytes between three times."""
    config = wide_config()
    write_random_int4(tmp_path / "wide", config)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "wide")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["precision"] == "int4"
    assert found["weights"] > 200 << 20
    assert found["largest"] == 2 * 8192 * 2048  # the embedding
    assert found["weights"] < found["peak"] < found["weights"] + found["largest"] + MARGIN


@pytest.fixture(params=["toy", "toy-glimmer", "toy-llama4"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return preset(request.param)


def stored_plainly(folder: Path, config: ModelConfig) -> None:
    save_checkpoint(folder, config, random_tensors(config), dtype="BF16")


def stored_in_four_bits(folder: Path, config: ModelConfig) -> None:
    save_checkpoint(folder.with_name("plain"), config, random_tensors(config))
    quantize_checkpoint(folder.with_name("plain"), folder, bits=4)


@pytest.mark.parametrize("store", [stored_plainly, stored_in_four_bits])
def test_files_that_we_write_are_read_once_with_their_checksum(
    store: Callable[[Path, ModelConfig], None], config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their order is that of loading, but for norms and what is small beside them, which in a toy is a good part."""
    store(tmp_path / "model", config)
    counts: list[int] = []
    read = file_reader.FileReader._read

    def counting(self: file_reader.FileReader, offset: int, out: memoryview) -> object:
        counts.append(len(out))
        return read(self, offset, out)

    monkeypatch.setattr(file_reader.FileReader, "_read", counting)
    monkeypatch.setattr(file_reader, "NEARBY", 1 << 16)
    load(open_checkpoint(tmp_path / "model", check_while_reading=True))
    size = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert size <= sum(counts) < 1.25 * size


def test_a_damaged_file_does_not_become_a_runner(config: ModelConfig, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", config, random_tensors(config))
    path = tmp_path / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load(open_checkpoint(tmp_path / "model", check_while_reading=True))


def test_python_runs_on_while_weights_are_packed(tmp_path: Path) -> None:
    """A server answers that its model is loading: this thread counts milliseconds while another one loads."""
    config = dataclasses.replace(
        preset("toy-glimmer"), text=dataclasses.replace(preset("toy-glimmer").text, vocab_size=100_000), vision=None
    )
    save_checkpoint(tmp_path / "model", config, random_tensors(config))
    checkpoint = open_checkpoint(tmp_path / "model")
    thread = threading.Thread(target=load, args=(checkpoint, "int4"))
    count = 0
    thread.start()
    while thread.is_alive():
        thread.join(0.001)
        count += 1
    assert count >= 5


def load(checkpoint: Checkpoint, precision: str | None = None) -> NativeRunner:
    return NativeRunner(checkpoint, precision=precision, num_full_pages=1, num_sliding_pages=1, num_threads=1)  # type: ignore[arg-type]
