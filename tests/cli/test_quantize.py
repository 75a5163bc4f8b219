"""`musespark quantize` as a person uses it: a table, one JSON document, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from musespark.chat.tokenizer import Tokenizer
from musespark.cli.quantize import run_quantize
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.manifest import check_file
from musespark.model.network import build_network
from musespark.model.presets import preset

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds at all. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh toy over bytes, and two texts beside it."""
    folder = tmp_path_factory.mktemp("quantize")
    Tokenizer.bytes_only().save(folder / "tokenizer.json")
    network = build_network(preset("toy"))
    network.init_weights(1)
    files = {"tokenizer.json": folder / "tokenizer.json"}
    save_checkpoint(folder / "float", network.config, network.state_dict(), files=files, dtype="BF16")
    (folder / "text.txt").write_text(TEXT * 40)
    (folder / "short.txt").write_text(TEXT)
    return folder


def quantize(folder: Path, *arguments: object, without: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command in `folder`; `without` a package, as on a machine that lacks it."""
    hide = "" if without is None else f"import sys; sys.modules[{without!r}] = None; "
    program = f"{hide}from musespark.cli import main; main()"
    command = [sys.executable, "-c", program, "quantize", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def refusal(folder: Path, *arguments: object, **options: str) -> str:
    done = quantize(folder, *arguments, **options)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_the_report_is_one_json_document_with_every_layer(folder: Path) -> None:
    done = quantize(folder, "float", "small", "--to", "int4", "--group", 16, "--calibration", "text.txt", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["bits"], document["method"]) == (4, "calibrated")
    divergence = document["divergence"]
    assert divergence["num_tokens"] == 512  # one of the five windows is kept back
    assert 0 < divergence["kl"] < 0.1
    assert 0.5 < divergence["top1_agreement"] <= 1
    assert [layer["layer"] for layer in divergence["layers"]] == [0, 1]
    quantization = open_checkpoint(folder / "small").quantization
    assert quantization is not None
    assert (quantization.bits, quantization.group_size) == (4, 16)


def test_calibration_and_report_check_the_source_once_and_the_result_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def count(path: Path, digest: str) -> None:
        checked.append(path.parent.name)
        check_file(path, digest)

    monkeypatch.setattr("musespark.model.checkpoint_folder.check_file", count)
    run_quantize(
        folder / "float",
        folder / "checked",
        bits=8,
        group_size=16,
        calibration_text=folder / "text.txt",
        report_text=None,
        as_json=True,
    )
    assert checked == ["float", "checked"]


def test_the_table_has_a_row_for_every_layer_and_one_for_the_model(folder: Path) -> None:
    done = quantize(folder, "float", "nearest", "--group", 16, "--report", "text.txt")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("0", "1", "model")] == ["0", "1", "model", "model:"][:3]


def test_without_torch_rounding_works_and_the_rest_says_what_to_install(folder: Path) -> None:
    done = quantize(folder, "float", "plain", "--group", 16, without="torch")
    assert done.returncode == 0, done.stderr
    assert "--report TEXT_FILE would say how far" in done.stdout
    open_checkpoint(folder / "plain")
    for option in ("--calibration", "--report"):
        sentence = refusal(folder, "float", "other", option, "text.txt", without="torch")
        assert "pip install 'musespark[training]'" in sentence
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["float", "other", "--report", "nowhere.txt"], "nowhere.txt can't be read: No such file or directory"),
        (["float", "other", "--calibration", "short.txt"], "too few to keep some back for the report"),
        (["float", "other", "--group", "7"], "greater than or equal to 8"),
        (["float", "other", "--to", "int3"], "int3"),
        (["float", "float"], "float is the source itself"),
        (["nowhere", "other"], "nowhere is not a folder"),
        (["float", "."], "exists and is not a checkpoint"),
    ],
)
def test_what_can_not_be_done_is_said_in_words_and_leaves_nothing(
    folder: Path, arguments: list[str], sentence: str
) -> None:
    assert sentence in " ".join(refusal(folder, *arguments).split())
    assert not (folder / "other").exists()
