"""Makes the files that are compared: ours, and the peers' by their own programs, all from one f16 source."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from bitqwen.convert import convert

from . import tl2
from .plan import BITNET, LLAMA, Contest, Rival

SOURCE = "f16.gguf"
_TIED_TO = "I2_S"  # whose embedding, which is the head, the TL2 file takes
# Types that llama-quantize refuses without an importance matrix.
_NEED_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M")


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
    ):
        self.folder, self.model, self.programs = folder, model, programs
        self.text, self.threads = text, threads
        folder.mkdir(parents=True, exist_ok=True)

    def make(self, contest: Contest, rivals: Iterable[Rival]) -> None:
        """What a contest needs and is not there yet."""
        source = self.folder / SOURCE
        if not source.exists():
            convert(self.model, source, scheme="f16", threads=self.threads)
        ours = self.folder / contest.ours
        if not ours.exists() and contest.ours.startswith("bitqwen-"):
            scheme = contest.ours.removeprefix("bitqwen-").removesuffix(".gguf")
            convert(str(source), ours, scheme=scheme, force=True, threads=self.threads)
        for rival in rivals:
            self._rival(rival)

    def _rival(self, rival: Rival) -> None:
        output = self.folder / rival.file
        if output.exists():
            return
        if rival.type == "TL2":
            base = Rival(BITNET, _TIED_TO)
            self._rival(base)
            tl2.write(self.folder / base.file, output)
            return
        command = [str(self.programs[rival.peer].with_name("llama-quantize")), "--allow-requantize"]
        if rival.type in _NEED_IMPORTANCE:
            command += ["--imatrix", str(self._importance())]
        temporary = output.with_name(output.name + ".part")
        _run([*command, str(self.folder / SOURCE), str(temporary), rival.type, str(self.threads)])
        temporary.replace(output)

    def _importance(self) -> Path:
        """An importance matrix of a few passages: enough for llama-quantize to go on."""
        output = self.folder / "imatrix.gguf"
        if output.exists():
            return output
        if self.text is None:
            raise SystemExit(
                "--text FILE is needed: IQ2 types want an importance matrix, made from some text."
            )
        program = self.programs[LLAMA].with_name("llama-imatrix")
        reader = Rival(LLAMA, "Q4_K_M")
        self._rival(reader)
        command = [
            str(program),
            "-m",
            str(self.folder / reader.file),
            "-f",
            str(self.text),
            "-o",
            str(output),
        ]
        _run([*command, "--chunks", "4", "-c", "512", "-t", str(self.threads)])
        return output


def _run(command: list[str]) -> None:
    """Runs a program; says what it printed last if it fails."""
    print("+", " ".join(command), flush=True)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = "\n".join((result.stderr or result.stdout).strip().splitlines()[-5:])
        raise SystemExit(f"{Path(command[0]).name} ended with code {result.returncode}:\n{last}")
