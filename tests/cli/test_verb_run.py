from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bitqwen as library
from bitqwen.gguf import GGUFWriter, TensorType

GREEDY = ["--temp", "0", "-n", "12", "-t", "1"]


@pytest.fixture(scope="module")
def model(tiny_gguf: Path):
    return library.load(tiny_gguf, threads=1)


def test_answer_is_the_library_s(bitqwen, tiny_gguf, model):
    expected = model.generate([{"role": "user", "content": "the fox"}], temperature=0, max_tokens=12)
    result = bitqwen("run", tiny_gguf, "-p", "the fox", *GREEDY)
    assert result.returncode == 0
    assert result.stdout == expected.text + "\n"
    assert f"prompt {expected.timings.prompt_tokens} tokens" in result.stderr
    assert "answer 12 tokens" in result.stderr


def test_raw_goes_on_with_the_text(bitqwen, tiny_gguf, model):
    expected = model.generate("the fox", temperature=0, max_tokens=12)
    result = bitqwen("run", tiny_gguf, "-p", "the fox", "--raw", "--quiet", *GREEDY)
    assert result.stdout == expected.text + "\n"
    assert result.stderr == ""


def test_system_prompt(bitqwen, tiny_gguf, model):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = model.generate(messages, temperature=0, max_tokens=12)
    assert (
        bitqwen("run", tiny_gguf, "-p", "Hi", "--system", "Be brief.", *GREEDY).stdout == expected.text + "\n"
    )


def test_json(bitqwen, tiny_gguf, model):
    expected = model.generate("Über den Wolken", temperature=0, max_tokens=12)
    result = bitqwen("run", tiny_gguf, "-p", "Über den Wolken", "--raw", "--json", *GREEDY)
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["text"] == expected.text
    assert found["tokens"] == expected.tokens
    assert found["finish_reason"] == "length"
    assert found["stopped_by"] is None
    timings = found["timings"]
    assert timings["prompt_tokens"] == expected.timings.prompt_tokens
    assert timings["generated_tokens"] == 12
    assert all(
        timings[name] > 0
        for name in (
            "load_seconds",
            "prefill_seconds",
            "prefill_tokens_per_second",
            "decode_seconds",
            "decode_tokens_per_second",
        )
    )


def test_seed_is_told_and_repeats_the_text(bitqwen, tiny_gguf):
    arguments = [
        "run",
        tiny_gguf,
        "-p",
        "the",
        "--raw",
        "--json",
        "-n",
        "12",
        "--temp",
        "1.5",
        "--top-k",
        "0",
    ]
    first = json.loads(bitqwen(*arguments).stdout)
    again = json.loads(bitqwen(*arguments, "--seed", first["seed"]).stdout)
    assert again["tokens"] == first["tokens"]


def test_stop_string_ends_the_answer(bitqwen, tiny_gguf, model):
    text = model.generate("the fox", temperature=0, max_tokens=12).text
    stop = text[3:5]
    result = bitqwen("run", tiny_gguf, "-p", "the fox", "--raw", "--json", "--stop", stop, *GREEDY)
    found = json.loads(result.stdout)
    assert found["finish_reason"] == "stop"
    assert found["stopped_by"] == stop
    assert found["text"] == text[: text.index(stop)]


def test_prompt_from_a_file_and_from_a_pipe(bitqwen, tiny_gguf, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("naïve café\n", encoding="utf-8")
    from_option = bitqwen("run", tiny_gguf, "-p", "naïve café", *GREEDY).stdout
    assert bitqwen("run", tiny_gguf, "-f", file, *GREEDY).stdout == from_option
    assert bitqwen("run", tiny_gguf, stdin="naïve café\n", *GREEDY).stdout == from_option  # noqa: B026


def test_a_checkpoint_folder_is_converted_once_into_the_cache(bitqwen, tiny_folder, own_cache):
    first = bitqwen("run", tiny_folder, "-p", "the fox", *GREEDY)
    assert first.returncode == 0, first.stderr
    (converted,) = (own_cache / "converted").iterdir()
    written = converted.stat().st_mtime_ns
    assert bitqwen("run", tiny_folder, "-p", "the fox", *GREEDY).stdout == first.stdout
    assert converted.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-p", ""], 2, ["empty"]),
        (["-p", " \n"], 2, ["empty"]),
        (["-p", "a", "-f", "b"], 2, ["Both --prompt and --file"]),
        (["-p", "a", "--raw", "--system", "b"], 2, ["--system"]),
        (["-f", "nothing-here"], 3, ["nothing-here", "No such file"]),
        (["-p", "a", "--top-p", "7"], 2, ["--top-p"]),
        (["-p", "a", "-c", "99999"], 2, ["99999", "4096"]),
        (["-p", "the fox " * 40, "-c", "32"], 8, ["32", "hint"]),
    ],
)
def test_wrong_use(bitqwen, tiny_gguf, arguments, code, words):
    result = bitqwen("run", tiny_gguf, *arguments)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert all(word in result.stderr for word in words), result.stderr


def test_input_that_is_not_utf8(bitqwen, tiny_gguf):
    result = bitqwen("run", tiny_gguf, stdin="naïve".encode("latin1"))
    assert result.returncode == 2
    assert "not UTF-8" in result.stderr
    assert "iconv" in result.stderr


def test_files_that_are_no_model(bitqwen, tiny_gguf, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-1000])
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    other = tmp_path / "llama.gguf"
    with GGUFWriter(other) as writer:
        writer.add_metadata({"general.architecture": "llama"})
        writer.add_tensor("token_embd.weight", (4, 32), TensorType.F32)
        writer.begin()
        writer.write("token_embd.weight", np.zeros((4, 32), np.float32))
        writer.finish()
    for path, code, word in [(cut, 3, "cut.gguf"), (text, 3, "text.gguf"), (other, 4, "llama")]:
        result = bitqwen("run", path, "-p", "hi")
        assert result.returncode == code, result.stderr
        assert word in result.stderr
    result = bitqwen("run", tmp_path / "none.gguf", "-p", "hi")
    assert result.returncode in {2, 3}
    assert "none.gguf" in result.stderr


def test_numa_says_what_it_did_and_changes_no_answer(bitqwen, tiny_gguf, model):
    expected = model.generate("the fox", temperature=0, max_tokens=12)
    result = bitqwen("run", tiny_gguf, "-p", "the fox", "--raw", "--numa", *GREEDY)
    assert result.stdout == expected.text + "\n"
    assert "NUMA: " in result.stderr
