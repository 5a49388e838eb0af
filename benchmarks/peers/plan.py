"""Which of our files runs against which types of which peers, and the ratios that are wanted."""

from __future__ import annotations

from dataclasses import dataclass

LLAMA, IK, BITNET = "llama.cpp", "ik_llama.cpp", "bitnet.cpp"
PEERS = (LLAMA, IK, BITNET)
_SHARED = "Q4_K_M"  # read by all of us: one file


@dataclass(frozen=True)
class Rival:
    """A peer's type.

    Attributes:
        peer: whose llama-bench runs it.
        type: the name that its llama-quantize knows.
        counts: whether the wanted ratio is over the best of this and the others that count.
    """

    peer: str
    type: str
    counts: bool = True

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{LLAMA if self.type == _SHARED else self.peer}-{self.type}.gguf"

    @property
    def needs_importance(self) -> bool:
        """Whether llama-quantize refuses the type, or chooses differently, without an importance matrix."""
        return self.peer == LLAMA and self.type.startswith(("IQ2_X", "IQ2_M", "IQ2_S", "IQ3_X"))

    @property
    def options(self) -> tuple[str, ...]:
        """For llama-quantize: bitnet.cpp's would leave the embedding, which is the head, in f16."""
        return ("--token-embedding-type", "q6_K") if self.peer == BITNET else ()


@dataclass(frozen=True)
class Contest:
    """One of our files against the peers' types next to it in bytes.

    Attributes:
        name: for the command line and the table.
        ours: our file's name; a peer's where both run the same.
        rivals: the peers' types.
        decode: ratio to the best that decoding is meant to reach; None: none was set.
        prefill: the same for prefill.
        scheme: of the conversion that makes our file; empty where it is a peer's.
        head: type of the embedding, which is the output head, instead of the scheme's.
    """

    name: str
    ours: str
    rivals: tuple[Rival, ...]
    decode: float | None = None
    prefill: float | None = None
    scheme: str = ""
    head: str | None = None


_TERNARY = (
    Rival(BITNET, "TL2"),
    Rival(BITNET, "I2_S"),
    Rival(IK, "IQ2_BN"),
    Rival(IK, "IQ2_BN_R4"),
    Rival(LLAMA, "TQ2_0"),
    Rival(LLAMA, "TQ1_0"),
)

CONTESTS = {
    contest.name: contest
    for contest in (
        Contest("ternary-q4", "bitqwen-ternary-q4.gguf", _TERNARY, 2.0, 1.6, scheme="ternary", head="q4_0"),
        # With the head of the peers' files, so that the bodies alone differ.
        Contest("ternary", "bitqwen-ternary.gguf", _TERNARY, scheme="ternary"),
        Contest(
            "w2",
            "bitqwen-w2.gguf",
            (
                Rival(LLAMA, "Q2_K"),
                Rival(IK, "IQ2_KS", counts=False),
                Rival(IK, "IQ2_K", counts=False),
                Rival(IK, "IQ2_K_R4", counts=False),
            ),
            decode=2.0,
            prefill=1.6,
            scheme="w2",
        ),
        Contest(
            "v2",
            "bitqwen-v2.gguf",
            (Rival(LLAMA, "IQ2_XXS"), Rival(IK, "IQ2_KT", counts=False)),
            decode=3.0,
            scheme="v2",
        ),
        Contest("v2.5", "bitqwen-v2.5.gguf", (Rival(LLAMA, "IQ2_M"),), decode=3.0, scheme="v2.5"),
        Contest("v3", "bitqwen-v3.gguf", (Rival(LLAMA, "IQ3_XXS"),), decode=3.0, scheme="v3"),
        Contest(
            "q4_k_m",
            "llama.cpp-Q4_K_M.gguf",
            (Rival(LLAMA, "Q4_K_M"), Rival(IK, "Q4_K_M", counts=False)),
            decode=1.15,
            prefill=1.2,
        ),
        Contest(
            "w4", "bitqwen-w4.gguf", (Rival(LLAMA, "Q4_0"), Rival(LLAMA, "Q4_K_M")), prefill=1.2, scheme="w4"
        ),
    )
}

# Where the best peer already reads at more than this share of the bandwidth, a ratio of speeds cannot be more
# than the ratio of bytes, and this part of that is wanted.
BOUND_SHARE, BYTES_SHARE = 0.65, 0.9


def wanted_decode(ratio: float, best_share: float | None, bytes_ratio: float | None) -> float:
    """The ratio wanted of decoding, the best peer being bound by memory or not.

    Args:
        ratio: wanted of a peer that is not bound.
        best_share: share of the bandwidth that the best peer reaches; None if unknown.
        bytes_ratio: the best peer's bytes a token over ours.
    """
    if best_share is not None and bytes_ratio is not None and best_share > BOUND_SHARE:
        return min(ratio, BYTES_SHARE * bytes_ratio)
    return ratio
