"""From a checkpoint folder to answers: the memory plan by hand-computed cases, and a random toy model end to end."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musespark.api.load import load_model, model_info
from musespark.api.settings import Settings
from musespark.chat.messages import Image, Message, Text
from musespark.chat.tokenizer import LLAMA4_TOKENS, Tokenizer
from musespark.engine.request import Usage
from musespark.errors import CheckpointError, ConfigError, InvalidImage
from musespark.model.checkpoint import save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.presets import preset
from musespark.providers.base import ChatEvent, ChatRequest, ContentDelta, Finished, ReasoningDelta
from tests.chat.image_samples import encoded, picture
from tests.model.files import TOY, random_tensors, toy_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model over bytes: it says nothing, but it says it through every room."""
    folder = tmp_path_factory.mktemp("checkpoints") / "toy"
    spoken = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer.bytes_only().save(spoken)
    save_checkpoint(folder, TOY, random_tensors(TOY), files={"tokenizer.json": spoken, "model_card.md": "# toy\n"})
    return folder


def test_a_toy_model_answers_text_and_images_with_nothing_but_text(checkpoint: Path, tmp_path: Path) -> None:
    async def run() -> None:
        model = load_model(Settings(checkpoint=checkpoint, state_dir=tmp_path, threads=1, precision="float32"))
        try:
            assert model.provider.ready
            assert model.provider.model.id == "toy"
            content = (Image(encoded(picture(56, 28), "PNG")), Text("hi"))
            request = ChatRequest(
                id="r1",
                messages=(Message("user", content),),
                cache_salt=b"",
                temperature=2.0,
                seed=1,
                max_tokens=300,
                n=2,
            )
            events = [event async for event in await model.provider.chat(request)]
        finally:
            await model.close(0.0)
        usage = events.pop()
        assert isinstance(usage, Usage)
        assert usage.image_tokens == 2
        assert 2 <= usage.completion_tokens <= 600
        assert {event.index for event in events if isinstance(event, Finished)} == {0, 1}
        text = "".join(event.text for event in events if isinstance(event, ContentDelta | ReasoningDelta))
        assert "<|" not in text
        assert not model.provider.ready

    asyncio.run(run())


def ask(folder: Path, state_dir: Path, *content: Image | Text) -> list[ChatEvent]:
    """What a checkpoint that was just saved answers to one message."""

    async def run() -> list[ChatEvent]:
        model = load_model(Settings(checkpoint=folder, state_dir=state_dir, threads=1))
        try:
            request = ChatRequest(id="r1", messages=(Message("user", content),), cache_salt=b"", seed=1, max_tokens=5)
            return [event async for event in await model.provider.chat(request)]
        finally:
            await model.close(0.0)

    return asyncio.run(run())


@pytest.mark.parametrize(("size", "num_tokens"), [((300, 200), 144), ((672, 400), 720)])
def test_a_llama4_model_reads_a_picture_of_one_and_of_several_tiles(
    size: tuple[int, int], num_tokens: int, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.bytes_only(LLAMA4_TOKENS)
    data = preset("toy-llama4").to_dict()
    data["vision_config"] |= {"image_size": 336}
    data["text_config"] |= {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 2048}
    config = ModelConfig.from_dict(data | {"image_token_index": tokenizer.special("<|patch|>")})
    tokenizer.save(tmp_path / "tokenizer.json")
    files = {"tokenizer.json": tmp_path / "tokenizer.json"}
    save_checkpoint(tmp_path / "tiny-llama4", config, random_tensors(config), files=files)
    events = ask(tmp_path / "tiny-llama4", tmp_path, Image(encoded(picture(*size), "PNG")), Text("What is this?"))
    usage = events[-1]
    assert isinstance(usage, Usage)
    assert usage.image_tokens == num_tokens
    assert usage.completion_tokens >= 1


@pytest.mark.parametrize("family", ["muse_spark", "muse_glimmer"])
def test_a_model_without_a_vision_tower_answers_text_and_refuses_images(family: str, tmp_path: Path) -> None:
    config = replace(preset("toy" if family == "muse_spark" else "toy-glimmer"), vision=None)
    spoken = tmp_path / "tokenizer.json"
    Tokenizer.bytes_only().save(spoken)
    save_checkpoint(tmp_path / "reader", config, random_tensors(config), files={"tokenizer.json": spoken})
    usage = ask(tmp_path / "reader", tmp_path, Text("hi"))[-1]
    assert isinstance(usage, Usage)
    assert usage.completion_tokens >= 1
    with pytest.raises(InvalidImage, match="reads text only") as refusal:
        ask(tmp_path / "reader", tmp_path, Text("hi"), Image(encoded(picture(56, 28), "PNG")))
    assert (refusal.value.code, refusal.value.param) == ("invalid_image", "messages.0.content.1")


def test_the_context_fits_the_memory(checkpoint: Path, tmp_path: Path) -> None:
    async def run() -> int:
        model = load_model(Settings(checkpoint=checkpoint, state_dir=tmp_path, threads=1))
        length = model.service.context_length
        await model.close(0.0)
        return length

    assert asyncio.run(run()) == TOY.text.max_position_embeddings


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_model(Settings(checkpoint=tmp_path / "nowhere", state_dir=tmp_path))


@pytest.mark.parametrize("name", ["model.language_model.norm.weight", "lm_head.weight"])
def test_weights_that_are_not_numbers_are_refused_by_the_folders_name(name: str, tmp_path: Path) -> None:
    tensors = random_tensors(TOY)
    tensors[name] = np.full(tensors[name].shape, math.nan, dtype=np.float32)
    spoken = tmp_path / "tokenizer.json"
    Tokenizer.bytes_only().save(spoken)
    folder = tmp_path / "damaged"
    save_checkpoint(folder, TOY, tensors, files={"tokenizer.json": spoken, "model_card.md": "# damaged\n"})
    with pytest.raises(CheckpointError, match="damaged computes NaN or infinity"):
        load_model(Settings(checkpoint=folder, state_dir=tmp_path, threads=1))


def test_a_tokenizer_may_have_as_many_tokens_as_the_model_and_not_one_more(tmp_path: Path) -> None:
    tokenizer = Tokenizer.bytes_only()
    spoken = tmp_path / "tokenizer.json"
    tokenizer.save(spoken)
    num_tokens = tokenizer.vocab_size
    for vocab_size, name in ((num_tokens, "fits"), (num_tokens - 1, "small")):
        config = toy_config(vocab_size=vocab_size, eos_token_id=1, pad_token_id=2)
        save_checkpoint(tmp_path / name, config, random_tensors(config), files={"tokenizer.json": spoken})
    assert isinstance(ask(tmp_path / "fits", tmp_path, Text("hi"))[-1], Usage)
    with pytest.raises(CheckpointError, match=rf"small has {num_tokens} tokens, but vocab_size in config.json is 287"):
        load_model(Settings(checkpoint=tmp_path / "small", state_dir=tmp_path, threads=1))


def test_the_models_name_is_its_folders_or_the_operators(checkpoint: Path, tmp_path: Path) -> None:
    assert model_info(Settings(state_dir=tmp_path), checkpoint, "bf16").id == "toy"
    assert model_info(Settings(state_dir=tmp_path, model_name="mine"), checkpoint, "bf16").id == "mine"
    odd = checkpoint.rename(checkpoint.with_name("odd name"))
    with pytest.raises(ConfigError, match="MUSESPARK_MODEL_NAME"):
        model_info(Settings(state_dir=tmp_path), odd, "bf16")
    odd.rename(checkpoint)


def test_the_fingerprint_changes_with_precision_and_weights(checkpoint: Path, tmp_path: Path) -> None:
    def fingerprint(precision: str) -> str:
        return model_info(Settings(state_dir=tmp_path), checkpoint, precision).fingerprint

    first = fingerprint("bf16")
    assert first == fingerprint("bf16")
    assert first != fingerprint("float32")
    (checkpoint / "model.safetensors").touch()
    assert first != fingerprint("bf16")
    second = fingerprint("bf16")
    (checkpoint / "chat_template.jinja").write_text("another way to ask")
    assert fingerprint("bf16") != second
    (checkpoint / "chat_template.jinja").unlink()


def test_the_program_of_the_gpu_answers_as_the_native_one(checkpoint: Path, tmp_path: Path) -> None:
    """On the CPU, in float32, greedy: the same words through every room."""

    async def answer(device: str) -> str:
        settings = Settings.read(
            checkpoint=checkpoint, state_dir=tmp_path, threads=1, precision="float32", device=device
        )
        model = load_model(settings)
        try:
            content = (Image(encoded(picture(56, 28), "PNG")), Text("hi"))
            asked = ChatRequest(
                id="r1", messages=(Message("user", content),), cache_salt=b"", temperature=0.0, max_tokens=60
            )
            events = [event async for event in await model.provider.chat(asked)]
        finally:
            await model.close(0.0)
        return "".join(event.text for event in events if isinstance(event, ContentDelta | ReasoningDelta))

    assert asyncio.run(answer("torch-cpu")) == asyncio.run(answer("cpu")) != ""


def test_a_gpu_without_a_gpu_or_torch_is_refused_in_a_sentence(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    settings = Settings(checkpoint=checkpoint, state_dir=tmp_path, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device is cuda, but"):
        load_model(settings)
    with pytest.raises(ConfigError, match="MUSESPARK_PRECISION is int8, but device torch-cpu computes in bf16"):
        load_model(Settings(checkpoint=checkpoint, state_dir=tmp_path, device="torch-cpu", precision="int8"))
    code = (  # where nothing has imported torch yet
        "import sys; sys.modules['torch'] = None; from musespark.api.settings import Settings;"
        "from musespark.api.load import load_model; load_model(Settings(device='cuda'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs torch" in done.stderr
    assert "pip install 'musespark[gpu]'" in done.stderr
