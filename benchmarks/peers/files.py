"""Makes the files that are compared: ours, and the peers' by their own programs, all from one f16 source."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from bitqwen.checkpoints import open_checkpoint
from bitqwen.convert import convert

from . import filled
from .plan import BITNET, LLAMA, Contest, Rival

SOURCE, SMALL = "f16.gguf", "small.gguf"
_TL2_FROM = Rival(BITNET, "I2_S")  # the file whose embedding, which is the head, the TL2 file takes


class Maker:
    """Writes files into a folder, each once.

    Args:
        folder: where to.
        model: a checkpoint that bitqwen can convert.
        programs: each peer's llama-bench; its llama-quantize is taken from beside it.
        text: what the importance matrix is made from.
        threads: for all programs.
    """

    def __init__(
        self, folder: Path, model: str, programs: Mapping[str, Path], text: Path | None, threads: int
    ) -> None:
        self.folder, self.model, self.programs = folder, model, programs
        self.text, self.threads = text, threads
        folder.mkdir(parents=True, exist_ok=True)

    def make(self, contest: Contest, rivals: Iterable[Rival]) -> None:
        """What a contest needs and is not there yet.

        Raises:
            SystemExit: a peer's program failed, or needs a text that was not given.
        """
        source = self.folder / SOURCE
        if not source.exists():
            convert(self.model, source, scheme="f16", threads=self.threads)
        if not (self.folder / SMALL).exists():
            filled.small_source(source, self.folder / SMALL)
        ours = self.folder / contest.ours
        if not ours.exists() and contest.scheme:
            stored_head = "lm_head.weight" in open_checkpoint(str(source)).shapes()
            convert(
                str(source),
                ours,
                scheme=contest.scheme,
                embedding=contest.head,
                head=contest.head if stored_head else None,
                force=True,
                threads=self.threads,
            )
        for rival in rivals:
            self._rival(rival)

    def _rival(self, rival: Rival) -> None:
        output = self.folder / rival.file
        if output.exists():
            return
        if rival.type == "TL2":
            self._rival(_TL2_FROM)
            filled.tl2(self.folder / _TL2_FROM.file, output)
            return
        filled.fill(self.folder / SOURCE, self._quantised(rival), output)

    def _quantised(self, rival: Rival) -> Path:
        """The narrow model in a peer's type."""
        output = self.folder / f"small-{rival.file}"
        if output.exists():
            return output
        program = self.programs[rival.peer].with_name("llama-quantize")
        command = [str(program), *rival.options]
        if rival.needs_importance:
            command += ["--imatrix", str(self._importance())]
        temporary = output.with_name(output.name + ".part")
        _run([*command, str(self.folder / SMALL), str(temporary), rival.type, str(self.threads)])
        temporary.replace(output)
        return output

    def _importance(self) -> Path:
        """An importance matrix of two passages: enough for llama-quantize to go on."""
        output = self.folder / "small-imatrix.gguf"
        if output.exists():
            return output
        if self.text is None:
            raise SystemExit(
                "--text FILE is needed: IQ2 types want an importance matrix, made from some text."
            )
        program = self.programs[LLAMA].with_name("llama-imatrix")
        reader = self._quantised(Rival(LLAMA, "Q4_0"))
        command = [str(program), "-m", str(reader), "-f", str(self.text), "-o", str(output)]
        _run([*command, "--chunks", "2", "-c", "256", "-t", str(self.threads)])
        return output


def _run(command: list[str]) -> None:
    """Runs a program; says what it printed last if it fails."""
    print("+", " ".join(command), flush=True)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = "\n".join((result.stderr or result.stdout).strip().splitlines()[-5:])
        raise SystemExit(f"{Path(command[0]).name} ended with code {result.returncode}:\n{last}")
