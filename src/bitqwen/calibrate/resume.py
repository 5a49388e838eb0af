"""Layers kept on disk while a calibrated conversion runs, so that an interrupted one goes on where it was."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen.quant import Encoded

Array = npt.NDArray[np.float32]


class KeptLayers:
    """A folder beside the output, which is removed when that is complete.

    Layers of another run (another source, text, recipe or plan) are thrown away, and what distillation keeps
    with them.

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "key"
        if not note.exists() or note.read_text() != key:
            self._clear()
            note.write_text(key)
        self.complete = 0  # layers that are here, with the residual stream after the last one
        for path in folder.glob("hidden-*.npy"):
            count = int(path.stem.removeprefix("hidden-")) + 1
            if all(self._layer(layer).exists() for layer in range(count)):
                self.complete = max(self.complete, count)

    def load(self, layer: int) -> tuple[dict[str, Encoded], dict[str, Array], dict[str, float]] | None:
        """A layer's matrices, importances and lost shares of outputs, if it was kept whole."""
        if layer >= self.complete:
            return None
        try:
            with np.load(self._layer(layer), allow_pickle=False) as kept:
                encoded, importance, lost = {}, {}, {}
                for entry in kept.files:
                    kind, _, name = entry.partition(":")
                    if kind != "data":
                        continue
                    error, energy, share = kept[f"sums:{name}"].tolist()
                    codebook = kept[f"codebook:{name}"] if f"codebook:{name}" in kept.files else None
                    encoded[name] = Encoded(kept[entry], error, energy, codebook)
                    importance[name] = kept[f"importance:{name}"]
                    if np.isfinite(share):
                        lost[name] = share
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            self.complete = layer
            return None
        return encoded, importance, lost

    def streams(self) -> Array | None:
        """What :meth:`save` was given after the last layer that is here."""
        try:
            streams: Array = np.load(self._hidden(self.complete - 1), allow_pickle=False)
        except (OSError, ValueError):
            return None
        return streams

    def save(
        self,
        layer: int,
        encoded: Mapping[str, Encoded],
        importance: Mapping[str, Array],
        lost: Mapping[str, float],
        streams: Array,
    ) -> None:
        """Keeps a layer and residual streams after it, float32 [streams, tokens, hidden]."""
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for name, result in encoded.items():
            arrays[f"data:{name}"] = result.data
            if result.codebook is not None:
                arrays[f"codebook:{name}"] = result.codebook
            arrays[f"sums:{name}"] = np.array([result.error, result.energy, lost.get(name, np.nan)])
            arrays[f"importance:{name}"] = importance[name]
        temporary = self.folder / "part.npz"
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
        temporary.replace(self._layer(layer))
        temporary = self.folder / "part.npy"
        np.save(temporary, streams)
        temporary.replace(self._hidden(layer))
        self._hidden(layer - 1).unlink(missing_ok=True)

    def remove(self) -> None:
        """Throws everything away."""
        self._clear()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _clear(self) -> None:
        for pattern in ("layer-*.npz", "hidden-*.npy", "part.np?", "distil-*.np?", "key"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _layer(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:04}.npz"

    def _hidden(self, layer: int) -> Path:
        return self.folder / f"hidden-{layer:04}.npy"
