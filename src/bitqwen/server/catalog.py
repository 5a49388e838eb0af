"""Which models the settings offer, and under which names; nothing is loaded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen.server.settings import ServerSettings

SUFFIX = ".gguf"


@dataclass(frozen=True)
class Offer:
    """A model that may be asked for.

    Attributes:
        name: what ``/v1/models`` lists.
        source: a .gguf file; for a model that is always loaded also a folder, hub id or package:NAME.
        aliases: further names.
        pinned: loaded at the start and never unloaded.
    """

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def created(self) -> int:
        """Unix time of its file; 0 if there is none."""
        try:
            return int(Path(self.source).stat().st_mtime)
        except OSError:
            return 0


class Catalog:
    """The models of the settings. The folder is looked at anew each time, so that files may come and go.

    Args:
        settings: its ``model``, ``models_dir`` and ``alias``.

    Raises:
        UsageError: settings that name no model, or an alias that leads nowhere.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._model = settings.model
        self._folder = settings.models_dir
        split = [alias.partition("=") for alias in settings.alias]
        self._plain = tuple(name for name, equals, _ in split if not equals)
        self._leading = {name: target for name, equals, target in split if equals}
        if settings.model is None and settings.models_dir is None and not self._leading:
            raise UsageError(
                "There is no model to serve.",
                hint="Name one (bitqwen serve MODEL), or give --models-dir DIR.",
            )
        if settings.models_dir is not None and not settings.models_dir.is_dir():
            raise UsageError(
                f"There is no folder {settings.models_dir}.",
                hint="Give --models-dir a folder of .gguf files.",
            )
        if self._plain and settings.model is None:
            raise UsageError(
                f"The alias {self._plain[0]} does not say which model it stands for.",
                hint=f"Write --alias {self._plain[0]}=FILE.",
            )
        known = self.offers()
        for name, target in self._leading.items():
            if not any(name in (offer.name, *offer.aliases) for offer in known):
                raise UsageError(
                    f"The alias {name} stands for {target}, which is no file and no model of the folder.",
                    hint=f"There is: {', '.join(offer.name for offer in known) or 'nothing'}.",
                )

    def offers(self) -> list[Offer]:
        """All models; the one that is always loaded first, the others by name."""
        files = self._files()
        leading = dict(self._leading)
        made = []
        if self._model is not None:
            name = model_name(self._model)
            files.pop(name, None)
            own = [alias for alias, target in leading.items() if target in (name, self._model)]
            made.append(Offer(name, self._model, (*self._plain, *own), pinned=True))
            for alias in own:
                del leading[alias]
        for name in sorted(files):
            own = [alias for alias, target in leading.items() if target in (name, files[name].name)]
            made.append(Offer(name, str(files[name]), tuple(own)))
            for alias in own:
                del leading[alias]
        made += [Offer(alias, target) for alias, target in leading.items() if Path(target).is_file()]
        return made

    def _files(self) -> dict[str, Path]:
        if self._folder is None:
            return {}
        try:
            return {path.stem: path for path in self._folder.iterdir() if _is_model(path)}
        except OSError:  # the folder went away: what is loaded stays
            return {}


def by_name(offers: Sequence[Offer]) -> dict[str, Offer]:
    """Offers by every name that a request may use. A model's own name comes before another's alias."""
    names = {alias: offer for offer in offers for alias in offer.aliases}
    return names | {offer.name: offer for offer in offers}


def _is_model(path: Path) -> bool:
    return path.suffix == SUFFIX and not path.name.startswith(".") and path.is_file()


def model_name(source: str) -> str:
    """What a model is called: a hub id as it stands, a file or folder by its name."""
    path = Path(source)
    if path.exists():
        return path.stem if path.is_file() else path.resolve().name
    return source.removeprefix("package:")
