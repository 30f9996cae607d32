"""plumbing/run/latent.py: the plane, the page, and the pointer in a browser where there is one."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plumbing.run import latent

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.parametrize("z_dim", [2, 5])
def test_plane_and_back(z_dim):
    torch.manual_seed(0)
    mu, labels = torch.randn(20, z_dim), torch.arange(20) % 4
    plane = latent.Plane(mu, labels)
    u, v = torch.rand(2, 50) * 0.9 + 0.05
    assert torch.allclose(plane.coordinates(plane.codes(u, v)), torch.stack([u, v], 1), atol=1e-4)
    if z_dim > 2:
        expected = torch.tensor([[1, 1], [5, 1], [1, 5]]) / 6  # three codes, a quarter of their distance from the edge
        assert torch.allclose(plane.coordinates(mu[:3]), expected, atol=1e-5)
    else:
        assert torch.allclose(plane.codes(torch.tensor([0.5]), torch.tensor([0.5])), torch.zeros(1, 2), atol=1e-6)


def decode(z: torch.Tensor) -> torch.Tensor:
    """Return grey images (N, 1, 16, 16), sigmoid of the first latent of z (N, Z)."""
    return torch.sigmoid(z[:, :1, None, None]).expand(-1, 1, 16, 16)


def page(path="latent.html", z_dim=2, title="Digits") -> tuple[str, dict]:
    torch.manual_seed(0)
    mu, x, labels = torch.randn(30, z_dim), torch.rand(30, 1, 16, 16), torch.arange(30) % 3
    latent.write(Path(path), decode, mu, x, labels, ["a", "</script><b>", "c"], title)
    text = Path(path).read_text()
    return text, json.loads(re.search(r"^const data = (.*);$", text, re.MULTILINE)[1])


def test_page_holds_the_decoded_plane_and_nothing_from_outside():
    text, data = page(title="<i>&")
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["decoded"].split(",")[1]))))
    assert sheet.shape == (32 * 32, 32 * 32, 3)
    u = (np.arange(32) + 0.5) / 32
    expected = 255 * torch.sigmoid(torch.special.ndtri(torch.tensor(u))).numpy()
    assert np.abs(sheet[16::32, 16::32, 0] - expected).max() < 6
    assert len(data["points"]) == 30 and data["classes"][1] == "</script><b>"
    assert "http" not in text and "<i>&" not in text and "</script><b>" not in text and len(text) < 1.5e6


def test_page_of_images_without_classes():
    latent.write(Path("x.html"), decode, torch.randn(3, 4), torch.rand(3, 3, 8, 8), torch.zeros(3).long(), (), "x")
    assert '"classes": ["0"]' in Path("x.html").read_text()


@pytest.mark.parametrize(("n", "z_dim"), [(1, 4), (2, 2), (3, 1)])
def test_few_images_and_few_latents(n, z_dim, capsys):
    x, labels = torch.rand(n, 1, 8, 8), torch.zeros(n).long()
    latent.write(Path("x.html"), decode, torch.randn(n, z_dim), x, labels, (), "x")
    assert Path("x.html").exists() == (n == 3)
    line = f"x.html is left out. Its plane needs 3 held-out images, and there are {n}.\n"
    assert capsys.readouterr().out == (line if n < 3 else "")


@pytest.mark.skipif(not BROWSER, reason="there is no chromium here")
def test_pointer_and_keys_decode_another_place():
    text, _ = page()
    visitor = """<script>
    setTimeout(() => {
      const map = document.getElementById("map"), box = map.getBoundingClientRect(), greys = [];
      const grey = () => document.getElementById("decoded").getContext("2d").getImageData(16, 16, 1, 1).data[0];
      for (const at of [0.1, 0.9]) {
        const place = { clientX: box.left + at * box.width, clientY: box.top + at * box.height };
        map.dispatchEvent(new PointerEvent("pointermove", place));
        greys.push(grey());
      }
      for (let i = 0; i < 8; i++) map.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
      document.title = JSON.stringify([...greys, grey(), document.querySelectorAll("li").length]);
    }, 500);</script>"""
    Path("visited.html").write_text(text.replace("</html>", visitor + "</html>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    url = Path("visited.html").resolve().as_uri()
    dom = subprocess.run([BROWSER, *flags, url], capture_output=True, text=True, timeout=120).stdout
    left, right, back, classes = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert left == pytest.approx(255 * 0.217, abs=8) and right == pytest.approx(255 * 0.783, abs=8)  # sigmoid(ndtri(u))
    assert back == pytest.approx(255 * 0.59, abs=8) and classes == 3
