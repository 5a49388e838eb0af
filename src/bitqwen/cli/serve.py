"""``bitqwen serve``: a model behind OpenAI's and Anthropic's interfaces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bitqwen.cli import options
from bitqwen.errors import BitqwenError, UsageError

if TYPE_CHECKING:
    from bitqwen.server.settings import ServerSettings

_NETWORK = "Network"
_LIMITS = "Limits"
_SCHEDULING = "Scheduling"


def _option(*names: str, help: str, panel: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, rich_help_panel=panel, **more)


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A .gguf file, or else a checkpoint folder or hub id, which is converted to w4 first. "
            "Loaded at the start; it may be left out with --models-dir.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file of settings, named as the flags with _ for -. The environment "
            "(BITQWEN_SERVE_PORT for port) overrides it, and flags override both.",
            show_default=False,
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        _option(
            "--alias",
            metavar="NAME",
            help="A further name for MODEL; NAME=FILE for another .gguf file or one of the folder.",
            panel=options.MODEL,
        ),
    ] = None,
    models_dir: Annotated[
        Path | None,
        _option(
            "--models-dir",
            metavar="DIR",
            help="Folder of .gguf files; each is loaded when a request first names it.",
            panel=options.MODEL,
        ),
    ] = None,
    keep_alive: Annotated[
        str | None,
        _option(
            "--keep-alive",
            metavar="TIME",
            help="How long an idle model of the folder stays in memory: 10m by default; or forever.",
            panel=options.MODEL,
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        _option(
            "--memory-budget",
            metavar="SIZE",
            help="What all models may take, such as 8GB; idle ones are unloaded for others, and if that is "
            "not enough the request is answered 503.",
            panel=options.MODEL,
        ),
    ] = None,
    threads: options.Threads = None,
    context: options.Context = None,
    no_tuning: options.NoTuning = False,
    exact_head: options.ExactHead = False,
    numa: options.Numa = False,
    kv: Annotated[
        Literal["f16", "q8", "q4", "int8"] | None,
        _option("--kv", help="Number format of the KV cache: f16 by default.", panel=options.MODEL),
    ] = None,
    cache_positions: Annotated[
        int | None,
        _option(
            "--cache-positions",
            metavar="N",
            help="Tokens that all sequences and the prefix cache may hold; four contexts by default.",
            panel=options.MODEL,
        ),
    ] = None,
    host: Annotated[
        str | None,
        _option(
            "--host", metavar="ADDRESS", help="Address to listen on: 127.0.0.1 by default.", panel=_NETWORK
        ),
    ] = None,
    port: Annotated[
        int | None, _option("--port", metavar="N", help="Port: 8080 by default.", panel=_NETWORK)
    ] = None,
    api_key_file: Annotated[
        Path | None,
        _option(
            "--api-key-file",
            metavar="FILE",
            help="Keys, one a line; a request must carry one (also: BITQWEN_SERVE_API_KEYS, with commas).",
            panel=_NETWORK,
        ),
    ] = None,
    insecure: Annotated[
        bool, _option("--insecure", help="Listen beyond this machine without a key.", panel=_NETWORK)
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        _option(
            "--cors-origin",
            metavar="ORIGIN",
            help="Web pages that may call the server; * for all.",
            panel=_NETWORK,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, _option("--tls-cert", metavar="FILE", help="Certificate, for HTTPS.", panel=_NETWORK)
    ] = None,
    tls_key: Annotated[
        Path | None, _option("--tls-key", metavar="FILE", help="Its private key.", panel=_NETWORK)
    ] = None,
    no_ui: Annotated[bool, _option("--no-ui", help="Do not serve the chat page.", panel=_NETWORK)] = False,
    max_batch: Annotated[
        int | None,
        _option(
            "--max-batch",
            metavar="N",
            help="Sequences computed at once: 16 by default.",
            panel=_SCHEDULING,
        ),
    ] = None,
    max_queue: Annotated[
        int | None,
        _option(
            "--max-queue",
            metavar="N",
            help="Requests that may wait: 64 by default; more are answered 503.",
            panel=_SCHEDULING,
        ),
    ] = None,
    prefill_tokens: Annotated[
        int | None,
        _option(
            "--prefill-tokens",
            metavar="N",
            help="Tokens computed in a step in which answers are written, those of prompts included: 64 by "
            "default.",
            panel=_SCHEDULING,
        ),
    ] = None,
    no_prefix_cache: Annotated[
        bool,
        _option("--no-prefix-cache", help="Compute every prompt from its beginning.", panel=_SCHEDULING),
    ] = False,
    prefix_cache_dir: Annotated[
        Path | None,
        _option(
            "--prefix-cache-dir",
            metavar="DIR",
            help="Save the prefix cache here at the end and take it up again at the next start.",
            panel=_SCHEDULING,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        _option(
            "--max-tokens", metavar="N", help="Longest answer that a request may ask for.", panel=_LIMITS
        ),
    ] = None,
    request_seconds: Annotated[
        float | None,
        _option(
            "--request-seconds",
            metavar="S",
            help="A request is stopped after this time: 600 by default.",
            panel=_LIMITS,
        ),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        _option(
            "--drain-seconds",
            metavar="S",
            help="Time to finish running requests when told to stop: 30 by default.",
            panel=_LIMITS,
        ),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        _option("--log-level", help="What to log: info by default.", panel=options.OUTPUT),
    ] = None,
    log_prompts: Annotated[
        bool,
        _option("--log-prompts", help="Write prompts and answers to the log.", panel=options.OUTPUT),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Serve a model over HTTP, to OpenAI's and Anthropic's clients.

    The log goes to stderr, one JSON object a line; its first line has the settings.
    """
    given = options.given(
        model=model,
        alias=alias,
        models_dir=models_dir,
        keep_alive=keep_alive,
        memory_budget=memory_budget,
        threads=threads,
        context=context,
        kv=kv,
        cache_positions=cache_positions,
        exact_head=exact_head or None,
        numa=numa or None,
        host=host,
        port=port,
        api_key_file=api_key_file,
        insecure=insecure or None,
        cors_origins=cors_origin,
        tls_cert=tls_cert,
        tls_key=tls_key,
        ui=False if no_ui else None,
        max_batch=max_batch,
        max_queue=max_queue,
        prefill_tokens=prefill_tokens,
        prefix_cache=False if no_prefix_cache else None,
        prefix_cache_dir=prefix_cache_dir,
        max_tokens=max_tokens,
        request_seconds=request_seconds,
        drain_seconds=drain_seconds,
        log_level=log_level,
        log_prompts=log_prompts or None,
    )
    try:
        from bitqwen.server import process
    except ImportError as error:
        raise BitqwenError(
            f"The server needs the package {error.name}, which is not installed.",
            hint="Install it with: pip install 'bitqwen[serve]'",
        ) from error
    process.serve(_settings(config, given))


def _settings(config: Path | None, given: dict[str, Any]) -> ServerSettings:
    from pydantic import ValidationError

    from bitqwen.server.settings import read

    try:
        return read(config, given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(f"The setting {name} is {first['input']!r}: {first['msg']}.") from None
