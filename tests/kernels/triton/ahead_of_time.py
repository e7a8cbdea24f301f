"""Kernels compiled for cards that are not here, and what their machine code holds.

In a process of its own: in this one Triton interprets.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

SHARED_MEMORY = {80: 166_912, 90: 232_448}
"""Bytes that a program may have, by compute capability."""
_INTEGER = {"LOP3", "SHF", "SEL", "ISETP", "IADD3", "LEA", "PRMT", "VIADD", "SGXT", "IMNMX", "VIMNMX", "POPC", "FLO"}
_INTEGER |= {"VIMNMX3", "P2R", "R2P", "PLOP3", "FSETP", "FSET", "FSEL", "FMNMX"}
"""What the integer pipe does, at half the rate of issue: comparisons of floats too. (IMAD, with most moves, and sums of
floats run on the multiply-add pipe.)"""


@dataclass
class Request:
    """A kernel, its arguments' types and its constants."""

    module: str
    signature: dict[str, str]
    constants: dict[str, Any]
    capability: int = 90
    warps: int = 4
    stages: int = 3
    kernel: str = "kernel"
    odd: tuple[str, ...] = ()
    """Sizes that are no multiples of 16, as the others and all pointers are: Triton finds that out at run time."""


@dataclass
class Binary:
    """What the compiler made of it."""

    shared: int
    registers: int
    instructions: dict[str, int] = field(default_factory=dict)
    loop: dict[str, int] = field(default_factory=dict)
    """Those of the longest loop."""
    kinds: dict[str, int] = field(default_factory=dict)
    """The same by their full names, with what these say of widths and types."""
    ptx: str = ""
    """The same, one step before."""

    @property
    def spills(self) -> int:
        return self.instructions.get("STL", 0) + self.instructions.get("LDL", 0)

    def integer(self, loop: bool = True) -> int:
        """Instructions of the integer pipe, of one thread."""
        return sum(count for name, count in (self.loop if loop else self.instructions).items() if name in _INTEGER)


def compiled(requests: list[Request]) -> list[Binary]:
    """All of them, in another process."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([asdict(request) for request in requests], file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.kernels.triton.ahead_of_time", file.name],
            env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return [Binary(**binary) for binary in json.loads(done.stdout.splitlines()[-1])]


def _compile(request: Request) -> Binary:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = getattr(import_module(request.module), request.kernel)
    given = {**request.signature, **dict.fromkeys(request.constants, "constexpr")}
    names = kernel.arg_names
    signature = {name: given[name] for name in names}
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(
        kernel,
        signature,
        {(names.index(name),): value for name, value in request.constants.items()},
        # pointers and sizes are multiples of 16, as Triton finds out at run time where it is to look
        {
            (i,): [["tt.divisibility", 16]]
            for i, (name, kind) in enumerate(signature.items())
            if kind[0] in "*i" and name not in request.odd and not kernel.params[i].do_not_specialize
        },
    )
    options = {"num_warps": request.warps, "num_stages": request.stages}
    made = triton.compile(source, target=GPUTarget("cuda", request.capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        code = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
        resources = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    registers = int(re.findall(r"REG:(\d+)", resources.stdout + resources.stderr)[-1])
    every, loop, kinds = _instructions(code)
    return Binary(made.metadata.shared, registers, dict(every), dict(loop), dict(kinds), made.asm["ptx"])


def _instructions(code: str) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By name: all, and those of the longest loop; these by their full names too."""
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);", code)
    listed = [(int(at, 16), name, rest) for at, name, rest in lines]
    jumps = [
        (int(to[-1], 16), at)
        for at, name, rest in listed
        if name == "BRA" and (to := re.findall("0x([0-9a-f]+)", rest))
    ]
    begin, end = max(((to, at) for to, at in jumps if to < at), key=lambda jump: jump[1] - jump[0], default=(0, 0))

    looped = [name for at, name, _ in listed if begin <= at <= end]
    return _count(name for _, name, _ in listed), _count(looped), Counter(looped)


def _count(names: Iterable[str]) -> Counter[str]:
    return Counter(name.split(".")[0] for name in names)


if __name__ == "__main__":
    asked = [Request(**request) for request in json.loads(Path(sys.argv[1]).read_text())]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        print(json.dumps([asdict(binary) for binary in pool.map(_compile, asked)]))
