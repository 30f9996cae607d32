"""char_rnn.py: batches of streams, dropout, evaluation, runs and their ends, generated text."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import char_rnn
from plumbing.data import texts
from plumbing.run import run as run_module
from report import measure
from tests.helpers import HERE, last_of, letters, results_of, same

TALE = "--data tale.txt --h-dim 16 --batch-size 4 --seq-len 10 --eval-every 4".split()


@pytest.mark.parametrize("n", [61, 64, 80])
def test_batches_of_streams_are_the_samplers(n):
    ids, B, S = torch.arange(n), 4, 5
    samples, labels = ids[: (n - 1) // S * S].view(-1, S), ids[1 : (n - 1) // S * S + 1].view(-1, S)
    order = torch.tensor(list(char_rnn.SequenceBatchSampler(samples, B))).view(-1, B)
    starts = set()
    for step in range(1, 601):
        x, y, first = char_rnn.stream_batch(ids, B, S, step, seed=0)
        j, start = (step - 1) % 3, int(x[0, 0]) - 5 * ((step - 1) % 3)
        assert torch.equal(x, samples[order[j]] + start) and torch.equal(y, labels[order[j]] + start)
        assert first == (j == 0) and y.max() < n
        starts.add(start)
    assert starts == set(range(n - 60))  # what fills no batch is left out before or after


def test_bf16_gradient_points_the_same_way():
    torch.manual_seed(0)
    model, x = char_rnn.MultilayerGRU(30, 64, 30, 2), torch.randint(0, 30, (8, 33))
    gradients = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y, h = model(x[:, :-1])
        assert h.dtype == torch.float32  # the running state is not rounded
        model.zero_grad()
        nn.functional.cross_entropy(y.float().flatten(0, 1), x[:, 1:].flatten()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_dropout_on_every_layer():
    torch.manual_seed(0)
    model, x = char_rnn.MultilayerGRU(7, 400, 400, 2, dropout=0.3), torch.randint(0, 7, (8, 20))
    with torch.no_grad():
        model.W_hy.copy_(torch.eye(400))  # shows the last layer's output
        y, h = model.eval()(x)
        dropped, h_train = model.train()(x)
        assert torch.equal(h[:, 0], h_train[:, 0]) and not torch.allclose(h[:, 1], h_train[:, 1])
        for w in (model.layers[1].W_xz, model.layers[1].W_xr, model.layers[1].W_xg):
            w.zero_()  # now the last layer's state is the same in both modes
        model.layers[1].b_g.fill_(1.0)
        y, dropped = model.eval()(x)[0], model.train()(x)[0]
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(dropped[kept], y[kept] / 0.7)


class Dropping(nn.Linear):
    """Scores (B, S, 7) of the next characters, of the last one alone, with dropout."""

    def __init__(self) -> None:
        super().__init__(7, 7)

    def forward(self, x: torch.Tensor, hidden: None) -> tuple[torch.Tensor, None]:
        return nn.functional.dropout(super().forward(x), 0.5, self.training), hidden


def test_generate_from_model(monkeypatch):
    maps = char_rnn.char_maps("abcdefg")
    torch.manual_seed(0)
    model = char_rnn.MultilayerGRU(7, 5, 7, 2, 0.5).train()

    def write(T: float, seed: int = 0) -> str:
        torch.manual_seed(seed)
        return char_rnn.generate_from_model(model, "fab", 40, maps, T)

    assert len(write(1.0)) == 40 and write(1.0).startswith("fab") and model.training
    assert write(1.0) == write(1.0) != write(1.0, seed=1) and write(0.0) == write(0.0, seed=1)
    step, graphs = char_rnn.gru_step, []

    def spy(*args):
        graphs.append(torch.is_grad_enabled())
        return step(*args)

    monkeypatch.setattr(char_rnn, "gru_step", spy)
    write(1.0)
    assert graphs and not any(graphs)
    with pytest.raises(ValueError, match="empty"):
        char_rnn.generate_from_model(model, "", 5, maps, 1.0)
    other = Dropping().train()  # some other model, which drops what it would say
    assert len({char_rnn.generate_from_model(other, "a", 9, maps, 0.0) for _ in range(9)}) == 1 and other.training
    x = torch.tensor([[maps[0][c] for c in write(0.0)]])
    assert torch.equal(model.eval()(x)[0].argmax(2)[0, 2:-1], x[0, 3:])  # T = 0 is argmax


@pytest.mark.parametrize("n", [3, 150, 2500])
def test_evaluation_scores_every_character_once(n):
    torch.manual_seed(0)
    model, ids = char_rnn.MultilayerGRU(30, 16, 30, 2, 0.5), torch.randint(0, 30, (n,))
    y, _ = model.eval()(ids[None, :-1])
    exact = nn.functional.cross_entropy(y[0], ids[1:]).item()
    model.train()
    assert char_rnn.held_out_loss(model, ids) == pytest.approx(exact, abs=1e-6)
    assert char_rnn.held_out_loss(model, ids, warm=30) == pytest.approx(exact, abs=1e-5)  # in up to 20 streams
    assert model.training
    windows = [ids[i : i + 41] for i in range(0, n - 40, 40)] or [ids]  # 40 targets each, or all there are
    model.eval()
    exact = [nn.functional.cross_entropy(model(w[None, :-1])[0][0], w[1:]).item() for w in windows]
    model.train()
    assert measure.loss_in_windows(model, ids, 40) == pytest.approx(sum(exact) / len(exact), abs=1e-6)
    assert model.training


def test_it_memorises(capsys):
    Path("poem.txt").write_text(letters(150))
    argv = ["--data", "poem.txt", "--held-out", "0", "--batch-size", "1", "--seq-len", "149", "--h-dim", "64"]
    char_rnn.main([*argv, "--n-layers", "1", "--dropout", "0", "--lr", "0.01", "--steps", "250", "--out", "run"])
    capsys.readouterr()
    char_rnn.main(["--generate", "--weights", "run", "--start", letters(1), "--temperature", "0", "--n-chars", "150"])
    assert letters(150) in capsys.readouterr().out


def test_char_rnn_resumes_exactly(monkeypatch):
    """Nine batches are an epoch: the hidden state is carried over the interruption at step 8, and reset after it."""
    Path("tale.txt").write_text(letters(410))
    argv = [*TALE, "--log-every", "3", "--save-every", "3", "--steps", "14"]
    char_rnn.main([*argv, "--out", "whole"])
    with monkeypatch.context() as patch:
        once = iter([char_rnn.held_out_loss])
        patch.setattr(char_rnn, "held_out_loss", lambda *args: next(once)(*args))  # raises at the second call, step 8
        with pytest.raises(StopIteration):
            char_rnn.main([*argv, "--out", "halves"])
    assert last_of("halves")["step"] == 6
    char_rnn.main([*argv, "--out", "halves"])
    whole, halves = (last_of(name) for name in ("whole", "halves"))
    assert same(whole, halves) and whole["step"] == 14
    for name in ("metrics.csv", "char_rnn.pth"):
        assert Path("whole", name).read_bytes() == Path("halves", name).read_bytes()


def test_the_hidden_state_is_carried_and_reset(monkeypatch):
    Path("tale.txt").write_text(letters(410))  # nine batches are an epoch
    forward, calls = char_rnn.MultilayerGRU.forward, []

    def spy(model, x, hidden=None):
        y, last = forward(model, x, hidden)
        if model.training:
            calls.append((hidden, last))
        return y, last

    monkeypatch.setattr(char_rnn.MultilayerGRU, "forward", spy)
    char_rnn.main([*TALE, "--steps", "11", "--out", "run"])
    given, returned = zip(*calls, strict=True)
    assert [k for k, h in enumerate(given) if h is None] == [0, 9]
    assert all(torch.equal(given[k], returned[k - 1]) and not given[k].requires_grad for k in range(1, 9))


def test_averages_and_best_weights():
    Path("tale.txt").write_text(letters(410))
    argv = [*TALE, "--lr", "0.05", "--dropout", "0", "--log-every", "4", "--no-bf16", "--steps", "300", "--out", "run"]
    char_rnn.main(argv)
    last, best = (torch.load(f"run/{name}.pth", weights_only=True) for name in ("last", "char_rnn"))
    averaged = last["averaged"]
    assert not same(averaged, last["model"]) and not same(averaged, best["state_dict"])
    measured = {row["step"]: row["nats"] for row in last["rows"] if row["split"] == "test"}
    assert best["step"] == min(measured, key=measured.get) < last["step"]
    model = char_rnn.build(best)
    held_out = texts.load_text("tale.txt", "data", 1, 0.1).test
    nats = char_rnn.held_out_loss(model, held_out)
    results = results_of("run")
    assert nats == pytest.approx(min(measured.values()), abs=1e-5) == results["nats"]
    assert best["nats"] == min(measured.values()) and results["bits"] == pytest.approx(nats / math.log(2))
    assert results["best_step"] == best["step"] and max(measured.values()) > nats + 0.05  # the check can fail
    assert list(Path("run/samples").glob("*4.txt"))[0].read_text()

    Path("run/results.json").unlink()  # killed while it measured
    run = char_rnn.main(argv)
    assert results_of("run")["nats"] == results["nats"] and same(run.model.state_dict(), best["state_dict"])


def test_the_latest_average_is_kept_until_there_is_a_best(monkeypatch):
    Path("tale.txt").write_text(letters(410))
    argv = [*TALE, "--save-every", "1", "--steps", "9", "--out", "run"]
    kept, save = {}, run_module.Run.save

    def saved(run):
        save(run)
        weights = torch.load("run/char_rnn.pth", weights_only=True)
        kept[run.step] = weights["step"]
        assert ("nats" in weights) == (run.step >= 4)
        assert same(weights["state_dict"], last_of("run")["averaged"]) or weights["step"] < run.step

    monkeypatch.setattr(run_module.Run, "save", saved)
    char_rnn.main(argv)
    assert [kept[step] for step in range(1, 8)] == [1, 2, 3, 4, 4, 4, 4] and kept[9] in (4, 8, 9)


def test_another_number_of_steps_is_another_cosine(capsys):
    Path("tale.txt").write_text(letters(410))
    for steps in ("4", "8"):
        char_rnn.main([*TALE, "--steps", steps, "--out", "run"])
    assert "The run was planned for 4 steps, now for 8." in capsys.readouterr().out
    char_rnn.main([*TALE, "--steps", "2", "--out", "run"])  # nothing left to do
    assert "is finished" in capsys.readouterr().out


def test_generated_text_alone_is_on_standard_output(capfd):
    command = [sys.executable, str(HERE / "char_rnn.py"), "--generate", "--n-chars"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    one = subprocess.Popen([*command, "50"], **both)
    headless = subprocess.Popen([*command, "100000"], **both)
    shells = [["sh", "-c", f"{' '.join(command)} 50 {nowhere}"] for nowhere in (">&-", ">/dev/full")]
    nowhere = [subprocess.Popen(shell, stderr=subprocess.PIPE, text=True) for shell in shells]
    out, err = one.communicate()
    assert one.returncode == 0 and len(out) == 51 and "(shipped)" in err
    headless.stdout.read(10)
    headless.stdout.close()  # as `| head` does
    assert "Traceback" not in headless.stderr.read()
    for process in nowhere:
        _, err = process.communicate()
        assert process.returncode == 2 and "error: standard output" in err and "Traceback" not in err

    char_rnn.main(["--generate", "--n-chars", "50", "--n-samples", "2"])
    two = capfd.readouterr().out
    assert len(two) == 103 and two[:51] != two[52:]  # a blank line in between
    char_rnn.main(["--generate", "--n-chars", "50", "--n-samples", "2"])
    assert capfd.readouterr().out == two  # seeded
    char_rnn.main(["--generate", "--n-chars", "50", "--n-samples", "66", "--temperature", "0"])
    likeliest = capfd.readouterr().out
    assert likeliest == "\n".join([likeliest[:51]] * 66)
    char_rnn.main(["--generate", "--n-chars", "50", "--temperature", "0"])
    assert capfd.readouterr().out == likeliest[:51]


def test_one_text_streams_and_several_are_drawn_side_by_side(monkeypatch):
    step, batch_sizes = char_rnn.gru_step, []
    monkeypatch.setattr(char_rnn, "gru_step", lambda a, *rest: batch_sizes.append(len(a)) or step(a, *rest))
    model = char_rnn.MultilayerGRU(3, 4, 3, 1)

    def pieces(n: int):
        args = char_rnn.get_args(["--generate", "--start", "a", "--n-chars", "6", "--n-samples", str(n)])
        return char_rnn.generate(args, model, "abc")

    one = pieces(1)
    assert next(one) == "a" and not batch_sizes
    assert len(next(one)) == 1 and batch_sizes == [1]
    assert len(list(one)) == 5 and batch_sizes == [1] * 5
    [three] = pieces(3)
    assert batch_sizes[5:] == [3] * 5 and [len(line) for line in three.split("\n")] == [6, 0, 6, 0, 6, 0]


def test_score(capsys):
    Path("some.txt").write_text("To be, or not to be: that is the question. §")
    char_rnn.main(["--score", "some.txt"])
    out, err = capsys.readouterr()
    nats, bits = map(float, re.findall(r"([\d.]+) (?:nats|bits)", out))
    assert bits == pytest.approx(nats / math.log(2), abs=1e-3) and "left out: 1 characters, ['§']" in err and nats < 3
    assert "(42 characters scored, the first is given)" in out  # of 43


def test_start_with_a_line_break_typed_in_a_shell(capsys):
    char_rnn.main(["--generate", "--start", r"ROMEO:\n", "--n-chars", "7"])
    assert capsys.readouterr().out == "ROMEO:\n\n"  # seven characters, and the line break that ends every text
