"""The whole error tree, drawn at the top.

    MuseSparkError                     500 internal_error
    ├── InvalidRequest                 400 invalid_request
    │   ├── UnsupportedField           400 unsupported_field
    │   ├── ContextTooLong             400 context_length_exceeded
    │   ├── InvalidImage               400 invalid_image
    │   ├── InvalidSchema              400 invalid_schema
    │   ├── RequestExceedsLimit        400 request_exceeds_limit
    │   └── RequestTooLarge            413 request_too_large
    ├── InvalidApiKey                  401 invalid_api_key
    ├── PermissionDenied               403 permission_denied
    ├── NotFound                       404 not_found
    │   └── ModelNotFound              404 model_not_found
    ├── MethodNotAllowed               405 method_not_allowed
    ├── Overloaded                     429 server_overloaded        (carries retry_after_ms)
    ├── RateLimitExceeded              429 rate_limit_exceeded      (carries retry_after_ms)
    │   └── ConcurrencyLimitExceeded   429 concurrency_limit_exceeded
    ├── ShuttingDown                   503 shutting_down
    ├── ModelLoading                   503 model_loading            (carries retry_after_ms)
    ├── EngineFailed                   500 engine_failed
    ├── EngineStopped                  503 engine_stopped
    └── SetupError                     the command line prints it and exits with 2
        ├── ConfigError                    invalid_config
        ├── CheckpointError                invalid_checkpoint
        ├── NotEnoughMemory                not_enough_memory
        ├── StateError                     state_not_usable
        └── DataError                      invalid_data

Every error has a stable `code`, an HTTP `status`, and a message that says what was wrong, the value, the limit and what
to do. `param` names the request field that caused it.
"""

from __future__ import annotations

from typing import ClassVar


class MuseSparkError(Exception):
    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(MuseSparkError):
    code = "invalid_request"
    status = 400


class UnsupportedField(InvalidRequest):
    code = "unsupported_field"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class InvalidImage(InvalidRequest):
    code = "invalid_image"
    index: int | None = None  # which of a prompt's images it is, where that is known


class InvalidSchema(InvalidRequest):
    """A JSON schema that can't be held to: wrong, too large, or with a keyword that has no effect here."""

    code = "invalid_schema"


class RequestExceedsLimit(InvalidRequest):
    """A request that alone is larger than a limit of its key, project or organisation: waiting would not help."""

    code = "request_exceeds_limit"


class RequestTooLarge(InvalidRequest):
    code = "request_too_large"
    status = 413


class InvalidApiKey(MuseSparkError):
    code = "invalid_api_key"
    status = 401


class PermissionDenied(MuseSparkError):
    code = "permission_denied"
    status = 403


class NotFound(MuseSparkError):
    code = "not_found"
    status = 404


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(MuseSparkError):
    code = "method_not_allowed"
    status = 405


class Overloaded(MuseSparkError):
    code = "server_overloaded"
    status = 429

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class RateLimitExceeded(MuseSparkError):
    code = "rate_limit_exceeded"
    status = 429

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class ConcurrencyLimitExceeded(RateLimitExceeded):
    code = "concurrency_limit_exceeded"


class ShuttingDown(MuseSparkError):
    code = "shutting_down"
    status = 503


class ModelLoading(MuseSparkError):
    code = "model_loading"
    status = 503

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class EngineFailed(MuseSparkError):
    code = "engine_failed"


class EngineStopped(MuseSparkError):
    """The engine has failed for good: only a restart of the server helps."""

    code = "engine_stopped"
    status = 503


class SetupError(MuseSparkError):
    """Something on this machine must change before the command can run; never the client's fault."""

    code = "setup_error"


class ConfigError(SetupError):
    code = "invalid_config"


class CheckpointError(SetupError):
    code = "invalid_checkpoint"


class NotEnoughMemory(SetupError):
    code = "not_enough_memory"


class StateError(SetupError):
    code = "state_not_usable"


class DataError(SetupError):
    code = "invalid_data"
