from __future__ import annotations

import json

import pytest

from bitqwen import texts
from bitqwen.convert import convert


@pytest.fixture(scope="module")
def rough_gguf(tiny_folder, tmp_path_factory):
    """The tiny model at two bits, which does it no good."""
    path = tmp_path_factory.mktemp("gguf") / "rough.gguf"
    convert(tiny_folder, path, "w2", force=True)
    return path


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("the quick brown fox jumps over the lazy dog; the dog did not mind. " * 40)
    return path


def test_perplexity_of_the_packaged_texts(bitqwen, tiny_gguf):
    result = bitqwen("eval", tiny_gguf, "--json", "--context", "64", "--chunks", "2", "-t", "1")
    report = json.loads(result.stdout)
    assert [text["name"] for text in report["texts"]] == texts.packaged_names()
    for text in report["texts"]:
        assert text["perplexity"]["tokens"] == 2 * 31
        assert text["perplexity"]["value"] > 1
        assert text["divergence"] is None
    assert report["model"]["bytes"] == tiny_gguf.stat().st_size
    assert report["model"]["scheme"] == "f16"
    assert report["reference"] is None
    assert report["tasks"] == []


def test_inline_and_saved_references_agree(bitqwen, tiny_gguf, rough_gguf, notes, tmp_path):
    ours = ("--text", f"notes={notes}", "--context", "64", "--chunks", "3")
    saved = tmp_path / "reference"
    saving = bitqwen("eval", tiny_gguf, "--save-reference", saved, *ours)
    assert saving.returncode == 0, saving.stderr
    assert f"Saved as a reference: {saved}" in saving.stderr
    inline = json.loads(bitqwen("eval", rough_gguf, "--reference", tiny_gguf, *ours, "--json").stdout)
    report = tmp_path / "report.json"
    bitqwen("eval", rough_gguf, "--reference", saved, "-o", report, "-q")
    by_file = json.loads(report.read_text())
    assert by_file["reference"] == str(saved)
    assert inline["reference"]["path"] == str(tiny_gguf)
    (one,), (two,) = inline["texts"], by_file["texts"]
    assert one["sha256"] == two["sha256"]
    assert one["divergence"]["truncation"] is None
    truncation = two["divergence"]["truncation"]
    assert truncation["low"] - 1e-6 <= one["divergence"]["kl"]["value"] <= truncation["high"] + 1e-6
    assert two["divergence"]["kl"]["value"] == pytest.approx(one["divergence"]["kl"]["value"], rel=0.05)
    assert one["divergence"]["kl"]["value"] > 0.01
    assert two["divergence"]["perplexity_ratio"] == pytest.approx(one["divergence"]["perplexity_ratio"])


def test_the_table(bitqwen, tiny_gguf, rough_gguf, notes):
    text = bitqwen(
        "eval", rough_gguf, "--reference", tiny_gguf, "--text", f"notes={notes}", "--context", "64"
    ).stdout
    for words in ("notes", "perplexity", "KL divergence", "99 %", "same top token", "RMS Δp", " to "):
        assert words in text


def test_a_checkpoint_is_a_reference_in_half_precision(bitqwen, tiny_folder, tiny_gguf, notes):
    found = json.loads(
        bitqwen(
            "eval", tiny_gguf, "--reference", tiny_folder, "--text", f"n={notes}", "--context", "64", "--json"
        ).stdout
    )
    assert found["reference"]["scheme"] == "f16"
    assert found["texts"][0]["divergence"]["kl"]["value"] < 1e-9


def test_tasks_and_their_pairing(bitqwen, tiny_gguf, rough_gguf, tmp_path):
    questions = tmp_path / "quiz.jsonl"
    items = [{"question": "the dog", "choices": ["fox", "the quick dog"], "answer": i % 2} for i in range(4)]
    questions.write_text("\n".join(map(json.dumps, items)))
    task = ("--task", f"multiple-choice={questions}")
    report = tmp_path / "report.json"
    bitqwen("eval", tiny_gguf, *task, "-o", report, "-q")
    alone = json.loads(report.read_text())
    assert alone["texts"] == []
    assert {each["metric"] for each in alone["tasks"]} == {"accuracy", "accuracy per byte"}
    # The same question with both answers: half of them are right.
    assert [each["solved"] for each in alone["tasks"]] == [2, 2]
    assert all(each["paired"] is None for each in alone["tasks"])

    by_report = json.loads(bitqwen("eval", rough_gguf, *task, "--baseline", report, "--json").stdout)
    inline = json.loads(bitqwen("eval", rough_gguf, *task, "--reference", tiny_gguf, "--json").stdout)
    for one, two in zip(by_report["tasks"], inline["tasks"], strict=True):
        assert one["paired"] == two["paired"]
        assert one["paired"]["p_value"] == 1
        assert one["items"] == two["items"]
    table = bitqwen("eval", tiny_gguf, *task, "--baseline", report).stdout
    assert "2 of 4" in table
    assert "McNemar" in table


def test_humaneval_in_the_sandbox(bitqwen, tiny_gguf, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problem = {"task_id": "T/1", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): f()"}
    problems.write_text(json.dumps(problem))
    task = ("--task", f"humaneval={problems}", "-n", "4")
    refused = bitqwen("eval", tiny_gguf, *task)
    assert refused.returncode == 2
    assert "--allow-code-execution" in refused.stderr
    report = json.loads(bitqwen("eval", tiny_gguf, *task, "--allow-code-execution", "--json").stdout)
    (found,) = report["tasks"]
    assert (found["metric"], found["count"], found["solved"]) == ("pass@1", 1, 0)
    assert found["items"][0]["remark"].startswith("failed ")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--text", "poetry"], 2, "prose, code"),
        (["--text", "x=none.txt"], 3, "Cannot read none.txt"),
        (["--context", "4"], 2, "allowed: 8 to"),
        (["--task", "chess"], 2, "humaneval, multiple-choice, exact-match"),
        (["--task", "exact-match"], 2, "needs a JSONL file"),
        (["--task", "exact-match=none.jsonl"], 3, "Cannot read none.jsonl"),
        (["--reference", "a", "--save-reference", "b"], 2, "Save the reference first"),
        (["--baseline", "none.json"], 3, "Cannot read none.json"),
    ],
)
def test_user_errors(bitqwen, tiny_gguf, arguments, code, words):
    result = bitqwen("eval", tiny_gguf, *arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert result.stdout == ""


def test_a_saved_reference_brings_its_own_texts(bitqwen, tiny_gguf, notes, tmp_path):
    saved = tmp_path / "reference"
    bitqwen("eval", tiny_gguf, "--save-reference", saved, "--text", f"n={notes}", "--context", "64")
    result = bitqwen("eval", tiny_gguf, "--reference", saved, "--text", "prose")
    assert result.returncode == 2
    assert "its own texts" in result.stderr
    saved.write_bytes(saved.read_bytes()[:-1])
    assert bitqwen("eval", tiny_gguf, "--reference", saved).returncode == 3


def test_a_failed_save_leaves_nothing(bitqwen, tiny_gguf, notes, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    target = folder / "none" / "reference"
    result = bitqwen("eval", tiny_gguf, "--save-reference", target, "--text", f"n={notes}", "--context", "64")
    assert result.returncode == 3
    assert list(folder.iterdir()) == []
