"""Tokenizers from tiktoken-style ranks, against tiktoken's own algorithm written out as plainly as possible."""

from __future__ import annotations

import base64
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from chat.spelling import BYTES
from musespark.chat.formats import make_format, open_tokenizer
from musespark.chat.messages import Message, Text
from musespark.chat.ranks import MAX_TOKEN_BYTES, NUM_SPECIAL, tokenizer_from_ranks
from musespark.chat.tokenizer import LLAMA4_TOKENS, Tokenizer
from musespark.errors import CheckpointError

TEXT = (
    """The cat's 3 kittens don't sit; they RUN 12345 miles/hour.\n\nabababa aaaaaaa    four spaces\t\tOld McDONALD's
naïve café, 日本語のテキスト и русский, emoji 😀😀!\r\nhttps://example.com/a?b=c#d ... def f(x):\n    return x ** 2\n"""
    * 3
)

# As published, one alternative to a line; `regex` reads it as it stands.
PATTERN = r"""
[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?
[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?
\p{N}{1,3}
 ?[^\s\p{L}\p{N}]+[\r\n/]*
\s*[\r\n]+
\s+(?!\S)
\s+"""
SPLIT = regex.compile("|".join(PATTERN.strip("\n").split("\n")))


def trained_ranks(num_merges: int) -> dict[bytes, int]:
    """All bytes, from the last to the first, then the most frequent pairs of TEXT."""
    ranks = {bytes([byte]): rank for rank, byte in enumerate(reversed(range(256)))}
    words = [[bytes([byte]) for byte in word.encode()] for word in SPLIT.findall(TEXT)]
    for _ in range(num_merges):
        pairs = Counter(pair for word in words for pair in pairwise(word) if b"".join(pair) not in ranks)
        if not pairs:
            break
        best = b"".join(max(pairs, key=lambda pair: (pairs[pair], pair)))
        ranks[best] = len(ranks)
        words = [merged(word, best) for word in words]
    return ranks


def merged(word: list[bytes], token: bytes) -> list[bytes]:
    result: list[bytes] = []
    for part in word:
        if result and result[-1] + part == token:
            result[-1] += part
        else:
            result.append(part)
    return result


def tiktoken_encode(ranks: dict[bytes, int], text: str) -> list[int]:
    """tiktoken's rule: of all neighbours that make a token, merge those of the lowest rank, the leftmost first."""
    ids = []
    for word in SPLIT.findall(text):
        if word.encode() in ranks:
            ids.append(ranks[word.encode()])
            continue
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            possible = [(ranks[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
            if not possible:
                break
            at = min(possible)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def written(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


RANKS = trained_ranks(200)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("folder") / "tokenizer.model"
    path.write_bytes(written(RANKS))
    return open_tokenizer(path.parent)


def test_a_known_text_is_encoded_as_tiktoken_does(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert ids == tiktoken_encode(RANKS, TEXT)
    assert len(ids) < len(TEXT.encode()) / 2
    assert tokenizer.decode(ids) == TEXT


@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*TEXT.split(" "), "ab", "aa", "'", "\n/", "Don'T"]))))
def test_any_text_is_encoded_as_tiktoken_does(tokenizer: Tokenizer, words: list[str]) -> None:
    for text in ("".join(words), " ".join(words)):
        ids = tokenizer.encode(text)
        assert ids == tiktoken_encode(RANKS, text)
        assert tokenizer.decode(ids) == text


@given(st.text(alphabet="ab", max_size=24))
def test_of_two_pairs_that_overlap_the_left_one_is_merged(
    overlapping: tuple[Tokenizer, dict[bytes, int]], text: str
) -> None:
    """`ab a ba` holds `aba` twice: as ab+a and as a+ba."""
    tokenizer, ranks = overlapping
    assert tokenizer.encode(text) == tiktoken_encode(ranks, text)


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, dict[bytes, int]]:
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in (b"ab", b"ba", b"aba", b"bab", b"abab", b"ababa"):
        ranks[token] = len(ranks)
    path = tmp_path_factory.mktemp("folder") / "tokenizer.model"
    path.write_bytes(written(ranks))
    return tokenizer_from_ranks(path), ranks


def test_a_word_that_is_a_token_is_that_token_without_merges(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"hello": 256}
    (tmp_path / "tokenizer.model").write_bytes(written(ranks))
    assert open_tokenizer(tmp_path).encode("hello hello") == [256, 32, *b"hello"]


def test_the_special_tokens_follow_the_ranks_at_their_published_places(tokenizer: Tokenizer) -> None:
    base = len(RANKS)
    assert tokenizer.vocab_size == base + NUM_SPECIAL
    # With 200,000 ranks these are the published ids 200000, 200005, 200008, 200016, 200080, 200085, 200092, 201143.
    places = {"begin_of_text": 0, "header_start": 5, "eot": 8, "python_start": 16, "image_start": 80}
    places |= {"tile_y_separator": 85, "patch": 92, "reasoning_thinking_end": 1143}
    for name, place in places.items():
        assert tokenizer.special(f"<|{name}|>") == base + place
    assert all(tokenizer.is_special(base + place) for place in range(NUM_SPECIAL))
    assert not any(map(tokenizer.is_special, tokenizer.encode("".join(LLAMA4_TOKENS))))


def test_a_llama_4_prompt_is_written_with_it(tokenizer: Tokenizer) -> None:
    ids = make_format("llama4", tokenizer).render([Message("user", (Text("The cat"),))]).token_ids
    base = len(RANKS)
    user, body, assistant = (tiktoken_encode(RANKS, text) for text in ("user", "\n\nThe cat", "assistant"))
    header = [base + 5, *user, base + 6, *body, base + 8, base + 5, *assistant, base + 6]
    assert ids == [base, *header, *tiktoken_encode(RANKS, "\n\n")]


def line(token: bytes, rank: object) -> bytes:
    return base64.b64encode(token) + f" {rank}\n".encode()


BAD = {
    "no base64": (b"!!! 256\n", "line 257: b'!!!' is not base64"),
    "no rank": (b"YWI=\n", "line 257: b'' is not a rank"),
    "a rank that is no number": (line(b"ab", "x"), "b'x' is not a rank"),
    "a negative rank": (line(b"ab", -1), "b'-1' is not a rank"),
    "a huge rank": (line(b"ab", 2**40), "is not a rank from 0 to 16,777,216"),
    "an endless rank": (line(b"ab", "9" * 100_000), "is not a rank"),
    "a gap": (line(b"ab", 257), "its 257 tokens do not have the ranks from 0 on"),
    "a rank twice": (line(b"ab", 255), "its 257 tokens do not have the ranks from 0 on"),
    "a token twice": (line(b"a", 256), "line 257: the token b'a' has two ranks"),
    "an empty token": (b" 256\n", "a token has 0 bytes"),
    "a long token": (line(b"a" * (MAX_TOKEN_BYTES + 1), 256), "a token has 1025 bytes"),
}
ALL_BYTES = written({bytes([byte]): byte for byte in range(256)})


@pytest.mark.parametrize(("lines", "reason"), BAD.values(), ids=BAD)
def test_a_bad_line_is_refused_by_file_and_place(tmp_path: Path, lines: bytes, reason: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ALL_BYTES + lines)
    with pytest.raises(CheckpointError, match=regex.escape(reason)) as caught:
        tokenizer_from_ranks(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "256 of the 256 bytes"), (line(b"a", 0), "255 of the 256 bytes")]
)
def test_ranks_without_every_byte_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        tokenizer_from_ranks(path)


def test_the_longest_token_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ALL_BYTES + line(b"a" * MAX_TOKEN_BYTES, 256) + b"\n")
    assert tokenizer_from_ranks(path).encode("a" * MAX_TOKEN_BYTES) == [256]


def test_a_sentencepiece_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        tokenizer_from_ranks(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(CheckpointError, match="67,108,865 bytes; the limit for a tokenizer is 67,108,864"):
        tokenizer_from_ranks(path)


def test_the_tokenizer_of_a_folder_is_its_json_or_else_its_ranks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a tokenizer\.json nor a tokenizer\.model"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(ALL_BYTES)
    assert open_tokenizer(tmp_path).vocab_size == 256 + NUM_SPECIAL
    BYTES.save(tmp_path / "tokenizer.json")
    assert open_tokenizer(tmp_path).vocab_size == 288
