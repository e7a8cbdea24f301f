"""`lightning-nm bench`: how fast sparse weights are multiplied here, against dense ones."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from lightning_nm.callbacks.table import print_table
from lightning_nm.cli import bench_report
from lightning_nm.cli.bench_report import Measured
from lightning_nm.cli.bench_work import Left, Work, channels_last, of_checkpoint, of_shapes
from lightning_nm.cli.report import load_checkpoint, pattern_argument
from lightning_nm.sparse import machine, tuned
from lightning_nm.sparse.comparison import compare

DESCRIPTION = """\
Time sparse weights, of a checkpoint or of given shapes, dense against every backend that can multiply them, side by
side. Every result is checked against float64; exit status 1 if one is wrong. With --tune, what is found decides from
then on, on this machine, who multiplies such weights under strategy="nm_sparse" and in accelerate().
"""
_INTERRUPTED = 130
EPILOG = """\
A checkpoint does not say at which sizes its convolutions run: name one with --size and --stride. (The table that
strategy="nm_sparse" prints has the times at the model's own sizes.) What --tune finds for a convolution holds for that
size, stride, padding and memory format, without groups and dilation.
"""


def main(args: Sequence[str]) -> int:
    """Exit status 0: every result is right; 1: some are wrong, or could not be had or kept."""
    given = _parser().parse_args(args)
    _refuse(given)
    works, left = _found(given)
    rows: list[Measured] = []
    stopped, untimed = False, len(left)
    with _threads(given.threads), torch.inference_mode():
        try:
            for work in works:
                for row in _measured(work, given):
                    if isinstance(row, Measured):
                        rows.append(row)
                    else:
                        left.append(row)
        except KeyboardInterrupt:  # what has been measured is shown all the same
            stopped = True
        title = f"{given.dtype}, {given.device}, {torch.get_num_threads()} threads, times as fast as dense"
        if left:
            print_table(
                "not timed", ("weight", "shape", "why"), [(name, list(shape), why) for name, shape, why in left]
            )
        print_table(title, *bench_report.table(rows))
        print(bench_report.READING)
        if given.tune:
            kept = sum(row.compared.tuned for row in rows)
            print(f"tuned {kept} products for {machine.name(torch.device(given.device))}: {tuned.file()}")
        if given.output is not None:
            asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
            asked["pattern"] = [str(pattern) for pattern in given.pattern or ()]
            print("wrote " + ", ".join(map(str, bench_report.write(given.output, rows, left, asked))))
            if find_spec("matplotlib") is None:
                print("no figure: matplotlib is not installed")
    wrong = sum(bool(row.compared.wrong) for row in rows)
    print(f"{len(rows) - wrong} of {len(rows)} rows: every result is right" + (f"; {wrong} WRONG" if wrong else ""))
    unkept = given.tune and any(not row.compared.tuned and not row.compared.wrong for row in rows)
    if unkept:
        print(f"could not write {tuned.file()}")
    return _INTERRUPTED if stopped else int(bool(wrong or unkept or len(left) > untimed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-nm bench", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False
    )
    add = parser.add_argument
    again = "may be given again"
    add("checkpoint", type=Path, nargs="?", help="a Lightning checkpoint, or a saved state dict")
    add("--shape", type=_positive, nargs="+", action="append", metavar="N", help=f"OUT IN [KERNEL ...]; {again}")
    add("--pattern", type=pattern_argument, nargs="+", metavar="N:M", help="of --shape: 2:4, 1x16@0.75, ...")
    add("--batch", type=_positive, nargs="+", metavar="B", help="default: 1 32; with --tune powers of two (see there)")
    add("--size", type=_positive, nargs="+", default=[14], metavar="S", help="of convolutions' images (default 14)")
    add("--stride", type=_positive, default=1, help="of convolutions; their padding is half of the kernel")
    add("--channels-last", action="store_true", help="convolutions in that memory format")
    add("--ignore", action="append", default=[], metavar="GLOB", help=f"weights of the checkpoint to leave; {again}")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=_positive, metavar="T", help="default: torch's own number")
    add("--tune", action="store_true", help="keep what is found; --batch: all to 256 on a CPU, to 8192 on a GPU")
    add("--seconds", type=float, default=1.0, help="of measuring, for each row (default 1)")
    add("--output", type=Path, metavar="DIR", help="for bench.json, bench.md and bench.png")
    return parser


def _positive(written: str) -> int:
    if not written.isdecimal() or int(written) < 1:
        raise argparse.ArgumentTypeError(f"{written!r} is not a whole number above 0")
    return int(written)


def _refuse(given: argparse.Namespace) -> None:
    """Raise ValueError for what does not go together, before anything is measured."""
    if (given.checkpoint is None) == (given.shape is None):
        raise ValueError("name a checkpoint, or shapes with --shape")
    if given.shape is not None and given.pattern is None:
        raise ValueError("--shape needs --pattern, for example --pattern 2:4")
    if given.checkpoint is not None and given.pattern is not None:
        raise ValueError("--pattern is for --shape: what pattern a checkpoint's weights obey is told by their zeros")
    if not 0 <= given.seconds < float("inf"):
        raise ValueError(f"--seconds {given.seconds} is no time")
    if given.output is not None and given.output.exists() and not given.output.is_dir():
        raise ValueError(f"--output {given.output} is a file; name a folder")
    try:
        torch.empty(0, device=given.device)
    except (RuntimeError, AssertionError) as error:  # no such device; torch built without it
        raise ValueError(f"--device {given.device}: {str(error).splitlines()[0]}") from error


def _found(given: argparse.Namespace) -> tuple[list[Work], list[Left]]:
    if given.checkpoint is None:
        return of_shapes(given.shape, given.pattern, as_told=given.tune)
    return of_checkpoint(load_checkpoint(given.checkpoint), given.ignore)


def _batches(given: argparse.Namespace) -> list[int]:
    if given.batch is not None:
        return list(given.batch)
    # sizes up to the next power of two share a choice
    return [1 << power for power in range(14 if given.device == "cuda" else 9)] if given.tune else [1, 32]


def _measured(work: Work, given: argparse.Namespace) -> Iterator[Measured | Left]:
    """A row for each batch, or why there is none: one that finds no memory costs no other its row."""
    weight = work.weight.detach().to(given.device, getattr(torch, given.dtype))
    work = replace(work, weight=channels_last(weight) if given.channels_last else weight.contiguous())
    how = {"seconds": given.seconds, "tune": given.tune}
    for x, bias, convolution in work.products(_batches(given), given.size, given.stride, given.channels_last):
        try:
            compared = compare(work.weight, work.pattern, work.dim, x, bias, convolution, **how)
        except RuntimeError as error:
            why = f"x {list(x.shape)}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            yield work.layers[0], tuple(work.weight.shape), why
        else:
            shape = list(work.weight.shape)
            yield Measured(work.layers, shape, str(work.pattern), list(x.shape), given.dtype, compared)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
