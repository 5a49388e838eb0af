from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import bitqwen.texts
from bitqwen import texts
from bitqwen.errors import ModelFileError, UsageError

FOLDER = Path(bitqwen.texts.__file__).parent / "held_out"


def test_packaged_texts_are_the_registered_ones() -> None:
    registered = {text.name: text.sha256 for text in texts.HELD_OUT if text.packaged}
    packaged = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.txt")}
    assert packaged == registered
    assert texts.packaged_names() == ["prose", "code"]
    assert "CC0" in (FOLDER / "LICENCE.md").read_text(encoding="utf-8")


def test_names_and_hashes_are_unique() -> None:
    assert len({text.name for text in texts.HELD_OUT}) == len(texts.HELD_OUT)
    assert len({text.sha256 for text in texts.HELD_OUT}) == len(texts.HELD_OUT)


def test_packaged_texts_share_no_passage() -> None:
    assert texts.held_out_in(texts.packaged_text("prose")) == ["prose"]
    assert texts.held_out_in(texts.packaged_text("code")) == ["code"]


def test_a_passage_of_a_held_out_text_is_found() -> None:
    words = texts.packaged_text("prose").split()
    passage = " ".join(words[500:520])
    assert texts.held_out_in(f"Something else. {passage.upper()}! And so on.") == ["prose"]
    assert texts.held_out_in(" ".join(words[500:506])) == []


def test_a_held_out_text_that_is_not_packaged_is_known_by_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"of somebody else").hexdigest()
    monkeypatch.setattr(texts, "HELD_OUT", (*texts.HELD_OUT, texts.HeldOutText("other", digest, "?")))
    assert texts.held_out_in("of somebody else") == ["other"]
    assert texts.packaged_names() == ["prose", "code"]


def test_texts_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "a=b.txt").write_text("naïve\n", encoding="utf-8")
    loaded = texts.load_texts([f"mine={tmp_path / 'a=b.txt'}", "code"])
    assert list(loaded) == ["mine", "code"]
    assert loaded["mine"] == "naïve\n"


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (["poetry"], "no packaged text 'poetry'; there are: prose, code"),
        (["prose", "prose"], "given before"),
        (["=x.txt"], "no name"),
        ([""], "no name"),
        (["\x1b[2J=x.txt"], "no name"),
    ],
)
def test_wrong_choices(choices: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        texts.load_texts(choices)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelFileError, match="Cannot read"):
        texts.load_texts([f"x={tmp_path / 'none'}"])
    (tmp_path / "latin").write_bytes(b"na\xefve")
    with pytest.raises(ModelFileError, match="not UTF-8"):
        texts.load_texts([f"x={tmp_path / 'latin'}"])
    monkeypatch.setattr(texts, "_MAX_TEXT_BYTES", 1 << 20)
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ModelFileError, match="larger than 1 MB"):
        texts.load_texts([f"x={tmp_path / 'large'}"])


def test_a_changed_packaged_text_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prose.txt").write_text("something else", encoding="utf-8")
    monkeypatch.setattr(texts, "_FOLDER", tmp_path)
    with pytest.raises(ModelFileError, match="not as it should be"):
        texts.packaged_text("prose")
