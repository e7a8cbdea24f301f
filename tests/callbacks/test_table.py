"""Tables through rich and without it."""

from __future__ import annotations

from lightning_nm.callbacks import table

COLUMNS, ROWS = ("layer", "kept"), [("fc.weight", 12), ("a", 3)]


def test_plain_table_is_aligned():
    """Columns start where their header does."""
    assert table.plain_table(COLUMNS, ROWS).splitlines() == [
        "layer      kept",
        "---------  ----",
        "fc.weight  12",
        "a          3",
    ]


def test_markdown_table():
    """What TensorBoard shows."""
    assert table.markdown_table(COLUMNS, ROWS).splitlines() == [
        "| layer | kept |",
        "| --- | --- |",
        "| fc.weight | 12 |",
        "| a | 3 |",
    ]


def test_print_table_with_rich_wraps_nothing_in_a_file(capsys):
    """A log file has no width: long cells and square brackets stay whole."""
    long = "x" * 300
    table.print_table("title", COLUMNS, [(f"{long}", [128, 64])])
    out = capsys.readouterr().out
    assert long in out
    assert "[128, 64]" in out


def test_print_table_without_rich(capsys, monkeypatch):
    """Plain text where rich is not installed."""
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    table.print_table("title", COLUMNS, ROWS)
    assert capsys.readouterr().out == "title\n" + table.plain_table(COLUMNS, ROWS) + "\n"


def test_titles_are_no_markup(capsys):
    """A path with brackets in it is printed as it is."""
    table.print_table("[a]/x.ckpt", COLUMNS, ROWS)
    assert "[a]/x.ckpt" in capsys.readouterr().out
