"""Test how texts are found, decoded, cleaned, counted, encoded, split and printed."""

import codecs
import hashlib
import io
import os
import random
import shlex
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch

import char_rnn
from plumbing.data import texts
from tests.helpers import HERE, error_line, letters

SMALL = "--h-dim 4 --n-layers 1 --seq-len 4 --batch-size 2 --steps 1 --out run".split()
MANY = "".join(map(chr, range(0x4E00, 0x4E00 + 5847)))


def astral_text(n: int, distinct: int) -> str:
    """Return random characters of all planes, with line breaks and the last code point, without surrogates."""
    chance = random.Random(0)
    planes = [*range(0x20, 0xD800), *range(0xE000, sys.maxunicode)]
    alphabet = [*map(chr, chance.sample(planes, distinct - 2)), "\n", chr(sys.maxunicode)]
    return "".join(alphabet + chance.choices(alphabet, k=n - distinct))


def test_text_is_cleaned_and_split(capsys):
    Path("a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r")
    Path("b.txt").write_bytes("one tw\u00f6 ".encode() * 10)
    text = texts.load_text("*.txt", "data", min_count=5, held_out=0.25)
    said = capsys.readouterr().out
    assert "removed: {'\\n': 3}" in said and "alphabet: ' enotwö'" in said
    assert text.chars == " enotwö" and len(text.train) == 64 and len(text.test) == 22
    decoded = "".join(text.chars[i] for i in torch.cat([text.train, text.test]))
    assert decoded == "onetwo" + "one twö " * 10
    assert str(texts.load_text(".", "data", 5, 0.25)) == str(text) and text.name == "text"
    assert text.source == "*.txt" and str(texts.load_text(text.source, "data", 5, 0.25)) == str(text)


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_says_the_encoding(mark, encoding, capsys):
    text = "To be,\r\nor not\rto be: caf\u00e9 \u4f60\u597d \U0001f600"
    Path("a.txt").write_bytes(mark + text.encode(encoding))
    Path("plain.txt").write_text(text, encoding="utf-8")
    clean = text.replace("\r\n", "\n").replace("\r", "\n")
    assert texts.read_text("a.txt", "data") == clean
    assert texts.read_text("a.txt", "data", encoding) == clean  # named, it leaves no mark either
    assert texts.load_text("a.txt", "data", 1, 0).crc == zlib.crc32(clean.encode())
    scores = []
    for name in ("a.txt", "plain.txt"):
        capsys.readouterr()
        char_rnn.main(["--score", name])
        scores.append(capsys.readouterr().out.removeprefix(name))
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("encoding", "text"), [("cp1252", "caf\u00e9 \u201cau lait\u201d\r\n"), ("gb2312", "\u4f60\u597d\r")]
)
def test_encodings_by_name(encoding, text, capsys):
    Path("a.txt").write_bytes((20 * text).encode(encoding))
    argv = ["a.txt", "--encoding", encoding]
    char_rnn.main(["--data", *argv, *SMALL])
    learned = torch.load("run/char_rnn.pth", weights_only=True)["chars"]
    assert learned == "".join(sorted(set(text.replace("\r\n", "\n").replace("\r", "\n"))))
    char_rnn.main(["--weights", "run", "--score", *argv])
    assert "left out" not in capsys.readouterr().err
    for flag in ("--data", "--score"):
        line = error_line(capsys, char_rnn.main, [flag, "a.txt"])
        assert "a.txt is not UTF-8 text (byte 0x" in line and line.endswith("as in --encoding latin-1.")


@pytest.mark.parametrize("begins", [b"<!DOCTYPE html>", b"\n <html><head>", codecs.BOM_UTF8 + b"<!doctype html>"])
def test_a_web_page_is_no_downloaded_text(begins):
    Path("page").write_bytes(begins + b"please log in")
    with pytest.raises(ValueError, match="a web page"):
        texts.check_text(Path("page"), None)
    Path("page").write_bytes(codecs.BOM_UTF8 + b"a text about <html>")
    texts.check_text(Path("page"), None)


def test_texts_known_by_name_have_their_own_encoding(monkeypatch):
    monkeypatch.setitem(texts.GIT_FILES, "known", (None,))
    Path("known.txt").write_text("caf\u00e9", encoding="utf-8")
    assert texts.read_text("known", ".", "cp1252") == "caf\u00e9"


def test_patterns_are_recursive_and_count(capsys):
    for name in ("src/a.py", "src/deep/b.py", "src/deep/deeper/c.py", "src/deep/folder.py/d.md"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"{name} {letters(1000)}")
    Path("src/deep/circle").symlink_to("..")
    contents = [f"{name} {letters(1000)}" for name in ("src/a.py", "src/deep/b.py", "src/deep/deeper/c.py")]
    text = texts.load_text("src/**/*.py", "data", 1, 0.1)
    assert text.crc == zlib.crc32("\n".join(contents).encode())
    assert f"read 3 files, {sum(map(len, contents)) + 2:,} characters\n" in capsys.readouterr().out
    texts.load_text("src/a.py", "data", 1, 0.1)
    assert f"read 1 file, {len(contents[0]):,} characters\n" in capsys.readouterr().out
    texts.load_text("python", "data", 1, 0.1)
    assert "read 1 file, " in capsys.readouterr().out
    assert "no such file" in error_line(capsys, texts.load_text, "src/*/circle", "data", 1, 0.1)


def test_folders_are_searched_for_txt(capsys):
    for name in ("f/b.TXT", "f/deep/a.txt", "f/.hidden/c.txt", "f/.d.txt", "f/folder.txt/e.md", "elsewhere/g.Txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("f/link").symlink_to("../elsewhere")
    Path("f/deep/circle").symlink_to("..")
    assert texts.read_text("f", "data") == "f/b.TXT\nf/deep/a.txt\nelsewhere/g.Txt"
    texts.load_text("f", "data", 1, 0)
    assert "read 3 files, " in capsys.readouterr().out


def test_a_folder_without_txt_names_what_is_there(capsys):
    Path("a[b] c/deep").mkdir(parents=True)
    for name in ("x.md", "y.md", "deep/z.md", "x.py", "deep/y.py", "Makefile"):
        Path("a[b] c", name).write_text(letters(50))
    for flag in ("--data", "--score"):
        line = error_line(capsys, char_rnn.main, [flag, "a[b] c"])
        assert "there is no .txt file in it, but 3 .md, 2 .py, 1 without an ending. Use a pattern such as" in line
    assert len(texts._paths(shlex.split(line)[-1])) == 3
    for k in range(30):
        Path("a[b] c", f"file.{k}").touch()
    line = error_line(capsys, char_rnn.main, ["--data", "a[b] c"])
    assert "3 .md, 2 .py, " in line and " and 23 other endings. Use" in line and len(line) < 300


def test_texts_are_downloaded_whole_or_not_at_all(tmp_path, capsys, monkeypatch):
    (tmp_path / "origin.txt").write_text(letters(500))
    good, wrong = hashlib.sha1(b"blob 500\0" + letters(500).encode()).hexdigest(), "0" * 40
    for sha1 in (wrong, good):
        monkeypatch.setitem(texts.GIT_FILES, "tinyshakespeare", (sha1, (tmp_path / "origin.txt").as_uri()))
        text = texts.load_text(None, "data", 1, 0.1)
        if sha1 == wrong:  # without --data: loudly something else
            said = capsys.readouterr().out
            assert "WARNING: tiny Shakespeare cannot be read" in said
            assert "not the expected text" in said and text.name == text.source == "python"
            assert ", a substitute" in text.note
            assert not list(Path("data").iterdir())
            assert "expected" in error_line(capsys, texts.load_text, "tinyshakespeare", "data", 1, 0.1)
    assert text.source == "tinyshakespeare"
    assert text.name == "tinyshakespeare" and len(text.train) == 450 and Path("data/tinyshakespeare.txt").exists()
    monkeypatch.setattr("urllib.request.urlopen", None)  # the second start needs no network
    assert str(texts.load_text(None, "data", 1, 0.1)) == str(text)


def test_a_pipe_is_no_text_to_wait_for(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder/b.txt")
    (tmp_path / "folder/a.txt").write_text("abc")
    assert texts.read_text("folder", "data") == texts.read_text("folder/*", "data") == "abc"
    assert "no such file" in error_line(capsys, char_rnn.main, ["--data", "folder/b.txt"])


def test_a_byte_order_mark_is_stronger_than_the_flag(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "folder/b.txt").write_bytes("é".encode("utf-16"))
    assert texts.read_text("folder", "data", "latin-1") == "é\né"


@pytest.mark.skipif(not (HERE / "data/tinyshakespeare.txt").exists(), reason="no tiny Shakespeare in data/")
def test_real_tiny_shakespeare():
    text = texts.load_text(None, str(HERE / "data"), 1, 0.1)
    assert (len(text.train), len(text.test), len(text.chars)) == (1003854, 111540, 65)
    assert text.train.dtype == torch.uint8


@pytest.mark.skipif(not (HERE / "data/shakespeare-works").exists(), reason="no works of Shakespeare in data/")
def test_real_works_are_those_of_the_weights_that_ship():
    text = texts.load_text(str(HERE / "data/shakespeare-works"), str(HERE / "data"), 1, 0.1)
    shipped = torch.load(HERE / "weights/char_rnn.pth", weights_only=True)
    assert str(text) == shipped["trained_on"] and text.chars == shipped["chars"]


@pytest.mark.parametrize(("distinct", "dtype"), [(256, torch.uint8), (257, torch.int16), (40_000, torch.int32)])
def test_characters_are_counted_and_encoded_as_a_loop_would(distinct, dtype, monkeypatch):
    monkeypatch.setattr(texts, "PIECE", 1000)
    text = astral_text(distinct + 12_345, distinct)
    counts = {c: 0 for c in sorted(set(text))}
    for c in text:
        counts[c] += 1
    assert texts.char_counts(text) == counts and list(texts.char_counts(text)) == list(counts)
    to_idx, to_char = char_rnn.char_maps(text)
    assert to_idx == {c: i for i, c in enumerate(counts)} and to_char == dict(enumerate(counts))
    ids = char_rnn.encode(text, to_idx)
    assert ids.dtype == dtype and ids.tolist() == [to_idx[c] for c in text]
    assert texts.crc(text) == zlib.crc32(text.encode())
    del to_idx[text[5000]], to_idx[text[100]]
    with pytest.raises(KeyError) as error:
        char_rnn.encode(text, to_idx)
    assert error.value.args == (text[100],)  # the first that is missing
    assert char_rnn.encode("", {}).shape == (0,)


def test_batches_and_courses_labels_are_int64():
    """Batches, labels and the loss equal those of int64 indices, whatever type the indices have."""
    text = astral_text(3000, 300)
    to_idx, _ = char_rnn.char_maps(text)
    ids = char_rnn.encode(text, to_idx)
    assert ids.dtype == torch.int16
    for step in (1, 2, 80):
        ours, exact = (char_rnn.stream_batch(x, 4, 10, step, 0) for x in (ids, ids.long()))
        assert ours[0].dtype == ours[1].dtype == torch.int64
        assert torch.equal(ours[0], exact[0]) and torch.equal(ours[1], exact[1])
    model = char_rnn.MultilayerGRU(300, 8, 300, 1)
    assert char_rnn.held_out_loss(model, ids) == char_rnn.held_out_loss(model, ids.long())
    samples, labels = char_rnn.chars_to_labelled_samples(text, to_idx, 7)
    assert samples.dtype == torch.int8 and labels.dtype == torch.int64
    assert torch.equal(samples.argmax(2).flatten(), ids[: 428 * 7].long())
    assert torch.equal(labels.flatten(), ids[1 : 428 * 7 + 1].long())


def test_rare_characters_go_in_one_pass():
    text, passes = astral_text(20_000, 5000), []
    rare = sorted(set(text))[::2]

    def watch(_, event, called):
        if event == "c_call" and called.__name__ in ("replace", "translate", "sub", "join"):
            passes.append(called)

    sys.setprofile(watch)
    try:
        clean, n = char_rnn.remove_chars(text, rare)
    finally:
        sys.setprofile(None)
    assert clean == "".join(c for c in text if c not in rare) and n == len(text) - len(clean) and len(passes) == 1
    assert char_rnn.remove_chars(text, []) == (text, 0)


def test_a_text_is_not_held_as_a_list():
    Path("long.txt").write_text(letters(1000) * 8000)
    tracemalloc.start()
    try:
        text = texts.load_text("long.txt", "data", 1, 0.1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    tables = 30e6  # bytes, of all code points and of one piece
    assert len(text.train) == 7_200_000 and text.train.element_size() == 1 and peak < 3 * 8e6 + tables


def test_messages_end(capsys):
    """Messages stay short for a text with 5,847 distinct characters."""
    Path("many.txt").write_text(3 * MANY + "\n", encoding="utf-8")
    Path("strange.txt").write_text("\n" + "".join(map(chr, range(0x3041, 0x3041 + 80))) + MANY[:9], encoding="utf-8")
    char_rnn.main(["--data", "many.txt", "--min-count", "2", *SMALL])
    said = capsys.readouterr().out
    assert f"alphabet: {MANY[:20]!r} and 5,827 more\n" in said and "removed: {'\\n': 1}" in said
    line = error_line(
        capsys, char_rnn.main, ["--generate", "--weights", "run", "--start", "".join(map(chr, range(65, 91)))]
    )
    assert "'ABCDEFGHIJKLMNOPQRST' and 6 more is not in the alphabet" in line and "and 5,827 more" in line
    char_rnn.main(["--score", "strange.txt", "--weights", "run"])
    said = capsys.readouterr().err
    assert "left out: 81 characters, ['\\n', '\u3041', " in said and " and 61 more\n" in said
    Path("rare.txt").write_text(MANY + 60 * "ab", encoding="utf-8")
    texts.load_text("rare.txt", "data", 2, 0)
    said = capsys.readouterr().out
    assert f"removed: {{'{MANY[0]}': 1, " in said and "1} and 5,827 more\n" in said
    assert max(map(len, said.splitlines())) < 300


@pytest.mark.parametrize(
    ("typed", "chars", "meant"),
    [
        (r"a:\n", "\n:an", "a:\n"),
        (r"a\n\n", "\n:an", "a\n\n"),
        ("a\n", "\n:an", "a\n"),
        (r"a\n", "\n\\an", r"a\n"),  # where a backslash is a character, it stays one
        (None, "\nab", "\n"),
        (None, "ab", "a"),
    ],
)
def test_start_as_a_shell_hands_it_over(typed, chars, meant):
    assert texts.start_of_writing(typed, chars) == meant


def own_output(monkeypatch, descriptor: int):
    """Make a file with an ASCII encoding the standard output of this process."""
    out = open(descriptor, "w", encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "__stdout__", out)
    return out


def interrupted():
    yield "once"
    raise KeyboardInterrupt


@pytest.mark.parametrize("has_gone", [True, False])
def test_a_reader_that_has_gone_and_ctrl_c_end_the_printing(has_gone, monkeypatch):
    reader, writer = os.pipe()
    out = own_output(monkeypatch, writer)
    if has_gone:
        os.close(reader)
    texts.print_as_it_comes(["once", " more"] if has_gone else interrupted())
    out.write("the rest goes nowhere")
    out.close()
    if not has_gone:
        assert os.read(reader, 99) == b"once"
        os.close(reader)


def test_printed_text_is_utf8(monkeypatch):
    reader, writer = os.pipe()
    out = own_output(monkeypatch, writer)
    texts.print_as_it_comes(["caf", "\u00e9"])
    assert os.read(reader, 9) == "caf\u00e9".encode()  # Nothing was closed, so each piece was flushed.
    out.close()
    os.close(reader)


def test_full_and_closed_standard_output_get_one_line(capsys, monkeypatch):
    out = own_output(monkeypatch, os.open("/dev/full", os.O_WRONLY))
    line = error_line(capsys, texts.print_as_it_comes, ["once"])
    assert "standard output cannot be written to (No space left on device)" in line
    with pytest.raises(OSError, match="No space"):
        out.close()
    monkeypatch.setattr(sys, "stdout", None)
    assert "standard output is closed" in error_line(capsys, texts.print_as_it_comes, ["once"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError, OSError(28, "No space left on device")])
def test_what_ends_the_printing_is_the_callers_where_standard_output_is(error, monkeypatch):
    out = io.StringIO()  # has no reconfigure
    monkeypatch.setattr(sys, "stdout", out)

    def ending():
        yield "once"
        raise error

    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind):
        texts.print_as_it_comes(ending())
    assert out.getvalue() == "once"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "empty.txt"], "0 characters, 0 of them distinct"),
        (["--data", "same.txt"], "100 characters, 1 of them distinct"),
        (["--data", "short.txt"], "one batch of 32 sequences needs 2,049"),
        (["--data", "short.txt", "--held-out", "0.01"], "leaves too few to measure"),
        (["--data", "short.txt", "--min-count", "99"], "0 characters, 0 of them distinct"),
        (["--data", "binary.txt"], "is a binary file"),
        (["--score", "binary.txt"], "is a binary file"),
        (["--data", "nul.txt"], "is a binary file"),
        (
            ["--data", "latin1.txt"],
            "latin1.txt is not UTF-8 text (byte 0xe9 at position 3). Name its encoding, as in --enc",
        ),
        (
            ["--score", "latin1.txt"],
            "latin1.txt is not UTF-8 text (byte 0xe9 at position 3). Name its encoding, as in --enc",
        ),
        (
            ["--data", "latin1.txt", "--encoding", "gb2312"],
            "is not gb2312 text (byte 0xe9 at position 3). Name its enc",
        ),
        (["--data", "marked.txt"], "is not UTF-8 text (byte 0xe9 at position 6)"),
        (["--data", "marked.txt", "--encoding", "utf-8-sig"], "is not utf-8-sig text (byte 0xe9 at position 6)"),
        (["--data", "odd.txt"], "is not UTF-16 text (byte 0x63 at position 6)"),
        (
            ["--data", "short.txt", "--encoding", "nope"],
            "argument --encoding: 'nope' is not the name of a text encoding",
        ),
        (["--score", "short.txt", "--encoding", "rot13"], "argument --encoding: 'rot13'"),
        (["--generate", "--encoding", "base64"], "argument --encoding: 'base64'"),
        (["--encoding", "undefined"], "argument --encoding: 'undefined'"),
        (["--encoding", ""], "argument --encoding: ''"),
        (["--data", "nowhere.txt"], "no such file"),
        (["--data", ""], "--data is empty"),
        (["--data", "folder"], "there is no .txt file in it, nor any other"),
        (["--data", "fold*"], "there is no such file"),
        (["--data", "http://127.0.0.1:9/a.txt"], "failed"),
        (["--generate", "--start", "caf\u00e9"], "'\u00e9' is not in the alphabet"),
        (["--generate", "--start", r"a\t"], "0123456' and 64 more"),
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
        "nul": codecs.BOM_UTF8 + b"a\0b",
        "marked": codecs.BOM_UTF8 + b"abc\xe9",
        "odd": "ab".encode("utf-16") + b"c",
    }
    for name, content in written.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    (tmp_path / "folder").mkdir()
    assert says in error_line(capsys, char_rnn.main, argv)
