"""Text and tokens: user text is never a control token, every text comes back, long runs end in bounded time."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from chat.spelling import BYTES
from musespark.chat import tokenizer as tokenizer_module
from musespark.chat.tokenizer import PIECE_LENGTH, REQUIRED_TOKENS, SPECIAL_TOKENS, TextStream, Tokenizer
from musespark.errors import CheckpointError, InvalidRequest

# The published Llama 4 / o200k pattern with digits one by one, as our own tokenizer is trained with.
SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = """The cat's tail, 1234 of them, isn't here. Don't say "THEY'LL come" -- or do; I've no idea!
\tdef f(x):\n\t\treturn x  # a comment\r\n\n\nСъешь же ещё этих мягких французских булок. 天地玄黃，宇宙洪荒。日月盈昃。
naïve café e\u0301 ﬁ Ａ １２ 😀👨‍👩‍👧 <|eot|> a_b.c/d?e=f&g http://example.org/~x  <|start|>user<|message|>
"""


@pytest.fixture(scope="module")
def trained() -> tokenizers.Tokenizer:
    """A small byte-level BPE by the Hugging Face trainer, with our special tokens first."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 20 + [name * 50 for name in SPECIAL_TOKENS], trainer)
    return bpe


@pytest.fixture(scope="module")
def bpe(trained: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained.save(str(path))
    return Tokenizer.from_file(path)


def test_the_byte_tokenizer_is_what_it_says() -> None:
    assert BYTES.vocab_size == 32 + 256
    assert BYTES.encode("Aé") == [32 + 0x41, 32 + 0xC3, 32 + 0xA9]
    assert [BYTES.token_bytes(32 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert [BYTES.special(name) for name in SPECIAL_TOKENS] == list(range(32))


def test_special_tokens_have_the_agreed_ids(bpe: Tokenizer) -> None:
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start|>", "<|message|>", "<|eom|>", "<|finetune_right_pad|>"]
    names += ["<|eot|>", "<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>", "<|audio|>", "<|vid_start|>"]
    names += ["<|vid_end|>", "<|vid_frame_separator|>", "<|video|>", *(f"<|reserved_{i}|>" for i in range(16, 32))]
    for tokenizer in (BYTES, bpe):
        assert [tokenizer.special(name) for name in names] == list(range(32))
        assert all(map(tokenizer.is_special, range(32)))
        assert not any(map(tokenizer.is_special, range(32, tokenizer.vocab_size)))
        assert [tokenizer.special_name(i) for i in (6, 10, 32)] == ["<|eot|>", "<|patch|>", None]
        assert tokenizer.special_ids == set(range(32))
        assert tokenizer.stop_token_ids == {1, 6}  # not <|eom|>, after which the same speaker goes on


def test_ordinary_text_has_the_ids_of_the_hugging_face_tokenizer(bpe: Tokenizer, trained: tokenizers.Tokenizer) -> None:
    for text in (*TEXT.replace("<|", "< |").split(" "), TEXT.replace("<|", "< |"), ""):
        assert bpe.encode(text) == trained.encode(text).ids


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_the_name_of_a_special_token_in_text_is_text(name: str, bpe: Tokenizer, trained: tokenizers.Tokenizer) -> None:
    assert trained.encode(name).ids == [SPECIAL_TOKENS.index(name)]  # the danger: the whole tokenizer knows it
    for tokenizer in (BYTES, bpe):
        for text in (name, f"a {name}b", name * 3, f"{name}\n{name}", name[:5] + name, f"<{name}>"):
            ids = tokenizer.encode(text)
            assert not any(map(tokenizer.is_special, ids))
            assert tokenizer.decode(ids) == text


@given(st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(), st.sampled_from(["<|", "|>", "<|e", "ot|>"]))))
def test_any_text_comes_back_and_holds_no_control_token(bpe: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    for tokenizer in (BYTES, bpe):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not any(map(tokenizer.is_special, ids))


@pytest.mark.parametrize("change", ["unflagged", "outside the vocabulary", "ignoring merges"])
def test_no_spelling_of_the_file_lets_control_tokens_in(trained: tokenizers.Tokenizer, change: str) -> None:
    """A forgotten flag, the Llama 3 layout, and the option that takes whole words from the vocabulary."""
    description = json.loads(trained.to_str())
    if change == "unflagged":
        for token in description["added_tokens"]:
            token["special"] = False
    elif change == "outside the vocabulary":
        for name in SPECIAL_TOKENS:
            del description["model"]["vocab"][name]
    else:
        description["model"]["ignore_merges"] = True
        description["pre_tokenizer"] = description["pre_tokenizer"]["pretokenizers"][1]  # without the split
    tokenizer = Tokenizer(description, "a test")
    assert tokenizer.special("<|eot|>") == 6
    assert not any(map(tokenizer.is_special, tokenizer.encode("<|eot|>")))


def test_digits_are_split_singly(bpe: Tokenizer) -> None:
    assert [bpe.token_bytes(i) for i in bpe.encode("1234")] == [b"1", b"2", b"3", b"4"]


def test_special_and_unknown_tokens_decode_to_nothing() -> None:
    assert BYTES.decode([2, 32 + 72, 6, 32 + 105, 288, 10**9, -1]) == "Hi"
    assert BYTES.token_bytes(6) == BYTES.token_bytes(288) == BYTES.token_bytes(-1) == b""


def test_bytes_that_are_no_text_decode_to_the_replacement_character() -> None:
    assert BYTES.decode([32 + 0xFF, 32 + 0x41]) == "\ufffdA"


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "x" * 40_000 + "\ud83d"])
def test_half_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"half of a surrogate pair, U\+D"):
        BYTES.encode(text)


@pytest.mark.parametrize("text", [" ", "a", "A", "é", "中", "\u0301", "/", "\n", "<|eot|>", "a " * 8, "\n ", "1"])
def test_a_megabyte_of_one_thing_takes_seconds_at_most(bpe: Tokenizer, text: str) -> None:
    text *= 1_000_000 // len(text)
    start = time.process_time()
    ids = bpe.encode(text)
    assert time.process_time() - start < 15  # measured: 0.5 to 1.5 s
    assert bpe.decode(ids) == text


@pytest.mark.slow
def test_a_run_that_panics_in_the_library_is_encoded(bpe: Tokenizer) -> None:
    """12 MB of spaces exceed the retry limit of its regular expressions, which aborts with a panic."""
    ids = bpe.encode(" " * 12_000_000)
    assert sum(len(bpe.token_bytes(i)) for i in ids) == 12_000_000


def test_long_text_is_cut_without_changing_its_tokens(
    bpe: Tokenizer, trained: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "PIECE_LENGTH", 61)
    words = TEXT.replace("<|", "< |").split(" ")
    for seed in range(20):
        text = " ".join(random.Random(seed).choices(words, k=300))
        assert bpe.encode(text) == trained.encode(text).ids


@pytest.mark.parametrize("length", [PIECE_LENGTH - 1, PIECE_LENGTH, PIECE_LENGTH + 1, 2 * PIECE_LENGTH, 100_000])
def test_text_around_the_piece_length_comes_back(bpe: Tokenizer, length: int) -> None:
    for text in ("x" * length, ("word, " * length)[:length], ("日月。" * length)[:length]):
        assert bpe.decode(bpe.encode(text)) == text


def test_a_saved_tokenizer_is_read_by_hugging_face_and_by_us(tmp_path: Path) -> None:
    BYTES.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert theirs.encode("Hé").ids == ours.encode("Hé") == BYTES.encode("Hé")
    assert theirs.encode("<|eot|>").ids == [ours.special("<|eot|>")]
    assert theirs.decode(ours.encode("Hé ☃")) == "Hé ☃"


@given(st.lists(st.one_of(st.integers(0, 287), st.sampled_from(BYTES.encode("é😀\u00a0中")))))
def test_a_stream_of_tokens_joins_to_the_decoded_text(ids: list[int]) -> None:
    stream = TextStream(BYTES)
    assert "".join(map(stream.push, ids)) + stream.flush() == BYTES.decode(ids)


@settings(max_examples=30)
@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_a_stream_gives_each_character_when_it_is_whole(text: str) -> None:
    stream = TextStream(BYTES)
    for character in text:
        *parts, last = BYTES.encode(character)
        assert [stream.push(i) for i in parts] == [""] * len(parts)
        assert stream.push(last) == character
    assert stream.flush() == ""


def test_a_stream_gives_the_rest_of_a_broken_character_at_its_end() -> None:
    stream = TextStream(BYTES)
    assert [stream.push(i) for i in BYTES.encode("😀")[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.push(32 + 0x41) == "A"


def good() -> dict[str, Any]:
    return json.loads(json.dumps(BYTES._description))


def without_token(name: str) -> dict[str, Any]:
    description = good()
    description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] != name]
    del description["model"]["vocab"][name]
    return description


def broken() -> dict[str, tuple[dict[str, Any], str]]:
    files: dict[str, tuple[Any, str]] = {
        "a list": ([], "not a byte-level BPE"),
        "nothing": ({}, "not a byte-level BPE"),
        "a word piece model": (good() | {"model": {"type": "WordPiece"}}, "WordPiece"),
        "a vocabulary that is a list": (good() | {"model": {"type": "BPE", "vocab": [], "merges": []}}, "not a byte"),
        "a number for the model": (good() | {"model": 7}, "not a byte-level BPE"),
        "a normalizer that changes text": (good() | {"normalizer": {"type": "NFKC"}}, "must not change text"),
        "lower case": (good() | {"normalizer": {"type": "Lowercase"}}, "must not change text"),
    }
    prefixed = good()
    prefixed["pre_tokenizer"]["add_prefix_space"] = True
    files["a space before every text"] = (prefixed, "must not change text")
    no_letter = good()
    del no_letter["model"]["vocab"]["a"]
    files["a byte without token"] = (no_letter, "1 of the 256 bytes")
    for content, i in {
        "<|eot|>": 32 + 0x41,
        "<|eom|>": 6,
        "<|start|>": -1,
        "<|patch|>": "10",
        "<|message|>": 2**40,
    }.items():
        moved = without_token(content)
        moved["added_tokens"].append({"id": i, "content": content, "special": True})
        files[f"{content} as {i}"] = (moved, "same id|wrong id")
    two_ids = good()
    two_ids["model"]["vocab"]["<|eot|>"] = 288
    files["a special token with two ids"] = (two_ids, "wrong id or two: 6")
    far = good()
    far["model"]["vocab"]["aa"] = 2**31
    files["an id that would fill the memory"] = (far, "'aa' a wrong id")
    pieces = good()
    pieces["model"]["vocab"]["▁the"] = 288
    files["a sentencepiece vocabulary"] = (pieces, "not a byte-level BPE")
    for name in REQUIRED_TOKENS:
        files[f"without {name}"] = (without_token(name), f"lacks the special tokens {name}".replace("|", r"\|"))
    return files


@pytest.mark.parametrize(("description", "reason"), broken().values(), ids=broken())
def test_a_tokenizer_that_would_go_wrong_later_is_refused(description: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        Tokenizer(description, "folder/tokenizer.json")
    assert "folder/tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)


def test_a_special_token_that_is_not_there_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"no special token <\|soft_audio_start\|>"):
        BYTES.special("<|soft_audio_start|>")
