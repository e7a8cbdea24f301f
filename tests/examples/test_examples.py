"""The examples as a user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch

from lightning_nm.cli.digits import DigitsMLP
from lightning_nm.cli.report import main as report
from tests.processes import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(folder: Path, script: str, *args: str) -> str:
    """What the example says when it is run in a folder of its own."""
    command = [sys.executable, str(EXAMPLES / script), *args]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "MASTER_PORT": str(free_port())}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("digits.py", ["--model.hidden=32", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=5"]),
        (
            "byte_lm.py",
            [
                "--data.megabytes=0.2",
                "--model.layers=2",
                "--model.width=32",
                "--trainer.max_steps=12",
                "--trainer.limit_val_batches=2",
            ],
        ),
    ],
)
def test_example_trains_with_progress_bar_figures_and_a_sparse_checkpoint(tmp_path, script, args):
    """Configured from the command line, with a progress bar, figures and a checkpoint that obeys."""
    said = run(tmp_path, script, "fit", "--nm.pattern=1:4", *args)
    assert "Epoch" in said
    assert {p.name for p in tmp_path.rglob("*.png")} == {"sad.png", "mask.png"}
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert report([str(checkpoint), "--pattern", "1:4"]) == 0


@pytest.mark.parametrize(
    ("script", "args", "head"),
    [
        ("plain_pytorch.py", ["--fp16"], "head.weight"),
        ("fabric.py", ["--accelerator=cpu", "--strategy=ddp", "--devices=2", "--precision=bf16-mixed"], "4.weight"),
    ],
)
def test_example_of_a_loop_resumes_and_saves_a_sparse_network(tmp_path, script, args, head):
    """Without a Trainer: it learns, goes on from its checkpoint bit for bit, and what it deploys obeys."""
    said = run(tmp_path, script, "--pattern=1:4", "--epochs=4", *args)
    assert "resumed after 2 epochs: the same run, bit for bit" in said
    (accuracy,) = re.findall(r"test accuracy (.*)%", said)
    assert float(accuracy) > 70
    (deployed,) = tmp_path.rglob("sparse.pt")
    assert report([str(deployed), "--pattern=1:4", "--ignore", head]) == 0


def test_example_serves_what_the_dense_model_predicts(tmp_path):
    """Over HTTP, from a checkpoint; what cannot be predicted is an answer, not a crash."""
    run(tmp_path, "digits.py", "fit", "--nm.pattern=1:4", "--trainer.max_epochs=1", "--nm.report=false")
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    script = [str(EXAMPLES / "serve.py"), str(checkpoint), "--model=lightning_nm.cli.digits.DigitsMLP", "--inputs=64"]
    command = [sys.executable, "-W", "ignore", *script, "--port=0", "--backend=cpu"]
    images = torch.rand(3, 64)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            said = []
            while not said or not said[-1].startswith("serving"):
                said.append(server.stdout.readline())
                assert said[-1], "the server died"
            url = said[-1].split()[-1]
            with urlopen(url, data=json.dumps(images.tolist()).encode(), timeout=60) as answer:
                outputs = torch.tensor(json.load(answer))
            for wrong in (b"[[1, 2]]", b"no JSON", b'["a"]'):
                with pytest.raises(HTTPError, match="400"):
                    urlopen(url, data=wrong, timeout=60)
        finally:
            server.kill()
    assert sum(" 1:4 " in line for line in said) >= 2  # what runs where
    with torch.no_grad():
        expected = DigitsMLP.load_from_checkpoint(checkpoint, map_location="cpu")(images)
    torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)
