"""Where texts come from, and how they are cleaned and split."""

import hashlib
from pathlib import Path

import pytest
import torch

import char_rnn
from plumbing import texts
from tests.helpers import HERE, error_line, letters


def test_text_is_cleaned_and_split(capsys):
    Path("a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r")
    Path("b.txt").write_bytes("one tw\u00f6 ".encode() * 10)
    text = char_rnn.load_text("*.txt", "data", min_count=5, held_out=0.25)
    said = capsys.readouterr().out
    assert "removed: {'\\n': 3}" in said and "alphabet: ' enotwö'" in said
    assert text.chars == " enotwö" and len(text.train) == 64 and len(text.test) == 22
    decoded = "".join(text.chars[i] for i in torch.cat([text.train, text.test]))
    assert decoded == "onetwo" + "one twö " * 10
    assert str(char_rnn.load_text(".", "data", 5, 0.25)) == str(text) and text.name == "text"


def test_texts_are_downloaded_whole_or_not_at_all(tmp_path, capsys, monkeypatch):
    (tmp_path / "origin.txt").write_text(letters(500))
    good, wrong = hashlib.sha1(b"blob 500\0" + letters(500).encode()).hexdigest(), "0" * 40
    for sha1 in (wrong, good):
        monkeypatch.setitem(texts.GIT_FILES, "tinyshakespeare", (sha1, (tmp_path / "origin.txt").as_uri()))
        text = char_rnn.load_text(None, "data", 1, 0.1)
        if sha1 == wrong:  # without --data: loudly something else
            said = capsys.readouterr().out
            assert "WARNING: tiny Shakespeare is not to be had" in said
            assert "not the expected text" in said and text.name == "python" and "substitute" in text.note
            assert not list(Path("data").iterdir())
            assert "expected" in error_line(capsys, char_rnn.load_text, "tinyshakespeare", "data", 1, 0.1)
    assert text.name == "tinyshakespeare" and len(text.train) == 450 and Path("data/tinyshakespeare.txt").exists()
    monkeypatch.setattr("urllib.request.urlopen", None)  # the second start needs no network
    assert str(char_rnn.load_text(None, "data", 1, 0.1)) == str(text)


@pytest.mark.skipif(not (HERE / "data/tinyshakespeare.txt").exists(), reason="no tiny Shakespeare in data/")
def test_real_tiny_shakespeare():
    text = char_rnn.load_text(None, str(HERE / "data"), 1, 0.1)
    assert (len(text.train), len(text.test), len(text.chars)) == (1003854, 111540, 65)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "empty.txt"], "0 characters, 0 of them distinct"),
        (["--data", "same.txt"], "100 characters, 1 of them distinct"),
        (["--data", "short.txt"], "one batch of 32 sequences needs 2,049"),
        (["--data", "short.txt", "--held-out", "0.01"], "leaves too few to measure"),
        (["--data", "short.txt", "--min-count", "99"], "0 characters, 0 of them distinct"),
        (["--data", "binary.txt"], "is a binary file"),
        (["--data", "latin1.txt"], "not UTF-8 text (byte 0xe9 at position 3)"),
        (["--data", "nowhere.txt"], "no such file"),
        (["--data", ""], "--data is empty"),
        (["--data", "folder"], "there is no .txt file in it"),
        (["--data", "http://127.0.0.1:9/a.txt"], "failed"),
        (["--generate", "--start", "caf\u00e9"], "'\u00e9' is not in the alphabet"),
        (["--generate", "--start", ""], "--start is empty"),
        (["--generate", "--temperature", "-1"], "--temperature"),
        (["--generate", "--temperature", "nan"], "--temperature"),
        (["--generate", "--top-k", "0"], "--top-k"),
        (["--generate", "--top-p", "0"], "--top-p"),
        (["--generate", "--top-p", "1.5"], "--top-p"),
        (["--score", "nowhere.txt"], "no such file"),
        (["--score", "strange.txt"], "0 characters of the alphabet"),
        (["--dropout", "1"], "--dropout"),
        (["--clip", "0"], "--clip"),
        (["--ema", "1"], "--ema"),
    ],
)
def test_bad_text_input_gets_one_line(argv, says, tmp_path, capsys):
    written = {
        "empty": b"",
        "same": b"a" * 100,
        "short": letters(100).encode(),
        "binary": b"a\0b",
        "latin1": "café".encode("latin-1"),
        "strange": "éè".encode(),
    }
    for name, content in written.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    (tmp_path / "folder").mkdir()
    assert says in error_line(capsys, char_rnn.main, argv)
