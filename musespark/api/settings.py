"""Everything that can be set about the server: environment variables `MUSESPARK_…`, and plain `PORT`.

The only place that reads the environment; lower rooms get values as arguments.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from musespark.accounts.outbox_formats import secret_bytes
from musespark.chat.image_files import MAX_PIXELS
from musespark.errors import ConfigError

MIB = 1 << 20
BODY_COPIES = 4 + 2 * 8  # of the longest body: four may be held together (body.py), two take eight times that (deps.py)
PIXEL_BYTES = 12.4  # a decoded pixel of the costliest kind, with what scaling takes (chat/image_files.py)
PICTURES_AT_ONCE = 2  # threads that decode large ones (providers/local.py)
MAX_BATCH_TOKENS = 512  # one step; the longest that a running stream waits for somebody's prefill
HOST_NAME = r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?|\[[0-9a-f:.]+\]"
ORIGIN = rf"https?://(?:{HOST_NAME})(?::\d{{1,5}})?"
WEBHOOK_URL = r"^(?:https://|http://(?:localhost|127\.0\.0\.1|\[::1\])[:/])[!-~]{1,2000}$"
# Variables of this prefix that are not settings: of `train`, of clients in the same shell, and of Kubernetes, which
# describes a service called musespark so.
NO_SETTINGS = r"DATA|API_KEY|BASE_URL|SERVICE_\w+|PORT_\w+"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})  # as Host headers have them
# Plain http only to this machine: what it says decides who is let in.
OIDC_ISSUER = rf"^(?:https://(?:{HOST_NAME})|http://(?:localhost|127\.0\.0\.1|\[::1\]))(?::\d{{1,5}})?(?:/[!-~]*)?$"
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def default_state_dir() -> Path:
    """The user's data folder, by the custom of the operating system."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "musespark"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "musespark"


class Settings(BaseSettings):
    """How the server runs. Arguments win over the environment, which wins over the defaults."""

    model_config = SettingsConfigDict(env_prefix="MUSESPARK_", extra="ignore", populate_by_name=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, validation_alias=AliasChoices("MUSESPARK_PORT", "PORT"))
    state_dir: Path = Field(default_factory=default_state_dir, description="folder of the database and the pepper")
    database_url: str | None = Field(
        None, description="PostgreSQL, as postgresql://user:password@host/name; None: SQLite in the state folder"
    )
    limits: Literal["memory", "shared"] | None = Field(
        None, description="where limits are counted; None: in memory with SQLite, shared through PostgreSQL"
    )

    checkpoint: Path | None = Field(None, description="checkpoint folder; None is the model in the box")
    model_name: str | None = Field(None, pattern=MODEL_NAME, description="None: the folder's name")
    precision: Literal["float32", "bf16", "int8", "int4"] | None = Field(
        None, description="None: the integers of the checkpoint, else bf16"
    )
    kv_precision: Literal["float32", "bf16", "int8"] | None = Field(
        None, description="of the KV cache of the native core; int8 halves it; None: bf16, or float32 with float32"
    )
    device: Literal["cpu", "cuda", "torch-cpu"] = Field(
        "cpu",
        description="cpu: the native core; cuda: torch on a GPU; torch-cpu: the same program on the CPU, to try it",
    )
    threads: int | None = Field(None, ge=1, le=256, description="of the native core; None: one per usable CPU")
    memory: int | None = Field(
        None, ge=64 * MIB, description="for everything together, such as 16GB or 12GiB; None: as much as the parts take"
    )
    kv_memory_mb: int = Field(64, ge=1, description="memory for the paged KV cache; with a memory: at most")
    draft_tokens: int = Field(
        8, ge=0, le=64, description="guessed at once for a stream that runs alone (docs/speculation.md); 0: none"
    )
    max_running: int = Field(16, ge=1, le=MAX_BATCH_TOKENS, description="choices generated at the same time")
    max_waiting: int = Field(64, ge=1, description="requests in the queue; beyond it 429")
    decode_latency_target_ms: float = Field(
        200, gt=0, le=60_000, description="between two tokens of a running stream while prompts of others are computed"
    )

    max_body_bytes: int = Field(32 * MIB, ge=1024, description="longest request body; beyond it 413")
    max_image_pixels: int = Field(
        MAX_PIXELS, ge=1024, le=MAX_PIXELS, description="of a picture before it is scaled; beyond it 400"
    )
    max_connections: int = Field(512, ge=1, description="open at the same time; beyond it 429")
    body_timeout_s: float = Field(60.0, gt=0, description="for a client to send its body")
    write_timeout_s: float = Field(60.0, gt=0, le=86_400, description="for a client that reads nothing of its answer")
    ping_s: float = Field(15.0, gt=0, description="silence in a stream before a comment keeps it open")
    drain_s: float = Field(30.0, ge=0, le=86_400, description="for running requests to finish after SIGTERM")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="extra Host and Origin names accepted when listening on loopback, separated by commas"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins whose web pages may call the API, separated by commas"
    )
    export_url: str | None = Field(
        None, pattern=WEBHOOK_URL, description="where usage is sent, an https URL; None: nowhere (docs/usage.md)"
    )
    export_format: Literal["cloudevents", "stripe"] = Field("cloudevents", description="as what usage is sent")
    export_secret: SecretStr | None = Field(
        None, description="signs what is sent, at least 16 bytes; with Stripe its API key"
    )
    public_url: str | None = Field(
        None, pattern=rf"^{ORIGIN}$", description="where browsers reach this server, as https://muse.example"
    )
    oidc_issuer: str | None = Field(
        None, pattern=OIDC_ISSUER, description="OpenID Connect provider that people sign in with"
    )
    oidc_client_id: str | None = Field(None, min_length=1, description="our name at that provider")
    oidc_client_secret: SecretStr | None = Field(None, min_length=1, description="our secret at that provider")
    open_metrics: bool = Field(False, description="serve /metrics without a key")

    @model_validator(mode="after")
    def _signed_exports(self) -> Settings:
        """Without a secret a receiver could not tell our events from anybody's (CVE-2026-41432 was an empty one)."""
        secret = None if self.export_secret is None else self.export_secret.get_secret_value()
        if self.export_url is None and secret is None:
            return self
        problem = None
        if self.export_url is None:
            problem = "MUSESPARK_EXPORT_SECRET is set and MUSESPARK_EXPORT_URL is not"
        elif not secret:
            problem = "MUSESPARK_EXPORT_URL needs MUSESPARK_EXPORT_SECRET, and an empty one signs nothing"
        elif self.export_format == "cloudevents":
            try:
                secret_bytes(secret)
            except ValueError as error:
                problem = f"MUSESPARK_EXPORT_SECRET: {error}"
        if problem is not None:
            raise PydanticCustomError("export", "{message}", {"message": problem})
        return self

    @property
    def shares_limits(self) -> bool:
        """Whether limits are counted in the database, because other server processes use it too."""
        return self.limits == "shared" or (self.limits is None and self.database_url is not None)

    @model_validator(mode="after")
    def _whole_oidc(self) -> Settings:
        """Half a configuration would fail at the first sign-in, long after its author has left."""
        given = {name: getattr(self, f"oidc_{name}") is not None for name in ("issuer", "client_id", "client_secret")}
        if any(given.values()):
            missing = [f"MUSESPARK_OIDC_{name.upper()}" for name, present in given.items() if not present]
            missing += ["MUSESPARK_PUBLIC_URL"] if self.public_url is None else []
            if missing:
                message = f"signing in by OpenID Connect also needs {', '.join(missing)}"
                raise PydanticCustomError("oidc", "{message}", {"message": message})
        return self

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        """A number of bytes, or one with its unit: 16GB is 16 * 10^9, 16GiB is 16 * 2^30."""
        if not isinstance(value, str) or value.strip().isdecimal():
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B", value.strip(), re.IGNORECASE)
        if found is None:
            message = "write bytes with a unit, such as 500MB, 16GB or 12GiB"
            raise PydanticCustomError("memory", "{message}", {"message": message})
        base = 1024 if found[3] else 1000
        return int(float(found[1]) * base ** ("KMGT".index(found[2].upper()) + 1))

    @model_validator(mode="after")
    def _fit_requests(self) -> Settings:
        """With a memory for everything, what requests may send becomes less, unless the operator says how much."""
        if self.memory is not None:
            if "max_body_bytes" not in self.model_fields_set:
                self.max_body_bytes = max(1024, min(self.max_body_bytes, self.request_share // BODY_COPIES))
            if "max_image_pixels" not in self.model_fields_set:
                fitting = int(self.request_share / (PIXEL_BYTES * PICTURES_AT_ONCE))
                self.max_image_pixels = max(1024, min(self.max_image_pixels, fitting))
        return self

    @property
    def request_share(self) -> int:
        """Of bodies, of pictures that are decoded, and of those that wait: each may have a twelfth of the memory."""
        assert self.memory is not None
        return self.memory // 12

    @property
    def bodies_bytes(self) -> int:
        """The most that bodies take, as bytes and while they are parsed."""
        return self.max_body_bytes * BODY_COPIES

    @property
    def decoding_bytes(self) -> int:
        """The most that pictures take while they are decoded."""
        return int(self.max_image_pixels * PIXEL_BYTES * PICTURES_AT_ONCE)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect; then browsers on it are all that has to be kept out."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(name.strip().lower() for name in value.split(",") if name.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("allowed_hosts")
    @classmethod
    def _plain_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Anything else would never match a Host, and leave the operator wondering why."""
        for name in names:
            if name in LOOPBACK_NAMES:
                message = f"{name} is always accepted; leave it out, and name only what a proxy or tunnel is called"
                raise PydanticCustomError("loopback_name", "{message}", {"message": message})
            if not re.fullmatch(HOST_NAME, name):
                message = f"{name} is no host name; write names only, without scheme, port and path: muse.example"
                raise PydanticCustomError("host_name", "{message}", {"message": message})
        return names

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """As browsers write them, since they are compared as text."""
        for origin in origins:
            if not re.fullmatch(ORIGIN, origin) or re.fullmatch(r"http:.*:80|https:.*:443", origin):
                message = (
                    f"{origin} is no origin; write it as browsers do, without path and usual port: https://a.example"
                )
                raise PydanticCustomError("origin", "{message}", {"message": message})
        return origins

    @classmethod
    def read(cls, **arguments: object) -> Settings:
        """Settings from the environment and `arguments`, of which None means not given. Raises ConfigError."""
        cls._check_names()
        try:
            return cls(**{name: value for name, value in arguments.items() if value is not None})  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # about several settings, and its input would be all of them, secrets included
                raise ConfigError(first["msg"]) from None
            name = str(first["loc"][0])
            name = name if name.isupper() else f"MUSESPARK_{name.upper()}"
            if name == "MUSESPARK_PORT" and name not in map(str.upper, os.environ):
                name = "PORT"
            shown = "not usable" if "SECRET" in name else repr(first["input"])
            raise ConfigError(f"{name} is {shown}: {first['msg']}") from None

    @classmethod
    def _check_names(cls) -> None:
        """Raise ConfigError for a variable that nobody reads: its author believes that it has an effect."""
        known = [name.upper() for name in cls.model_fields]
        for variable in sorted(os.environ):
            prefix, found, name = variable.upper().partition("MUSESPARK_")
            if prefix or not found or name in known or re.fullmatch(NO_SETTINGS, name):
                continue
            similar = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean MUSESPARK_{similar[0]}?" if similar else "docs/api.md lists all settings"
            raise ConfigError(f"the environment variable {variable} is no setting of Muse Spark; {advice}")
