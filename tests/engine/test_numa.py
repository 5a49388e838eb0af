"""Threads and weights on memory nodes: a made-up machine of two nodes over the CPUs that there are."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from bitqwen.convert import convert
from bitqwen.engine import Model, Screen, numa

IDS = np.random.default_rng(0).integers(0, 500, 40).tolist()


@pytest.fixture(scope="module")
def path(tiny_checkpoint, tmp_path_factory):
    source = tiny_checkpoint(tied=False, heads=8, kv_heads=2, hidden=512, head_dim=64, vocab_size=3000)
    return convert(source.folder, tmp_path_factory.mktemp("numa") / "w2.gguf", "w2").path


@pytest.fixture
def two_nodes(tmp_path, monkeypatch):
    """Both nodes are the same CPU where this process has but one."""
    cpus = sorted(os.sched_getaffinity(0))
    nodes = tmp_path / "sys/devices/system/node"
    for node, cpu in enumerate((cpus[0], cpus[-1])):
        (nodes / f"node{node}").mkdir(parents=True)
        (nodes / f"node{node}/cpulist").write_text(f"{cpu}\n")
    (nodes / "online").write_text("0-1\n")
    monkeypatch.setattr(numa, "ROOT", str(tmp_path))
    return cpus


def test_the_same_logits_and_the_caller_is_free_again(path, two_nodes):
    expected = Model.open(path, threads=1, exact_head=True).logits(IDS)
    for threads in (1, 2, 5):
        before = os.sched_getaffinity(0)
        model = Model.open(path, threads=threads, numa=True, exact_head=False)
        np.testing.assert_array_equal(model.logits(IDS), expected)
        with model.session() as session:
            session.feed(IDS[:-1], logits="none")
            row = session.feed(IDS[-1:], screen=Screen(top=1))
        assert row.argmax() == expected[-1].argmax()
        assert os.sched_getaffinity(0) == before


def test_threads_stay_on_their_cpus(path, two_nodes):
    def masks():
        tasks = [int(folder.name) for folder in Path("/proc/self/task").iterdir()]
        return {task: os.sched_getaffinity(task) for task in tasks}

    before = masks().keys()
    model = Model.open(path, threads=3, numa=True)
    workers = [mask for task, mask in masks().items() if task not in before]
    # Two threads on the first node, the caller's among them, and one on the second.
    assert sorted(map(sorted, workers)) == sorted([[two_nodes[0]], [two_nodes[-1]]])
    assert model.placement == numa.sentence(2, 3)


def test_several_callers_get_their_cpus_back(path, two_nodes):
    model = Model.open(path, threads=2, numa=True)
    seen = []

    def call():
        model.logits(IDS[:4])
        seen.append(os.sched_getaffinity(0))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [set(two_nodes)] * 4


def test_one_node_or_none_is_told_and_nothing_is_placed(path, tmp_path, monkeypatch):
    monkeypatch.setattr(numa, "ROOT", str(tmp_path))  # tells nothing
    model = Model.open(path, threads=2, numa=True)
    assert model.placement == numa.sentence(0, 2)
    assert "nothing to place" in model.placement
    assert Model.open(path, threads=2).placement is None


def test_sentences():
    assert "2 memory nodes" in numa.sentence(2, 8)
    assert "one memory node" in numa.sentence(1, 1)
