"""Serve a sparse checkpoint over HTTP, on sparse kernels, without Lightning's Trainer.

    python examples/digits.py fit --nm.pattern 1:4 --model.hidden 1024
    python examples/serve.py lightning_logs/version_0/checkpoints/*.ckpt --model lightning_nm.cli.digits.DigitsMLP \\
        --inputs 64

    curl -s localhost:8000 -d '[[0, 0, ...], ...]'       # rows of inputs in, rows of outputs out

What runs where, and why, is printed before the first request.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pydoc import locate

import torch
from torch import Tensor, nn

from lightning_nm import accelerate


def load(checkpoint: Path, model: str) -> nn.Module:
    """The LightningModule of that import path, with the checkpoint's weights."""
    cls = locate(model)
    if cls is None or not hasattr(cls, "load_from_checkpoint"):
        raise SystemExit(f"{model} is no LightningModule that can be imported from here")
    loaded: nn.Module = cls.load_from_checkpoint(checkpoint, map_location="cpu")
    return loaded.eval()


class Predictions(BaseHTTPRequestHandler):
    """POST a JSON list of input rows, get one of output rows."""

    model: nn.Module

    @torch.inference_mode()  # sparse kernels have no gradient: with gradients on, the dense weights would run
    def predict(self, rows: list[list[float]]) -> list[list[float]]:
        outputs: Tensor = self.model(torch.tensor(rows, dtype=torch.float32))
        answer: list[list[float]] = outputs.tolist()
        return answer

    def do_POST(self) -> None:
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = 200, json.dumps(self.predict(json.loads(body)))
        except (ValueError, TypeError, RuntimeError) as error:  # not JSON, not rows of numbers, not of the model's size
            status, answer = 400, json.dumps({"error": str(error)})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a sparse checkpoint over HTTP.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--model", required=True, help="import path of the LightningModule")
    parser.add_argument("--inputs", type=int, required=True, help="numbers in one row of inputs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], help="to measure before serving")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    model = load(given.checkpoint, given.model)
    accelerated = accelerate(model, backend=given.backend)
    with torch.inference_mode():
        for batch in given.batches:  # kernels are compiled and compared now, not at the first request
            model(torch.zeros(batch, given.inputs))
    print(accelerated.report())
    Predictions.model = model
    with ThreadingHTTPServer((given.host, given.port), Predictions) as server:
        print(f"serving on http://{given.host}:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
