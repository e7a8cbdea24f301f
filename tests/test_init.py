"""What importing costs: nothing for the package, no Lightning and no compiler for its rooms."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import lightning_nm

ROOMS = ", ".join(
    f"lightning_nm{room}" for room in ("", ".patterns", ".kernels", ".metrics", ".training", ".conversion", ".sparse")
)


def loaded_by(imports: str) -> set[str]:
    """Top-level modules that a fresh Python has loaded after ``import <imports>``."""
    script = f"import sys\nimport {imports}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_no_torch() -> None:
    """It costs nothing."""
    assert not {"torch", "lightning", "numba"} & loaded_by("lightning_nm")


def test_importing_the_rooms_loads_no_lightning_and_no_compiler() -> None:
    """Masks, metrics and training are for any torch program."""
    assert not {"lightning", "pytorch_lightning", "numba", "wandb", "jsonargparse"} & loaded_by(ROOMS)


def test_the_rooms_load_no_triton() -> None:
    """Where torch and torchmetrics load it themselves it is theirs; nothing of ours does."""
    theirs = loaded_by("torch, torchmetrics")
    assert "triton" not in loaded_by(f"torch, torchmetrics, {ROOMS}") - theirs


@pytest.mark.parametrize("name", lightning_nm.__all__)
def test_public_names_are_there(name: str) -> None:
    """Each is loaded when first used."""
    assert getattr(lightning_nm, name).__name__ == name


def test_public_names_are_listed() -> None:
    """For completion in a shell, before they are loaded."""
    assert set(lightning_nm.__all__) <= set(dir(lightning_nm))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As in any module."""
    with pytest.raises(AttributeError, match="'lightning_nm' has no attribute 'nothing'"):
        lightning_nm.nothing  # noqa: B018


MISSING = ("numba", "llvmlite", "triton", "wandb", "rich", "matplotlib", "jsonargparse", "sklearn", "scikit_learn")

BARE_FIT = """
import sys
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
import lightning_nm
from lightning_nm.cli.main import main

model = BoringModel()
trainer = L.Trainer(max_steps=3, accelerator="cpu", logger=CSVLogger("."), enable_progress_bar=False,
                    enable_model_summary=False, log_every_n_steps=1,
                    callbacks=[lightning_nm.NMSparsityCallback("2:4")])
trainer.fit(model)
trainer.save_checkpoint("bare.ckpt")
assert int(model.layer.weight.count_nonzero()) == 32
sys.exit(main(["report", "bare.ckpt", "--pattern", "2:4"]))
"""


def test_a_machine_with_torch_and_lightning_only(tmp_path: Path) -> None:
    """Without numba, triton, wandb, rich, matplotlib and jsonargparse everything but the extras works."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.lower().startswith(MISSING):
            (packages / entry.name).symlink_to(entry)
    repository = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-W", "ignore", "-c", BARE_FIT],  # -S: no site-packages but these
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{repository}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "layer.weight  [2, 32]  2:4      32 / 64" in done.stdout
