"""The command line as a person uses it: real processes, what they print, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from musespark.chat.tokenizer import Tokenizer
from musespark.model.checkpoint import save_checkpoint
from tests.api.test_served_families import toy_checkpoint
from tests.model.files import TOY, random_tensors

MUSESPARK = Path(sys.executable).with_name("musespark")


def musespark(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [MUSESPARK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model over bytes."""
    folder = tmp_path_factory.mktemp("checkpoints") / "toy"
    spoken = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer.bytes_only().save(spoken)
    save_checkpoint(folder, TOY, random_tensors(TOY), files={"tokenizer.json": spoken})
    return folder


def refusal(*arguments: object, **options: object) -> str:
    """The one sentence of a command that can't be carried out."""
    done = musespark(*arguments, **options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_key_is_printed_once_listed_by_its_whole_id_and_revoked(tmp_path: Path) -> None:
    state = ("--state-dir", tmp_path)
    secret = musespark("keys", "create", "a laptop", "--expires-days", 3, *state).stdout.strip()
    assert secret.startswith("sk-muse-")
    (listed,) = json.loads(musespark("keys", "list", "--json", *state).stdout)
    table = musespark("keys", "list", *state, env={"COLUMNS": "40", "PATH": ""}).stdout
    assert secret not in table
    assert listed["id"] in table.split()
    # The command reads the clock before the key is made, perhaps in the second before.
    assert 0 <= listed["created_at"] + 3 * 86_400 - listed["expires_at"] < 60
    assert musespark("keys", "revoke", listed["id"], *state).returncode == 0
    assert json.loads(musespark("keys", "list", "--json", *state).stdout)[0]["revoked_at"] is not None


def test_the_answer_alone_goes_to_standard_output(checkpoint: Path, tmp_path: Path) -> None:
    picture = tmp_path / "dot.png"
    Image.new("RGB", (1, 1)).save(picture)
    arguments = ("--checkpoint", checkpoint, "--image", picture, "--max-tokens", 40, "--seed", 1)
    done = musespark("chat", "What is this?", *arguments)
    assert done.returncode == 0
    assert "dot.png: 1 tokens" in done.stderr
    assert "dot.png" not in done.stdout
    assert done.stdout == musespark("chat", *arguments, input="What is this?").stdout


@pytest.mark.parametrize(("preset", "image_tokens"), [("toy", 4), ("toy-glimmer", 4), ("toy-llama4", 144)])
def test_each_family_answers_and_counts_a_picture_its_own_way(preset: str, image_tokens: int, tmp_path: Path) -> None:
    """56 x 56 pixels are four cells of 28 to the Muse families, and one tile of 144 tokens to Llama 4."""
    checkpoint = toy_checkpoint(preset, tmp_path)
    picture = tmp_path / "square.png"
    Image.new("RGB", (56, 56)).save(picture)
    arguments = ("--checkpoint", checkpoint, "--image", picture, "--max-tokens", 8, "--seed", 1)
    done = musespark("chat", "What is this?", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"square.png: {image_tokens} tokens" in done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["chat", "   "], "the question is empty"),
        (["chat", "x", "--image", "/dev/zero"], "/dev/zero is not a file"),
        (["chat", "x", "--image", "https://example.com/a.png"], "remote images are not fetched"),
        (["inspect", "no-such-model"], "no-such-model"),
        (["serve", "/nonexistent"], "/nonexistent"),
        (["keys", "revoke", "key_none"], "key_none"),
        (["keys", "create", "x", "--expires-days", "0"], "--expires-days"),
        (["inspect", "toy", "--memory-gb", "inf"], "--memory-gb"),
    ],
)
def test_what_can_not_be_done_is_said_in_words(
    checkpoint: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    if arguments[0] == "chat":
        arguments = [*arguments, "--checkpoint", str(checkpoint)]
    assert sentence in refusal(*arguments, env={"MUSESPARK_STATE_DIR": str(tmp_path), "PATH": ""})


def test_a_port_that_is_none_is_blamed_on_the_variable_it_came_from() -> None:
    assert "musespark: PORT is 'abc'" in refusal("serve", env={"PORT": "abc", "PATH": ""})


def test_inspect_counts_the_published_model_without_loading_anything() -> None:
    report = json.loads(musespark("inspect", "muse-spark-open", "--json").stdout)
    assert report["parameters"]["total"] == 822_036_513_792
    assert report["parameters"]["active_body"] == 42_780_762_112


def test_inspect_says_what_a_folder_holds(checkpoint: Path, tmp_path: Path) -> None:
    size = (checkpoint / "model.safetensors").stat().st_size
    assert f"stored: {size:,} bytes of safetensors" in musespark("inspect", checkpoint).stdout
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert "holds no safetensors" in refusal("inspect", tmp_path)


def test_the_version_is_that_of_the_package() -> None:
    assert musespark("--version").stdout == "musespark 0.1.0\n"
