"""Several processes, and several users, with one --data-dir; programs that hold files open; locks."""

import functools
import gc
import gzip
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import common
import vae
from plumbing.data import images
from plumbing.judge import lenet
from plumbing.system import files
from tests.helpers import HERE, SMALL, error_line, image, letters, results_of

TOGETHER = """
import hashlib, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch, torchvision
from plumbing.judge import lenet
from plumbing.data import images, texts
me, address = sys.argv[2:4]
torchvision.datasets.MNIST.mirrors = [f"{address}/mnist/"]
torchvision.datasets.MNIST.resources = [tuple(line.split()) for line in Path("resources").read_text().splitlines()]
load = lambda source: images.load_images(source, "", "data", 28)
kinds = {
    "folder": lambda: load("set").train,
    "zip": lambda: load("set.zip").train,
    "tar": lambda: load("set.tar.gz").train,
    "url": lambda: load(f"{address}/set.zip").train,
    "text": lambda: torch.tensor(list(texts.read_text(f"{address}/tale.txt", "data").encode())),
    "classifier": lambda: lenet.classifier(load("digits"), "data", torch.device("cpu")).classifier.weight,
    "mnist": lambda: load("mnist").train,
}
for name, kind in kinds.items():
    Path(f"ready-{name}-{me}").touch()
    began = time.monotonic()
    while len(list(Path().glob(f"ready-{name}-*"))) < 4:
        assert time.monotonic() < began + 60, "another has failed"
        time.sleep(0.001)
    print(name, hashlib.sha256(kind().detach().contiguous().numpy().tobytes()).hexdigest(), flush=True)
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


def idx_files(folder: Path) -> str:
    """A data set of MNIST's format, 20 + 20 images; a line per file with its name and MD5."""
    folder.mkdir()
    lines = []
    for part in ("train", "t10k"):
        x = np.random.default_rng(len(part)).integers(0, 256, (20, 28, 28), dtype=np.uint8)
        y = np.arange(20, dtype=np.uint8) % 10
        for name, array in ((f"{part}-images-idx3-ubyte.gz", x), (f"{part}-labels-idx1-ubyte.gz", y)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / name).write_bytes(gzip.compress(head + array.tobytes()))
            lines.append(f"{name} {hashlib.md5((folder / name).read_bytes()).hexdigest()}")
    return "\n".join(lines)


def test_four_processes_that_first_use_the_same_data_together():
    """Each kind of what is kept under --data-dir: all four end well, with the same, and leave nothing half done."""
    for i in range(150):
        image(Path(f"set/{'ab'[i % 2]}/{i}.png"), mode="L", size=(60, 60), seed=i)
    shutil.make_archive("set", "zip", "set")
    shutil.make_archive("set", "gztar", "set")
    Path("tale.txt").write_text(letters(200_000))
    Path("resources").write_text(idx_files(Path("mnist")))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=os.getcwd()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        command = [sys.executable, "-c", TOGETHER, str(HERE)]
        address = f"http://127.0.0.1:{server.server_port}"
        started = [
            subprocess.Popen([*command, str(i), address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for i in range(4)
        ]
        said = [process.communicate(timeout=300) for process in started]
    finally:
        server.shutdown()
    assert [process.returncode for process in started] == [0] * 4, [err[-600:] for _, err in said]
    assert len({out for out, _ in said}) == 1 and len(said[0][0].splitlines()) == 7
    left = [path.name for path in Path("data").rglob("*")]
    assert left and not [name for name in left if name.endswith((".part", ".lock"))]
    errors = "".join(err for _, err in said)
    assert errors.count("training a LeNet-5") == 1 and errors.count("fetching") == 2  # one does it, three wait
    assert "waiting: another process is making data/cache/" in errors


def test_what_a_killed_process_left_is_no_obstacle():
    for i in range(6):
        image(Path(f"set/{i}.png"), seed=i)
    whole = images.load_images("set", "", "data", 8)
    (cache,) = Path("data/cache").iterdir()
    part = cache.with_name(f"{cache.name}.part")
    cache.rename(part)
    (part / "about.json").unlink()
    cache.with_name(f"{cache.name}.lock").write_text("process 1 on nowhere")
    again = images.load_images("set", "", "data", 8)
    assert torch.equal(again.train, whole.train) and {path.name for path in Path("data/cache").iterdir()} == {
        cache.name
    }


def modes(folder: Path) -> set[str]:
    """The modes of all folders and files below."""
    return {f"{path.stat().st_mode & 0o777:o}" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("mask", "expected"), [(0o022, {"755", "644"}), (0o007, {"770", "660"}), (0o077, {"700", "600"})]
)
def test_a_second_user_can_read_what_the_umask_lets_him(mask, expected, monkeypatch):
    monkeypatch.setattr(lenet, "_train", lambda net, *_: net)
    for i in range(4):
        image(Path(f"set/{i}.png"), seed=i).chmod(0o600)
    with tarfile.open("set.tar", "w") as archive:
        archive.add("set")
    shutil.make_archive("zipped", "zip", "set")
    before = os.umask(mask)
    try:
        for source in ("set", "set.tar", "zipped.zip"):
            images.load_images(source, "", "data", 8)
        lenet.classifier(images.load_images("digits", "", "data", 28), "data", torch.device("cpu"))
        Path("run").mkdir()
        common.save_generated(iter([torch.zeros(500, 1, 8, 8, dtype=torch.uint8)]), 500, Path("run"))
    finally:
        os.umask(before)
    assert modes(Path("data")) == expected and modes(Path("run")) == expected


def test_a_data_dir_that_cannot_be_written_to_is_enough_when_all_is_there(monkeypatch):
    for i in range(4):
        image(Path(f"set/{i}.png"), seed=i)
    images.load_images("set", "", "data", 8)
    monkeypatch.setattr(Path, "mkdir", None)
    monkeypatch.setattr(files, "lock", None)
    assert len(images.load_images("set", "", "data", 8).train) == 3


def test_a_viewer_that_holds_a_file_ends_nothing(capsys, monkeypatch):
    """As on Windows: os.replace of an open file raises PermissionError. Checkpoints are the only thing to end for."""
    replace, held = (
        os.replace,
        ["metrics.csv", "curves.png", "results.json", "step_0000002.png", "latent.png", "samples.webp"],
    )

    def refuse(source, target):
        if Path(target).name in held:
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    vae.main([*SMALL, "--steps", "3", "--sample-every", "2"])
    said = capsys.readouterr()
    for name in held[:4]:
        assert said.err.count(f"{name} cannot be written now (Access is denied)") <= 2
        assert f"{name} cannot be written now" in said.err and not list(Path("run").rglob(name))
    assert said.err.count("metrics.csv cannot") == 1 and "ELBO " in said.out
    held.clear()
    vae.main([*SMALL, "--steps", "4"])
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 1 + 2 * 4 and results_of("run")["step"] == 4
    held.append("last.pth")
    with pytest.raises(PermissionError):
        vae.main([*SMALL, "--steps", "5"])
    assert common.load(Path("run/last.pth"), ("vae",), "flags")["step"] == 4


def in_another_process(code: str) -> subprocess.Popen:
    """A process that executes `code` with files and Path, in the current folder."""
    head = f"import sys, time; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path; "
    command = [sys.executable, "-c", f"{head}from plumbing.system import files; {code}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_lock_names_its_process_and_ends_with_it():
    """This process gets None for a lock that it holds, another one gets InUse until the holder is killed."""
    held = files.lock(Path("lock"))
    assert held and files.lock(Path("lock")) is None
    process = in_another_process("held = files.lock(Path('other')); print('ready', flush=True); time.sleep(60)")
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(files.InUse, match=f"in use by process {process.pid} on "):
            files.lock(Path("other"))
        Path("other.txt").unlink()  # as in the moment before the holder has written it
        with pytest.raises(files.InUse, match="in use by another process"):
            files.lock(Path("other"))
    finally:
        process.kill()
        process.wait()
    assert files.lock(Path("other"))


def test_a_fresh_folder_stays_locked_when_the_lock_of_the_old_one_goes():
    Path("run").mkdir()
    held = files.lock(Path("run/lock"))
    files.move_aside(Path("run"))
    Path("run").mkdir()
    held = files.lock(Path("run/lock"))
    gc.collect()
    _, said = in_another_process("files.lock(Path('run/lock'))").communicate(timeout=60)
    assert held and f"in use by process {os.getpid()} on " in said


def test_no_set_no_network_no_scikit_learn(capsys, monkeypatch):
    """One true line, which says where to put what."""
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(images, "find_spec", lambda _: None)
    line = error_line(capsys, images.load_images, None, "mnist", "data", None)
    assert "copy train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-" in line
    assert "into data/MNIST/raw/" in line
    assert "To use scikit-learn's digits instead, type: pip install" in line and "used instead" not in line
    assert "pip install scikit-learn" in error_line(capsys, images.load_images, "digits", "mnist", "data", None)


def test_files_that_were_put_where_the_line_says_are_taken(monkeypatch):
    resources = [tuple(line.split()) for line in idx_files(Path("fetched")).splitlines()]
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr("torchvision.datasets.MNIST.resources", resources)
    Path("data/MNIST").mkdir(parents=True)
    Path("fetched").rename("data/MNIST/raw")
    assert images.load_images("mnist", "", "data", None).train.shape == (20, 1, 32, 32)
