"""The loops of the four courses' notebooks, on our functions as they call them."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import char_rnn
import dcgan
import gan_mnist
import simclr
import vae
from plumbing.data import images, texts
from tests.helpers import RUNS, NoJudge, batch, image, letters, write_inputs

CPU_AND_OTHERS = [("cpu", torch.float32), ("cpu", torch.float64), ("meta", torch.float32)]


# ------------------------------------------------------------------------------------------------------------- Stanford


@pytest.mark.parametrize("loss", gan_mnist.GAMES)
@pytest.mark.parametrize("arch", gan_mnist.GENERATORS)
def test_cs231n_run_a_gan(loss, arch):
    """Images (N, 1, 28, 28) in [0, 1] from a loader, shown to D as 2 (x - 0.5); G's output viewed as images."""
    x = images.load_images("digits", "", "data", 28).train[:96] / 255
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=32)
    D, G = gan_mnist.DISCRIMINATORS[arch](), gan_mnist.GENERATORS[arch]()
    D_solver, G_solver = gan_mnist.get_optimizer(D), gan_mnist.get_optimizer(G)
    discriminator_loss, generator_loss, _ = gan_mnist.GAMES[loss]
    before = [p.clone() for p in (*D.parameters(), *G.parameters())]
    for (real_data,) in loader:
        n = len(real_data)
        D_solver.zero_grad()
        logits_real = D(2 * (real_data - 0.5))
        fake_images = G(gan_mnist.sample_noise(n, 96)).detach()
        logits_fake = D(fake_images.view(n, 1, 28, 28))
        d_total_error = discriminator_loss(logits_real, logits_fake)
        d_total_error.backward()
        D_solver.step()

        G_solver.zero_grad()
        fake_images = G(gan_mnist.sample_noise(n, 96))
        g_error = generator_loss(D(fake_images.view(n, 1, 28, 28)))
        g_error.backward()
        G_solver.step()
    assert d_total_error.isfinite() and g_error.isfinite() and fake_images.shape == (32, 784)
    assert not any(torch.equal(p, was) for p, was in zip((*D.parameters(), *G.parameters()), before, strict=True))


def test_cs231n_sim():
    """Of two rows of a batch, as vectors (D,) and as (1, D)."""
    a, b = torch.randn(2, 7)
    exact = pytest.approx((a @ b / a.norm() / b.norm()).item(), abs=1e-6)
    assert simclr.sim(a, b).item() == exact and simclr.sim(a[None], b[None]).item() == exact
    assert simclr.sim(a, b).shape == ()


# ------------------------------------------------------------------------------------------------------- Technion, text


class StudentsGRU(nn.Module):
    """Any network with the course's forward: one-hot floats (B, S, V), h -> scores (B, S, V), h."""

    def __init__(self, v: int) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(v, 16, batch_first=True), nn.Linear(16, v)

    def forward(self, x, hidden_state=None):
        assert x.dtype == torch.float32 and x.ndim == 3
        y, h = self.gru(x, hidden_state)
        return self.out(y), h


@pytest.mark.parametrize("kind", ["ours", "a student's"])
def test_technion_char_rnn(kind):
    """The course's data preparation, a trainer that flattens scores with .view, and generation."""
    torch.manual_seed(0)
    text = letters(600)
    maps = char_rnn.char_maps(text)
    V, S = len(maps[0]), 10
    samples, labels = char_rnn.chars_to_labelled_samples(text, maps[0], S)
    dataset = torch.utils.data.TensorDataset(samples, labels)
    sampler = char_rnn.SequenceBatchSampler(dataset, batch_size=4)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, sampler=sampler, shuffle=False)
    model = char_rnn.MultilayerGRU(V, 16, V, 2) if kind == "ours" else StudentsGRU(V)
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(3):
        h = None
        for x, y in loader:
            scores, h = model(x.float(), h)
            h = h.detach()
            loss = F.cross_entropy(scores.view(-1, V), y.view(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    torch.manual_seed(1)
    made = char_rnn.generate_from_model(model, "the ", 50, maps, T=0.5)
    assert len(made) == 50 and made.startswith("the ") and set(made) <= set(text)
    torch.manual_seed(1)  # the loop of the course: one-hot floats in, one character drawn from hot_softmax at a time
    x, h, expected = char_rnn.chars_to_onehot("the ", maps[0])[None].float(), None, "the "
    with torch.no_grad():
        while len(expected) < 50:
            scores, h = model(x, h)
            p = char_rnn.hot_softmax(scores[0, -1], 0, 0.5)
            i = int((p / torch.empty_like(p).exponential_()).argmax())
            expected += maps[1][i]
            x = F.one_hot(torch.tensor([[i]]), V).float()
    assert made == expected
    for n_chars in (4, 3):
        with pytest.raises(AssertionError, match="n_chars"):
            char_rnn.generate_from_model(model, "the ", n_chars, maps, T=0.5)


# ----------------------------------------------------------------------------------------------------- Technion, images


@pytest.mark.parametrize(("device", "dtype"), CPU_AND_OTHERS)
def test_technion_vae_is_probed_where_the_encoder_is(device, dtype):
    encoder, decoder = vae.EncoderCNN(3, 16).to(device, dtype), vae.DecoderCNN(16, 3).to(device, dtype)
    encoder.cnn[0].eval()  # what was set before stays
    model = vae.VAE(encoder, decoder, (3, 32, 32), 5)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device, dtype)}
    assert not encoder.cnn[0].training and encoder.cnn[1].training and decoder.training
    x, mu, log_sigma2 = model(torch.zeros(4, 3, 32, 32, device=device, dtype=dtype))
    assert x.shape == (4, 3, 32, 32) and mu.shape == log_sigma2.shape == (4, 5)


def test_technion_vae_refuses_what_does_not_fit():
    encoder, decoder = vae.EncoderCNN(3, 16), vae.DecoderCNN(16, 3)
    with pytest.raises(ValueError, match=r"returns \(3, 48, 48\) instead of \(3, 50, 50\)"):
        vae.VAE(encoder, decoder, (3, 50, 50), 5)
    for width in (3, 12):
        model = vae.VAE(vae.EncoderCNN(3, width), vae.DecoderCNN(width, 3), (3, 32, 32), 5)
        assert model.encoder[0](torch.zeros(2, 3, 32, 32)).shape == (2, width, 2, 2)


def test_sampling_leaves_batchnorm_alone():
    model = vae.VAE(vae.EncoderCNN(1, 16), vae.DecoderCNN(16, 1), (1, 32, 32), 3).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert model.sample(5).shape == (5, 1, 32, 32) and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class StudentsGenerator(nn.Module):
    """Only what the course asks for: forward(z), and sample(n, with_grad)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3 * 16 * 16), nn.Tanh())

    def forward(self, z):
        return self.net(z).view(-1, 3, 16, 16)

    def sample(self, n, with_grad=False):
        with torch.set_grad_enabled(with_grad):
            return self(torch.randn(n, 4))


def test_technion_train_batch_and_checkpoint():
    torch.manual_seed(0)
    G, D = StudentsGenerator(), dcgan.Discriminator((3, 16, 16), (4, 8))
    frozen = next(D.parameters()).requires_grad_(False)
    optimizers = [torch.optim.Adam([p for p in m.parameters() if p.requires_grad], 1e-3) for m in (D, G)]
    losses = dcgan.discriminator_loss_fn, dcgan.generator_loss_fn
    before, dsc_losses, gen_losses, kept = frozen.clone(), [], [], []
    for _ in range(6):
        dsc_loss, gen_loss = dcgan.train_batch(D, G, *losses, *optimizers, batch(3, 16, 5, -1.0))
        dsc_losses.append(dsc_loss)
        gen_losses.append(gen_loss)
        kept.append(dcgan.save_checkpoint(G, dsc_losses, gen_losses, "gan"))
    assert torch.equal(frozen, before) and [p.requires_grad for p in D.parameters()].count(False) == 1
    assert kept == [loss == min(gen_losses[: i + 1]) for i, loss in enumerate(gen_losses)] and kept[0]
    assert torch.load("gan.pt", weights_only=False).sample(2).shape == (2, 3, 16, 16)


def lfw(folder: Path) -> None:
    for person, n in (("George_W_Bush", 6), ("Aaron_Eckhart", 2), ("Zico", 3)):
        for i in range(n):
            image(folder / f"lfw_home/lfw_funneled/{person}/{person}_{i:04d}.jpg", size=(70, 70), seed=i)


def test_technion_data(monkeypatch, capsys):
    """lfw is the course's one man; lfw-all everybody, without classes; shakespeare all works, from a folder of them."""
    lfw(Path("data"))
    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", lambda **_: None)
    for name, n in (("lfw", 6), ("lfw-all", 11)):
        data = images.load_images(name, "", "data", None)
        assert data.name == name and len(data.train) + len(data.test) == n and data.train.shape[1:] == (3, 64, 64)
        assert not data.train_labels.any() and not data.test_labels.any() and "classes" not in capsys.readouterr().err
    Path("data/shakespeare-works").mkdir()
    for i, title in enumerate(("hamlet", "sonnets")):
        Path(f"data/shakespeare-works/{title}.txt").write_text(f"ACT {i}. Enter {title}.\n" * 30)
    text = texts.load_text("shakespeare", "data", 1, 0.1)
    assert (
        text.name == "shakespeare"
        and len(text.train) + len(text.test) == 30 * (len("ACT 0. Enter hamlet.\n") * 2 + 1) + 1
    )
    assert "read 2 files" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- Imperial

NETWORKS = {
    "tsinghua": (lambda: vae.build_vae("tsinghua", 3), (1, 32, 32)),
    "technion": (lambda: vae.VAE(vae.EncoderCNN(3, 16), vae.DecoderCNN(16, 3), (3, 32, 32), 3), (3, 32, 32)),
    "mlp": (lambda: vae.build_vae("mlp", 3, 1, 8), (1, 8, 8)),
    "G": (lambda: dcgan.Generator(6, 2, 3, (8, 4)), (6,)),
    "D": (lambda: dcgan.Discriminator((3, 16, 16), (4, 8)), (3, 16, 16)),
    "D, spectral norm": (lambda: dcgan.Discriminator((3, 16, 16), (4, 8), spectral_norm=True), (3, 16, 16)),
    "dense G": (gan_mnist.generator, (96,)),
    "dense D": (gan_mnist.discriminator, (1, 28, 28)),
    "conv G": (gan_mnist.build_dc_generator, (96,)),
    "conv D": (gan_mnist.build_dc_classifier, (784,)),
    "SimCLR": (lambda: simclr.Model(8, "resnet18"), (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_imperial_traces_every_network(name, training):
    """torch.jit.save(torch.jit.trace(model, x, check_trace=False), file) in both modes; in eval mode as it is."""
    build, shape = NETWORKS[name]
    model, x = build().train(training), torch.rand(3, *shape)
    with open("model.pth", "wb") as file:  # by a path, a full disk would abort the process
        torch.jit.save(torch.jit.trace(model, x, check_trace=False), file)
    again = torch.jit.load("model.pth")
    if training and name == "D, spectral norm":
        return  # torch's own power iteration does not run once it is traced
    with torch.no_grad():
        torch.manual_seed(0)
        found = again(x)
        torch.manual_seed(0)
        expected = model(x)
    if not training:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_imperial_marks_the_exported_vae(capsys):
    """VAE_model.pth gives (reconstruction, mu, log sigma^2) of images in [0, 1], which the marking cell has to know."""
    vae.main("--data digits --arch mlp --latent-dim 2 --steps 1 --batch-size 4 --out run --image-size 8".split())
    capsys.readouterr()
    vae.main(["--export", "--weights", "run"])
    said = capsys.readouterr().out
    assert "VAE_model: images in [0, 1] -> (reconstructions in [0, 1], mu, log sigma^2)" in said
    x = images.load_images("digits", "", "data", 8).test[:5] / 255
    x_hat, mu, log_sigma2 = torch.jit.load("run/VAE_model.pth")(x)
    model = vae.build(torch.load("run/vae.pth", weights_only=True)).eval()
    torch.testing.assert_close((mu, log_sigma2), model.posterior(x))
    torch.testing.assert_close(x_hat, model.decode(mu))
    assert x_hat.shape == x.shape and 0 <= x_hat.min() and x_hat.max() <= 1


# ------------------------------------------------------------------------------------------------------------- Tsinghua


def test_tsinghua_encode_decode():
    """The homework's calls: the head's (mu, log sigma) into reparameterize, z into decode."""
    torch.manual_seed(0)
    model = vae.TsinghuaVAE(4).eval()
    x = torch.rand(3, 1, 32, 32)
    mu, log_sigma = model.encoder(x).chunk(2, dim=1)
    torch.manual_seed(1)
    z = model.reparameterize(mu, log_sigma)
    torch.manual_seed(1)
    torch.testing.assert_close(z, mu + log_sigma.exp() * torch.randn_like(mu))
    torch.manual_seed(1)
    torch.testing.assert_close(model.encode(x), (z, mu, 2 * log_sigma))
    assert model.decode(z).shape == x.shape


@pytest.mark.parametrize("script", [vae, gan_mnist, dcgan])
def test_tensorboard_has_the_sample_grids(script, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("fid.Judge", NoJudge)
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    script.main([*RUNS[script], "--steps", "4", "--sample-every", "2", "--log-every", "1", "--out", "run"])
    events = EventAccumulator("run", {"images": 0}).Reload()
    assert [event.step for event in events.Images("samples")] == [1, 2, 4] and events.Tags()["scalars"]
    Path("shown.png").write_bytes(events.Images("samples")[-1].encoded_image_string)
    shown, kept = (np.asarray(Image.open(path)).astype(int) for path in ("shown.png", "run/samples/step_0000004.png"))
    assert np.array_equal(shown, kept)


def test_tensorboard_has_curves_and_sample_texts():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_inputs()
    argv = [*RUNS[char_rnn], "--steps", "4", "--sample-every", "4", "--eval-every", "2", "--log-every", "2"]
    char_rnn.main([*argv, "--out", "run"])
    events = EventAccumulator("run", {"tensors": 0}).Reload()
    assert sorted(events.Tags()["scalars"]) == ["nats/test", "nats/train"]
    sampled = events.Tensors("samples/text_summary")
    assert [text.step for text in sampled] == [1, 2, 4]
    said = sampled[-1].tensor_proto.string_val[0].decode()
    assert textwrap.dedent(said) == Path("run/samples/step_0000004.txt").read_text()


def test_label_smoothing_is_for_probabilities(monkeypatch):
    monkeypatch.setattr("fid.Judge", NoJudge)
    seen = {}
    game = dcgan.game
    monkeypatch.setattr(dcgan, "game", lambda loss, *labels: seen.update({loss: labels}) or game(loss, *labels))
    argv = "--data digits --hidden-dim 1 --batch-size 4 --steps 1".split()
    for loss in ("gan", "lsgan", "hinge"):
        dcgan.main([*argv, "--loss", loss, "--out", loss])
    assert seen == {"gan": (0.0, 0.1), "lsgan": (0.0, 0.0), "hinge": (0.0, 0.0)}
    dcgan.main([*argv, "--loss", "lsgan", "--label-smoothing", "0.2", "--out", "given"])
    assert seen["lsgan"] == (0.0, 0.2)
