import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from musespark.chat.tokenizer import Tokenizer
from musespark.evals.bits_per_byte import document_ids, network_nats, score_texts
from musespark.model.network import MuseSpark
from musespark.model.presets import preset

TOKENIZER = Tokenizer.bytes_only()


@pytest.fixture(scope="module")
def network() -> MuseSpark:
    network = MuseSpark(preset("toy"))
    network.init_weights(seed=0)
    return network.eval()


def test_a_document_that_fits_the_window_is_scored_in_one_piece(network: MuseSpark) -> None:
    document = document_ids("some words in a row", TOKENIZER)
    tokens = torch.from_numpy(document)
    with torch.no_grad():
        expected = F.cross_entropy(network(tokens[None, :-1])[0], tokens[1:], reduction="sum")
    assert network_nats(network, document) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (64, 64), (7, 5)])
def test_windows_score_every_token_once(window: int, stride: int) -> None:
    with torch.no_grad():
        network = MuseSpark(preset("toy"))
        network.lm_head.weight.zero_()  # every token has probability 1/320, whatever is before it
    document = np.arange(32, 72)
    nats = network_nats(network, document, window=window, stride=stride)
    assert nats == pytest.approx(39 * math.log(320), rel=1e-5)


def test_bits_per_byte_count_the_bytes_of_utf8_and_not_the_characters() -> None:
    network = MuseSpark(preset("toy"))
    with torch.no_grad():
        network.lm_head.weight.zero_()
    score = score_texts(network, ["äö", "a"], TOKENIZER)
    assert (score.num_bytes, score.num_tokens) == (5, 7)  # an end token for each text
    assert score.bits_per_byte == pytest.approx(7 * math.log2(320) / 5)
