"""What searches found, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_nm.sparse import found


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_entries_are_kept() -> None:
    """Side by side, the last one of a key."""
    assert found.read("a", "x") is None
    found.write("a", "x", [1, 2])
    found.write("a", "y", 3)
    found.write("a", "x", [4])
    assert (found.read("a", "x"), found.read("a", "y"), found.read("b", "x")) == ([4], 3, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'"text"', b"null"])
def test_a_damaged_file_is_ignored(content: bytes) -> None:
    """And written anew."""
    path = found.file("a")
    path.parent.mkdir()
    path.write_bytes(content)
    assert found.read("a", "x") is None
    found.write("a", "x", 1)
    assert found.read("a", "x") == 1
    assert list(path.parent.iterdir()) == [path]  # nothing half written is left


def test_where_nothing_can_be_written(home: Path) -> None:
    """Nothing is kept, and nothing breaks."""
    (home / "lightning_nm").write_text("a file where the folder would be")
    found.write("a", "x", 1)
    assert found.read("a", "x") is None


def test_without_a_cache_folder_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert found.file("a") == Path.home() / ".cache" / "lightning_nm" / "a.json"
