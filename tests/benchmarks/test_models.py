"""The models of the engine benchmark have the shapes that the peers were measured with."""

from __future__ import annotations

import math

import numpy as np
import pytest
from models import VOCAB_SIZE, make_tokenizer, model_config, random_rows

from musespark.model.gguf_families import refuse_unknown
from musespark.model.gguf_vocab import splitter
from musespark.model.tensors import expected_tensors


def parameters(name: str, *, without: str = " ") -> int:
    shapes = expected_tensors(model_config(name))
    return sum(math.prod(shape) for tensor, shape in shapes.items() if without not in tensor)


@pytest.mark.parametrize(("name", "millions"), [("S", 361.7), ("M", 2866.6)])
def test_parameters_in_all_are_those_of_the_measured_models(name: str, millions: float) -> None:
    assert round(parameters(name) / 1e6, 1) == millions


@pytest.mark.parametrize(("name", "millions"), [("S", 62), ("M", 536)])
def test_parameters_of_a_token_are_those_of_the_measured_models(name: str, millions: float) -> None:
    text = model_config(name).text
    of_others = 15 * 3 * text.hidden_size * text.moe_intermediate_size * text.num_hidden_layers
    assert round((parameters(name, without="embed_tokens") - of_others) / 1e6) == millions


def test_glimmer_is_about_3b() -> None:
    assert 2.8e9 < parameters("G") < 3.1e9


@pytest.mark.parametrize("name", ["S", "M", "G"])
def test_llama_cpp_can_run_every_model(name: str) -> None:
    refuse_unknown(model_config(name))


@pytest.mark.parametrize("family", ["llama4", "muse_glimmer"])
def test_every_row_of_the_head_is_a_token_with_a_text(family: str) -> None:
    tokenizer = make_tokenizer(family)
    assert tokenizer.vocab_size == VOCAB_SIZE
    ordinary = [i for i in range(VOCAB_SIZE) if i not in tokenizer.special_ids]
    assert all(tokenizer.decode([i]) for i in ordinary)
    assert tokenizer.decode(tokenizer.encode("Once upon a time, in 2026, €5")) == "Once upon a time, in 2026, €5"
    splitter(tokenizer)  # raises if llama.cpp can't split text like it


def test_random_weights_are_the_same_every_time_and_of_the_size_that_training_starts_from() -> None:
    name, shape = "language_model.model.layers.0.feed_forward.experts.down_proj", (4, 256, 64)  # (E, in, out)
    rows = np.concatenate([values for _, values in random_rows(name, shape, "llama4")])
    again = np.concatenate([values for _, values in random_rows(name, shape, "llama4")])
    assert rows.shape == shape
    assert (rows == again).all()
    assert 0.9 < rows.std() * math.sqrt(256) < 1.1
