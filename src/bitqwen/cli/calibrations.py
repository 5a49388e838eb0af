"""``--calibration``: the text that a conversion is calibrated on, and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitqwen.cli import measurements, terminal
from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen.calibrate import Calibration

# What is no file: text that comes with bitqwen, text that the model writes, and both in halves.
_SHIPPED, _SELF, _DEFAULT = "shipped", "self", "default"
# What an imatrix suffices for.
_BY_IMPORTANCE = ("fit+rotate", "fit")


def calibration(
    text: str | None, tokens: int, recipe: str | None, save_importance: Path | None
) -> Calibration | None:
    """The calibration that the options of ``convert`` ask for; what the model writes is still missing.

    Raises:
        UsageError: they do not go together, or the text cannot be read.
    """
    if text is None and recipe is None and save_importance is None:
        return None
    from bitqwen.calibrate import Calibration
    from bitqwen.quant import DEFAULT_RECIPE, Recipe
    from bitqwen.texts import read_text

    if text is not None and text.endswith(".gguf"):
        if recipe not in (None, *_BY_IMPORTANCE) or save_importance is not None:
            raise UsageError(
                "An imatrix knows how much inputs matter, not how they go together: its recipe is "
                f"{' or '.join(_BY_IMPORTANCE)}.",
                hint="Calibrate on a text for more.",
            )
        return Calibration(importance=Path(text).expanduser(), recipe=recipe or _BY_IMPORTANCE[0])
    chain = Recipe.parse(recipe or DEFAULT_RECIPE).text
    own = None if text in (None, _SHIPPED, _SELF, _DEFAULT) else read_text(Path(text).expanduser())
    return Calibration(text=own, tokens=tokens, recipe=chain, resume=True, save_importance=save_importance)


def written(
    found: Calibration,
    text: str | None,
    source: str,
    output: Path,
    *,
    quiet: bool,
    threads: int | None,
    **hub: Any,
) -> Calibration:
    """The same with what the model writes itself: all of the text, half of it, or nothing.

    Args:
        found: what :func:`calibration` made.
        text: as it was given.
        source: the checkpoint.
        output: the file to come; a file that the checkpoint runs as may stand beside it meanwhile.
        quiet: say nothing.
        threads: of the engine.
        **hub: revision, token and offline.
    """
    if found.importance is not None or text not in (None, _SELF, _DEFAULT):
        return found
    from bitqwen.calibrate import self_written

    shipped = text != _SELF
    if self_written.own_tokens(found, shipped=shipped) == 0:
        return found
    terminal.say("The model writes text to calibrate on.", quiet=quiet)
    with measurements.progress(shown=not quiet) as advance:
        return self_written.with_own_text(
            found,
            source,
            folder=output.absolute().parent,
            shipped=shipped,
            threads=threads,
            progress=lambda done, total: advance("writing", done, total),
            **hub,
        )
