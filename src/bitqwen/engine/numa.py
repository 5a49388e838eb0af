"""What ``numa=True`` did, in a sentence."""

from __future__ import annotations

ROOT = "/"  # the folder above /sys, which tells the memory nodes; tests name another one


def sentence(nodes: int, threads: int) -> str:
    """About a model whose ``threads`` were placed on ``nodes`` memory nodes; 0 for not at all."""
    if nodes == 0:
        return "NUMA: the CPUs that may be used have one memory node; there is nothing to place."
    if nodes == 1:
        return f"NUMA: {threads} thread stays on one memory node, and so do the weights; give more --threads."
    return f"NUMA: {threads} threads stay on {nodes} memory nodes, each beside its share of the weights."
