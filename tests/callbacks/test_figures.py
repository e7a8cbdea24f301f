"""Figures draw what they are given."""

from __future__ import annotations

import torch

from lightning_nm.callbacks.figures import mask_figure, sad_figure


def test_sad_figure_draws_the_history():
    """Flips on the left; SAD since the start and since the epoch's start on the right."""
    figure = sad_figure([[10, 0.1, 0.2, 0.3], [20, 0.05, 0.25, 0.35]], "2:4")
    rate, distance = figure.axes
    assert rate.lines[0].get_xydata().tolist() == [[10, 0.1], [20, 0.05]]
    assert [line.get_ydata().tolist() for line in distance.lines] == [[0.3, 0.35], [0.2, 0.25]]


def test_sad_figure_of_nothing_is_empty():
    """No measurement yet is no error."""
    assert len(sad_figure([], "2:4").axes) == 2


def test_mask_figure_shows_the_corner_at_the_first_tap():
    """Outputs down, inputs across."""
    mask = torch.rand(70, 6, 3, 3) < 0.5
    image = mask_figure(mask, "conv").axes[0].images[0].get_array()
    assert torch.equal(torch.tensor(image.data), mask[:64, :, 0, 0])
