from pathlib import Path

import pytest

from musespark.chat.tokenizer import Tokenizer
from musespark.training.tokenizer import train_tokenizer, write_tokenizer

TEXTS = ["The cat's hat, the cats and 12345 dogs. Don't assistant to=user camelCase\n\n  x = [1]\n"] * 20
TEXTS += ["many other words make up a vocabulary that is large enough for every merge above"] * 5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(train_tokenizer(TEXTS, vocab_size=380, show_progress=False), path)
    return path


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def test_special_tokens_come_first_and_every_byte_has_a_token(path: Path) -> None:
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.vocab_size == 380
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|start|>", "<|eot|>", "<|patch|>", "<|reserved_31|>")
    assert [tokenizer.special(name) for name in names] == [0, 1, 2, 6, 10, 31]
    assert {tokenizer.token_bytes(i) for i in range(32, 380)} >= {bytes([b]) for b in range(256)}


def test_digits_stand_alone(path: Path) -> None:
    assert pieces(Tokenizer.from_file(path), "12345") == ["1", "2", "3", "4", "5"]


def test_a_word_keeps_its_space_and_its_contraction_and_capitals_start_anew(path: Path) -> None:
    tokenizer = Tokenizer.from_file(path)
    assert pieces(tokenizer, "The cat's") == ["The", " cat's"]
    assert pieces(tokenizer, " Don't") == [" Don't"]
    assert pieces(tokenizer, "camelCase")[-1].startswith("C")


def test_any_text_survives(path: Path) -> None:
    tokenizer = Tokenizer.from_file(path)
    for text in ("über 😀 \x00\x7f", "  \n\t  ", "日本語 مرحبا", "a" * 1000, ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_that_spells_a_special_token_is_not_one(path: Path) -> None:
    tokenizer = Tokenizer.from_file(path)
    assert not any(tokenizer.is_special(i) for i in tokenizer.encode("<|eot|>"))


def test_the_bundled_tokenizer_is_of_this_kind() -> None:
    folder = Path(__file__).parents[2] / "musespark" / "model" / "checkpoints" / "muse-spark-nano"
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    assert tokenizer.vocab_size == 16_384
    assert pieces(tokenizer, "Hello there, 42 friends") == ["Hello", " there", ",", " ", "4", "2", " friends"]
