"""The shape of a key. The CRC and the base62 alphabet are recomputed here, the slow and obvious way."""

from __future__ import annotations

import string
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musespark.accounts.secret import Pepper, create_pepper, display_prefix, is_well_formed, new_secret, read_pepper
from musespark.errors import StateError

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def test_a_secret_is_prefix_256_bits_and_a_crc32_in_base62() -> None:
    secret = new_secret()
    head, checksum = secret[:-6], secret[-6:]
    assert secret.startswith("sk-muse-")
    assert len(head) == len("sk-muse-") + 43
    assert set(head.removeprefix("sk-muse-")) <= set(BASE62)
    value = 0
    for character in checksum:
        value = value * 62 + BASE62.index(character)
    assert value == zlib.crc32(head.encode())


def test_secrets_are_well_formed_and_differ() -> None:
    secrets = {new_secret() for _ in range(200)}
    assert len(secrets) == 200
    assert all(is_well_formed(secret) for secret in secrets)


@given(st.integers(8, 56), st.sampled_from(BASE62))
def test_one_changed_character_breaks_the_checksum(position: int, character: str) -> None:
    secret = new_secret()
    changed = secret[:position] + character + secret[position + 1 :]
    assert is_well_formed(changed) == (changed == secret)


@pytest.mark.parametrize(
    "secret",
    ["", "sk-muse-", "sk-" + "a" * 54, "sk-muse-" + "é" * 49, "sk-muse-" + "-" * 49, "sk-muse-" + "a" * 100_000],
)
def test_what_is_not_a_key_is_not_well_formed(secret: str) -> None:
    assert not is_well_formed(secret)


@given(st.text(max_size=80))
def test_no_text_whatever_makes_the_check_fail(text: str) -> None:
    assert not is_well_formed(text)


def test_the_display_prefix_shows_four_characters_of_the_secret() -> None:
    secret = new_secret()
    assert display_prefix(secret) == secret[:12]


def test_digests_depend_on_the_pepper_and_salts_on_the_organisation() -> None:
    one, two = Pepper(b"1" * 32), Pepper(b"2" * 32)
    assert one.key_digest("secret") != two.key_digest("secret")
    assert one.cache_salt("org_a") != one.cache_salt("org_b")
    assert one.cache_salt("org_a") != one.key_digest("org_a")
    assert "1111" not in repr(one)


def test_the_pepper_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    assert read_pepper(path) is None
    first = create_pepper(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert create_pepper(path).id == first.id  # as when two processes start at once
    assert [file.name for file in tmp_path.iterdir()] == ["pepper"]


def test_a_truncated_pepper_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    path.write_bytes(b"short")
    with pytest.raises(StateError, match="pepper holds 5 bytes instead of 32"):
        read_pepper(path)
