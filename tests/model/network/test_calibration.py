"""A checkpoint run layer by layer, calibrated and compared: equal to the whole network, and nearer than the nearest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from musespark.model.checkpoint import Quantized, open_checkpoint, save_checkpoint
from musespark.model.network import build_network, load_network
from musespark.model.network.calibration import TextCalibration
from musespark.model.network.divergence import compare
from musespark.model.network.gptq import Objective, round_by_inputs
from musespark.model.network.streaming import StreamedNetwork
from musespark.model.pack_quantized import Quantization
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint, quantized_parts
from musespark.model.tensors import is_quantizable

FAMILIES = ["toy", "toy-glimmer", "toy-llama4"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh network of each family, in bfloat16."""
    network = build_network(preset(request.param))
    network.init_weights(1)
    folder = tmp_path_factory.mktemp(request.param) / "float"
    save_checkpoint(folder, network.config, network.state_dict(), dtype="BF16")
    return folder


def tokens(folder: Path, num_windows: int, length: int = 48, seed: int = 0) -> np.ndarray:
    vocab_size = open_checkpoint(folder).config.text.vocab_size
    return np.random.default_rng(seed).integers(20, vocab_size - 20, (num_windows, length))


def test_layer_by_layer_is_the_whole_network(folder: Path) -> None:
    token_ids = torch.from_numpy(tokens(folder, 3))
    expected, _ = load_network(folder).hidden_states(token_ids)
    stream = StreamedNetwork(folder)
    hidden = stream.embed(token_ids)
    for index in range(stream.num_layers):
        hidden = stream.run(stream.layer(index), index, hidden)
    norm = stream.load(stream.network.text_model.norm)
    torch.testing.assert_close(norm(hidden), expected, rtol=1e-5, atol=1e-5)
    assert all(parameter.is_meta for parameter in stream.network.parameters())


def test_calibrated_integers_predict_nearer_the_original_on_a_text_never_seen(folder: Path, tmp_path: Path) -> None:
    held_out = tokens(folder, 8, seed=1)
    quantize_checkpoint(folder, tmp_path / "nearest", bits=4, group_size=16)
    calibration = TextCalibration(folder, tokens(folder, 64))
    quantize_checkpoint(folder, tmp_path / "calibrated", bits=4, group_size=16, calibration=calibration)
    nearest, calibrated = (compare(folder, tmp_path / name, held_out) for name in ("nearest", "calibrated"))
    assert calibrated.kl < 0.85 * nearest.kl
    assert sum(layer.own_error for layer in calibrated.layers) < sum(layer.own_error for layer in nearest.layers)


def test_every_matrix_is_rounded_by_what_it_reads(folder: Path, tmp_path: Path) -> None:
    """Hooks on the whole network say what its Linears read; experts and shared inputs are in the test above."""
    token_ids = tokens(folder, 2)
    network = load_network(folder)
    seen: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and is_quantizable(f"{name}.weight"):
            module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].flatten(0, -2)}))
    with torch.no_grad():
        network.forward(torch.from_numpy(token_ids))
    quantize_checkpoint(
        folder, tmp_path / "small", bits=8, group_size=16, calibration=TextCalibration(folder, token_ids)
    )
    small, original = open_checkpoint(tmp_path / "small"), open_checkpoint(folder)
    for name, inputs in seen.items():
        weight = small.weight(f"{name}.weight")
        assert isinstance(weight, Quantized)
        matrix = original.weight(f"{name}.weight").float32()
        expected, _ = round_by_inputs(matrix, Objective.of(inputs.float()), 8, 16)
        assert (weight.packed == expected).mean() > 0.98, name


def test_matrices_that_are_left_out_change_nothing_for_the_others(folder: Path) -> None:
    quantization = Quantization(4, 16)
    parts = quantized_parts(open_checkpoint(folder).config, quantization)
    matrices = [part.name for part in parts if part.name not in part.stored]
    rows = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    whole, resumed = (TextCalibration(folder, tokens(folder, 4)) for _ in range(2))
    for index, name in enumerate(matrices):
        rounder = whole.rounder(name, quantization)
        if index > len(matrices) // 2:
            width = rounder.keywords["objective"].importance.shape[0]  # type: ignore[attr-defined]
            expected, found = rounder(rows[:, :width]), resumed.rounder(name, quantization)(rows[:, :width])
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_another_text_is_another_job(folder: Path) -> None:
    one, same, other = (TextCalibration(folder, tokens(folder, 1, seed=seed)).identity for seed in (0, 0, 1))
    assert one == same != other


def test_divergence_is_that_of_the_two_networks_predictions(folder: Path, tmp_path: Path) -> None:
    quantize_checkpoint(folder, tmp_path / "small", bits=4, group_size=16)
    token_ids = tokens(folder, 3)
    seen: list[tuple[int, int]] = []
    report = compare(folder, tmp_path / "small", token_ids, progress=lambda *counts: seen.append(counts))
    with torch.no_grad():
        networks = (load_network(path) for path in (folder, tmp_path / "small"))
        original, small = (network.forward(torch.from_numpy(token_ids)).flatten(0, 1) for network in networks)
    kl = F.kl_div(small.log_softmax(-1), original.log_softmax(-1), reduction="batchmean", log_target=True)
    assert report.kl == pytest.approx(float(kl), rel=1e-3)
    assert report.top1_agreement == pytest.approx(float((original.argmax(-1) == small.argmax(-1)).double().mean()))
    assert report.num_tokens == token_ids.size
    num_layers = len(report.layers)
    assert [layer.layer for layer in report.layers] == list(range(num_layers))
    assert report.layers[0].own_error == report.layers[0].hidden_error > 0
    assert seen == [(done, num_layers + 1) for done in range(num_layers + 1)]


def test_a_checkpoint_does_not_differ_from_itself(folder: Path) -> None:
    report = compare(folder, folder, tokens(folder, 1))
    assert (report.kl, report.top1_agreement) == (0, 1)
    assert all(layer.own_error == layer.hidden_error == layer.kl == 0 for layer in report.layers)
