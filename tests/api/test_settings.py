"""Settings from arguments, the environment and nothing, in this order."""

from __future__ import annotations

from pathlib import Path

import pytest

from musespark.api import settings as module
from musespark.api.settings import LOOPBACK_NAMES, Settings, default_state_dir
from musespark.errors import ConfigError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MUSESPARK_{name.upper()}", raising=False)
    monkeypatch.delenv("PORT", raising=False)


def test_defaults_listen_on_loopback_only() -> None:
    settings = Settings.read()
    assert (settings.host, settings.port, settings.on_loopback) == ("127.0.0.1", 8000, True)
    assert settings.max_body_bytes == 32 << 20
    assert not settings.open_metrics


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_THREADS", "3")
    monkeypatch.setenv("PORT", "9000")
    assert (Settings.read().threads, Settings.read().port) == (3, 9000)
    assert (Settings.read(threads=4, port=9001).threads, Settings.read(threads=4, port=9001).port) == (4, 9001)
    assert Settings.read(threads=None).threads == 3


def test_musespark_port_wins_over_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("MUSESPARK_PORT", "9001")
    assert Settings.read().port == 9001


def test_hosts_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_ALLOWED_HOSTS", "Muse.example, other.example,")
    assert Settings.read().allowed_hosts == ("muse.example", "other.example")


@pytest.mark.parametrize(
    "entry",
    [
        *(
            "https://muse.example",
            "muse.example:8443",
            "muse.example/v1",
            "*",
            "*.example",
            "a b",
            "::1",
            "-a",
            "ä.example",
        ),
        *("localhost", "127.0.0.1", "[::1]", "LOCALHOST"),
    ],
)
def test_an_allowed_host_is_a_name_that_is_not_accepted_already(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_ALLOWED_HOSTS", f"good.example, {entry}")
    with pytest.raises(ConfigError, match="MUSESPARK_ALLOWED_HOSTS") as caught:
        Settings.read()
    assert ("always accepted" if entry.lower() in LOOPBACK_NAMES else "write names only") in caught.value.message
    monkeypatch.setenv("MUSESPARK_ALLOWED_HOSTS", "a, [fe80::1], 10.0.0.1, muse_1.example")
    assert len(Settings.read().allowed_hosts) == 4


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("MUSESPARK_THREADS", "0"),
        ("MUSESPARK_THREADS", "1025"),
        ("MUSESPARK_MODEL_NAME", "a/b"),
        ("MUSESPARK_PRECISION", "fp4"),
        ("MUSESPARK_PORT", "eighty"),
        ("MUSESPARK_MAX_CONNECTIONS", "0"),
        ("MUSESPARK_WRITE_TIMEOUT_S", "0"),
        ("MUSESPARK_DRAIN_S", "-1"),
        ("MUSESPARK_DRAIN_S", "inf"),
        ("MUSESPARK_MAX_RUNNING", "513"),
        ("MUSESPARK_PING_S", "0"),
        ("MUSESPARK_MAX_BODY_BYTES", "1023"),
        ("MUSESPARK_OPEN_METRICS", "perhaps"),
    ],
)
def test_a_bad_value_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        Settings.read()
    assert caught.value.message.startswith(f"{variable} is '{value}'")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("MUSESPARK_THREAD", "did you mean MUSESPARK_THREADS?"),
        ("musespark_max_wating", "did you mean MUSESPARK_MAX_WAITING?"),
        ("MUSESPARK_XYZZY", "docs/api.md lists all settings"),
    ],
)
def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, advice: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError) as caught:
        Settings.read()
    assert f" {name} " in caught.value.message
    assert caught.value.message.endswith(advice)


@pytest.mark.parametrize(
    "name", ["MUSESPARK_DATA", "MUSESPARK_API_KEY", "MUSESPARK_SERVICE_HOST", "MUSESPARK_PORT_80_TCP"]
)
def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("musespark_threads", "3")  # the case of a name is of no importance
    assert Settings.read().threads == 3


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "app.example",
        "https://app.example/",
        "https://app.example/x",
        "https://app.example:443",
        "http://app.example:80",
        "ftp://app.example",
        "https://",
    ],
)
def test_an_origin_is_what_a_browser_sends(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("MUSESPARK_CORS_ORIGINS", "https://App.example, http://localhost:3000,http://[::1]:8080")
    assert Settings.read().cors_origins == ("https://app.example", "http://localhost:3000", "http://[::1]:8080")
    monkeypatch.setenv("MUSESPARK_CORS_ORIGINS", f"https://app.example, {origin}")
    with pytest.raises(ConfigError, match="MUSESPARK_CORS_ORIGINS") as caught:
        Settings.read()
    assert f"{origin} is no origin" in caught.value.message


def test_the_state_folder_follows_the_custom_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert default_state_dir() == Path("/data/musespark")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_state_dir() == Path("/home/someone/.local/share/musespark")
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert default_state_dir() == Path("/home/someone/Library/Application Support/musespark")
