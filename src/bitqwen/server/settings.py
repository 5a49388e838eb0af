"""Everything about the server that can be set: by flag, by environment or by file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from bitqwen.errors import UsageError


def _split(value: Any) -> Any:
    """A list in the environment is written with commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: Any) -> Any:
    """A number of seconds, or one with a unit; "forever" is ``None``."""
    if not isinstance(value, str):
        return value
    if value == "forever":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*(ms|s|m|h|d)?", value.strip())
    if match is None:
        raise ValueError("a duration is a number with ms, s, m, h or d, such as 10m, or forever")
    return float(match[1]) * _UNITS[match[2] or "s"]


Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Duration = Annotated[float | None, BeforeValidator(_duration)]
Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)]


class ServerSettings(BaseSettings):
    """Settings of one server; in the environment each is called ``BITQWEN_SERVE_`` and its name."""

    model_config = SettingsConfigDict(env_prefix="BITQWEN_SERVE_", extra="forbid", frozen=True)

    model: str | None = Field(
        None, description="A .gguf file, checkpoint folder, hub id or package:NAME; loaded at the start."
    )
    models_dir: Path | None = Field(
        None, description="Folder of .gguf files, each loaded when a request first names it."
    )
    keep_alive: Duration = Field(
        600.0,
        ge=0,
        description="Time after which an idle model of models_dir is unloaded; a number of seconds, 10m or "
        "forever.",
    )
    memory_budget: ByteSize | None = Field(
        None,
        description="Bytes, or 8GB, that all models together may take; by default what the machine can give "
        "without swapping.",
    )
    alias: Names = Field(
        default=[],
        description="Further names: NAME for the model, NAME=FILE for a file or one of models_dir.",
    )
    threads: int | None = Field(None, ge=1, description="Threads that compute; one a core by default.")
    context: int | None = Field(
        None,
        ge=16,
        description="Tokens that one sequence may have; 4096, or the model's own if that is less.",
    )
    kv: Literal["f16", "q8", "q4", "int8"] = Field("f16", description="Number format of the KV cache.")
    exact_head: bool = Field(
        False, description="Compute every logit of every token, not only those that can be chosen."
    )
    numa: bool = Field(
        False, description="Place threads and weights on the memory nodes of a machine that has several."
    )
    cache_positions: int | None = Field(
        None,
        ge=16,
        description="Tokens that all sequences and the prefix cache may hold; four contexts by default.",
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys: Secrets = Field(default=[], description="Keys, one of which a request must carry.")
    api_key_file: Path | None = Field(None, description="File with keys, one a line; # begins a comment.")
    insecure: bool = Field(False, description="Listen beyond this machine without a key.")
    cors_origins: Names = Field(
        default=[], description="Origins of web pages that may call the server; * for all."
    )
    tls_cert: Path | None = Field(None, description="Certificate file, to serve HTTPS.")
    tls_key: Path | None = Field(None, description="Its private key.")
    ui: bool = Field(True, description="Serve the chat page at /.")

    max_batch: int = Field(16, ge=1, le=256, description="Sequences that are computed at once.")
    max_queue: int = Field(64, ge=0, description="Requests that may wait; more are answered 503.")
    step_tokens: int = Field(
        256, ge=1, le=4096, description="Prompt tokens read in a step while no answer is being written."
    )
    prefill_tokens: int = Field(
        64,
        ge=1,
        le=4096,
        description="Tokens of a step in which answers are written: one for each of them, and the rest, but "
        "at least a quarter, for prompts. Bounds the time between tokens.",
    )
    prefix_cache: bool = Field(True, description="Reuse what was computed for equal beginnings of prompts.")
    prefix_cache_dir: Path | None = Field(
        None, description="Folder in which the prefix cache outlives the server; it holds people's prompts."
    )
    stream_buffer: int = Field(
        256, ge=1, description="Pieces a slow reader may be behind before its sequence pauses."
    )

    max_body_bytes: int = Field(4 << 20, ge=1024, description="Bytes of a request's body.")
    max_choices: int = Field(8, ge=1, le=128, description="Largest n of a request.")
    max_tokens: int | None = Field(
        None, ge=1, description="Longest answer that a request may ask for; the context is a limit anyway."
    )
    request_seconds: float = Field(600.0, gt=0, description="A request is stopped after this time.")
    body_seconds: float = Field(30.0, gt=0, description="A body must have arrived after this time.")
    ping_seconds: float = Field(15.0, gt=0, description="A silent stream gets a sign of life this often.")
    drain_seconds: float = Field(30.0, ge=0, description="Time to finish running requests when told to stop.")

    log_prompts: bool = Field(False, description="Write prompts and answers to the log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What to log.")


def read(config: Path | None, given: dict[str, Any]) -> ServerSettings:
    """Settings from flags, or else the environment, or else a TOML file.

    Args:
        config: the file, if there is one.
        given: what the flags say.

    Raises:
        pydantic.ValidationError: a value that is not allowed, or a name in the file that is none.
        UsageError: the file cannot be read.
    """

    class WithFile(ServerSettings):
        model_config = SettingsConfigDict(toml_file=config)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    if config is not None and not config.is_file():
        raise UsageError(f"There is no file {config}.", hint="Give --config the path of a TOML file.")
    try:
        return WithFile(**given)
    except ValidationError:
        raise
    except ValueError as error:  # of the TOML reader
        raise UsageError(f"{config} is no TOML: {error}.") from error
