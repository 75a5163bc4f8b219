"""The main path in under a minute: train a two-layer model, save, quantise, serve, call the SDK, check the usage."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import zstandard

from musespark.training.shards import read_texts
from musespark.training.tokenizer import train_tokenizer, write_tokenizer

MUSESPARK = Path(sys.executable).with_name("musespark")

RECIPE = """
from pathlib import Path
from musespark.model.presets import preset
from musespark.training.recipe import Phase, Recipe, TextData

HERE = Path(__file__).parent

def recipe():
    return Recipe(
        name="tiny",
        config=preset("toy"),
        tokenizer=HERE / "tokenizer.json",
        sources={"lines": TextData(("lines.jsonl.zst",))},
        phases=(Phase("pretrain", 20, {"lines": 1}),),
        sequence_length=64,
        rows_per_step=8,
        rows_per_forward=8,
        warmup_steps=2,
    )
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for 20 steps by `musespark train`, quantised by `musespark quantize`."""
    folder = tmp_path_factory.mktemp("main-path")
    rows = [
        {"text": f"{i} plus {i + 1} makes {2 * i + 1}, and the cat sat on mat number {i}. " * 4} for i in range(300)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "lines.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    tokenizer = train_tokenizer(read_texts(folder / "lines.jsonl.zst"), vocab_size=320, show_progress=False)
    write_tokenizer(tokenizer, folder / "tokenizer.json")
    (folder / "tiny.py").write_text(RECIPE)
    musespark("train", folder / "tiny.py", "--data", folder, "--out", folder / "run")
    musespark("quantize", folder / "run" / "checkpoint", folder / "tiny-int8", "--to", "int8")
    losses = [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    return folder / "tiny-int8"


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The base URL and the key that `musespark serve` prints on its first start."""
    state = tmp_path_factory.mktemp("state")
    process = subprocess.Popen(
        [MUSESPARK, "serve", checkpoint, "--port", "0", "--state-dir", state],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        banner = ""
        while "curl" not in banner:
            line = process.stdout.readline()
            assert line, f"the server ended: {banner}"
            banner += line
        url = re.search(r"http://\S+/v1", banner)
        key = re.search(r"sk-muse-\w+", banner)
        assert url is not None
        assert key is not None
        yield url[0], key[0]
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_train_save_quantise_serve_and_ask(server: tuple[str, str]) -> None:
    url, key = server
    with openai.OpenAI(base_url=url, api_key=key, _strict_response_validation=True) as client:
        model = client.models.list().data[0].id
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "1 plus 2 makes"}],
            max_completion_tokens=12,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
    assert model == "tiny-int8"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert httpx.get(url.removesuffix("/v1") + "/readyz").status_code == 200


def musespark(*arguments: object) -> None:
    done = subprocess.run([MUSESPARK, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
