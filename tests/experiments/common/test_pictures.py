"""The one style of all figures."""

from __future__ import annotations

from pathlib import Path

from experiments.common.pictures import new_figure, save_figure


def test_labelled_panels_get_a_legend_and_every_shown_panel_a_grid(tmp_path: Path) -> None:
    figure, panels = new_figure(2, 2, size=(6, 4))
    panels[0, 0].plot([0, 1], [1, 2], label="a line")
    panels[0, 1].plot([0, 1], [1, 2])
    panels[1, 0].plot([0, 1], [1, 2], label="own")
    own = panels[1, 0].legend(title="kept")
    panels[1, 1].set_axis_off()
    saved = save_figure(figure, tmp_path / "deep" / "some.png", legend=9)
    assert saved is figure and panels.shape == (2, 2)
    legend = panels[0, 0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a line"]
    assert legend.get_texts()[0].get_fontsize() == 9
    assert panels[0, 1].get_legend() is None and panels[1, 0].get_legend() is own
    assert [bool(panel.get_xgridlines()[0].get_visible()) for panel in panels.flat] == [True, True, True, False]
    assert (tmp_path / "deep" / "some.png").read_bytes().startswith(b"\x89PNG")
