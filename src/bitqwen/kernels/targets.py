"""What kernels can be generated for: a family of look-up tables on an instruction set."""

from __future__ import annotations

from dataclasses import dataclass

from bitqwen.errors import UsageError


@dataclass(frozen=True)
class Target:
    """One kind of generated kernel.

    Attributes:
        name: as ``--target`` takes it.
        family: "TL1" (pairs of weights, 2 bits each) or "TL2" (triples, 1.67 bits, and pairs at the end).
        description: the family and the instructions, for people.
        stem: file names end with it.
        templates: files under ``templates/`` that the source is put together from, in order.
        flags: for the compiler.
        needs: what a CPU must have, for people.
        isas: built-in instruction sets, any of which means that the CPU has it.
        lanes: rows that one look-up vector may hold (bitnet.cpp's ``bm``), best first.
    """

    name: str
    family: str
    description: str
    stem: str
    templates: tuple[str, ...]
    flags: tuple[str, ...]
    needs: str
    isas: tuple[str, ...]
    lanes: tuple[int, ...]


_ALL = (
    Target(
        "arm",
        "TL1",
        "TL1 (pairs, NEON)",
        "tl1",
        ("tl1.h.in", "cells.h.in"),
        ("-march=armv8-a",),
        "64-bit ARM with NEON",
        ("neon",),
        (64, 32),
    ),
    Target(
        "x86",
        "TL2",
        "TL2 (triples and pairs, AVX2)",
        "tl2",
        ("triples.h.in", "tl2_avx2.h.in", "cells.h.in"),
        ("-mavx2", "-mfma", "-mf16c"),
        "AVX2, FMA and F16C",
        ("avx2",),
        (32,),
    ),
    Target(
        "avx512",
        "TL2",
        "TL2 (triples and pairs, AVX-512)",
        "tl2-avx512",
        ("triples.h.in", "tl2_avx512.h.in", "cells.h.in"),
        ("-mavx512f", "-mavx512bw", "-mavx512vl"),
        "AVX-512 F, BW and VL",
        ("avx512",),
        (64,),
    ),
)
TARGETS = {target.name: target for target in _ALL}


def target_named(name: str) -> Target:
    """A target by name.

    Raises:
        UsageError: there is no such target.
    """
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is not known", hint=f"Allowed: {', '.join(TARGETS)}.")
    return TARGETS[name]


def runs_here(target: Target) -> bool:
    """Whether this CPU runs a target's kernels, as the built-in kernels' detection tells."""
    from bitqwen import _native

    return bool(set(target.isas) & set(_native.usable_isas()))
