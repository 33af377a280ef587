"""Pictures: content, sizes, and that nothing passed in is changed."""

from __future__ import annotations

import numpy as np
import pytest

from sas.overview import _RULE, GAP, MARGIN, PANEL_WIDTH, overview
from sas.visualize import LAYER_COLORS, heat_map, image_grid, layer_colors, outline, tint

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def photo() -> np.ndarray:
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[..., 1] = 90
    return image


@pytest.fixture
def layers() -> np.ndarray:
    """A square in front of a wide bar; the bar's middle is hidden."""
    masks = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    masks[0, 10:50, 30:50] = True
    masks[1, 20:40, 10:70] = True
    return masks


def _panel(sheet: np.ndarray, column: int, *, below: bool = False) -> np.ndarray:
    """Pixels of one panel of the sheet: the first row, or the first row of layers, found by the panels' grey frame."""
    left = MARGIN + column * (PANEL_WIDTH + GAP)
    frame_rows = np.flatnonzero((sheet[:, left + 100] == _RULE).all(axis=-1))
    tops = [row for row in frame_rows if (sheet[row, left : left + PANEL_WIDTH] == _RULE).all()]
    tops = [row for row in tops if not (sheet[row, MARGIN:-MARGIN] == _RULE).all()]
    start, stop = tops[2:4] if below else tops[:2]
    return sheet[start + 1 : stop, left : left + PANEL_WIDTH]


def _at(panel: np.ndarray, y: float, x: float) -> np.ndarray:
    """Mean colour around a point given in the photo's pixels."""
    row, column = round(y / HEIGHT * panel.shape[0]), round(x / WIDTH * panel.shape[1])
    return panel[row - 8 : row + 9, column - 8 : column + 9].reshape(-1, 3).mean(axis=0)


def test_tint_blends_inside_the_mask_only(photo: np.ndarray, layers: np.ndarray) -> None:
    before = photo.copy()
    result = tint(photo, layers[0], color=(200, 10, 0), alpha=0.5)
    assert (result[layers[0]] == (100, 50, 0)).all()
    assert (result[~layers[0]] == photo[~layers[0]]).all()
    assert (photo == before).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_tint_refuses_an_alpha_outside_its_range(photo: np.ndarray, layers: np.ndarray, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        tint(photo, layers[0], color=(0, 0, 0), alpha=alpha)


def test_tint_refuses_a_mask_of_another_size(photo: np.ndarray, layers: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mask must have shape"):
        tint(photo, layers[0, 1:], color=(0, 0, 0), alpha=1)


def test_outline_is_a_ring_of_the_given_width() -> None:
    mask = np.zeros((9, 12), dtype=bool)
    mask[2:7, 3:10] = True
    inner = np.zeros_like(mask)
    inner[3:6, 4:9] = True
    assert (outline(mask) == (mask & ~inner)).all()
    assert outline(mask, width=3).sum() == mask.sum()


def test_outline_of_one_pixel_of_nothing_and_of_everything() -> None:
    mask = np.zeros((5, 4), dtype=bool)
    assert not outline(mask).any()
    assert not outline(~mask, width=2).any()  # the picture's border is no edge
    mask[2, 1] = True
    assert (outline(mask, width=4) == mask).all()


def test_outline_refuses_no_width() -> None:
    with pytest.raises(ValueError, match="width must be at least 1"):
        outline(np.ones((2, 2), dtype=bool), width=0)


def test_heat_map_darkens_steadily_from_white_to_red() -> None:
    colors = heat_map(np.linspace(0, 1, 50)[None])
    assert colors.shape == (1, 50, 3) and colors.dtype == np.uint8
    assert (np.diff(colors.astype(int).sum(axis=-1)) <= 0).all()
    assert colors[0, 0].min() > 230 and colors[0, -1].max() < 110 and colors[0, -1].argmax() == 0


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_heat_map_refuses_values_outside_its_range(value: float) -> None:
    with pytest.raises(ValueError, match=r"values must lie in \[0, 1\]"):
        heat_map(np.array([[0.5, value]]))


@pytest.mark.parametrize("count", range(12))
def test_layer_colors_go_from_warm_to_cool(count: int) -> None:
    colors = layer_colors(count)
    assert len(colors) == count and set(colors) <= set(LAYER_COLORS)
    if 2 <= count <= 8:
        assert len(set(colors)) == count
        warmth = [red - blue for red, _, blue in colors]
        assert warmth[0] > 100 and warmth[-1] < -50
        assert [LAYER_COLORS.index(color) for color in colors] == sorted(LAYER_COLORS.index(color) for color in colors)


def test_image_grid_places_each_picture_in_its_cell() -> None:
    red, blue = np.zeros((10, 10, 3), dtype=np.uint8), np.zeros((10, 10, 3), dtype=np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    grid = image_grid([red, blue, np.ones((10, 10), dtype=bool)], columns=2, cell=40)
    assert grid.shape == (8 + 2 * 48, 8 + 2 * 48, 3)
    assert (grid[8:48, 8:48] == (255, 0, 0)).all()
    assert (grid[8:48, 56:96] == (0, 0, 255)).all()
    assert (grid[56:96] == 255).all()  # the white mask on the white page, and the empty cell


def test_image_grid_keeps_the_shape_of_thin_pictures_and_writes_captions() -> None:
    thin = np.zeros((4, 40, 3), dtype=np.uint8)
    grid = image_grid([thin], columns=1, cell=80, captions=["layer 0"])
    assert grid.shape == (8 + 8 + 20 + 8, 8 + 88, 3)
    rows = np.flatnonzero((grid[:18] == 0).all(axis=-1).all(axis=1, where=np.eye(1, 96, 40, dtype=bool)[0]))
    assert len(rows) == 8  # 40 wide -> 80 wide, 4 high -> 8 high
    assert (grid[18:36] < 200).any()
    assert image_grid([], columns=3).shape == (8, 8 + 3 * 168, 3)


def test_a_row_of_an_image_grid_is_as_high_as_its_highest_picture() -> None:
    wide, square = np.zeros((10, 40, 3), dtype=np.uint8), np.zeros((20, 20, 3), dtype=np.uint8)
    grid = image_grid([wide, wide, wide, square], columns=2, cell=40)
    assert grid.shape == (8 + 10 + 8 + 40 + 8, 8 + 2 * 48, 3)
    dark = (grid == 0).all(axis=-1)
    assert dark[8:18, 8:48].all() and dark[8:18, 56:96].all()
    assert np.flatnonzero(dark[:, 8]).tolist() == [*range(8, 18), *range(41, 51)], (
        "the low one of the second row is in its middle"
    )
    assert dark[26:66, 56:96].all()


def test_image_grid_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="captions must hold one text an image"):
        image_grid([np.zeros((2, 2, 3), dtype=np.uint8)], columns=1, captions=[])
    with pytest.raises(ValueError, match="columns and cell must be at least 1"):
        image_grid([], columns=0)
    with pytest.raises(ValueError, match=r"images\[0\] must be uint8"):
        image_grid([np.zeros((2, 2, 3))], columns=1)


def test_overview_shows_photo_depth_hidden_part_and_uncertainty(photo: np.ndarray, layers: np.ndarray) -> None:
    uncertainty = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    uncertainty[:20] = 1
    arguments = {"layer_masks": layers, "uncertainty": uncertainty}
    copies = {name: array.copy() for name, array in arguments.items()}
    before = photo.copy()
    sheet = overview(photo, **arguments)
    assert sheet.dtype == np.uint8 and sheet.shape[1:] == (1400, 3)
    assert (photo == before).all() and all((arguments[name] == copies[name]).all() for name in copies)

    assert np.abs(_at(_panel(sheet, 0), 30, 40) - photo[0, 0]).max() < 2
    near, far, depth = *layer_colors(2), _panel(sheet, 1)
    assert _at(depth, 14, 40).argmax() == np.argmax(near) == 0
    assert _at(depth, 30, 18).argmax() == np.argmax(far) == 2
    unsure = _panel(sheet, 3)
    assert _at(unsure, 10, 10)[0] > 2 * _at(unsure, 10, 10)[1]  # red
    assert np.ptp(_at(unsure, 50, 10)) < 2  # grey

    first, second = _panel(sheet, 0, below=True), _panel(sheet, 1, below=True)
    assert np.abs(_at(first, 30, 40) - photo[0, 0]).max() < 2  # nothing of it is hidden: the photo's own colour
    assert np.abs(_at(second, 30, 18) - photo[0, 0]).max() < 2  # the part seen
    hidden = _at(second, 30, 40)
    assert hidden.argmax() == 2 and hidden[2] > 60  # the part hidden: the layer's blue, hatched
    assert second[second.shape[0] // 2, 130:180].std(axis=0).max() > 10
    assert _at(first, 5, 5).min() > 210 and _at(second, 55, 75).min() > 210  # the rest fades


def test_overview_draws_hidden_outlines_dashed(photo: np.ndarray, layers: np.ndarray) -> None:
    sheet = overview(photo, layer_masks=layers, uncertainty=np.zeros((HEIGHT, WIDTH)))
    depth = _panel(sheet, 1)
    top = round(20 / HEIGHT * depth.shape[0])  # upper edge of the bar, two pixels thick
    hidden = depth[top - 1 : top + 4, round(32 / WIDTH * depth.shape[1]) : round(48 / WIDTH * depth.shape[1])]
    changes = np.abs(np.diff((hidden.min(axis=-1) > 180).astype(int), axis=1)).sum(axis=1)
    assert changes.max() >= 6  # light and dark in turn
    seen = depth[top - 1 : top + 4, round(12 / WIDTH * depth.shape[1]) : round(28 / WIDTH * depth.shape[1])]
    assert np.ptp(seen, axis=1).max() < 3  # an unbroken line


def test_overview_marks_each_object(photo: np.ndarray, layers: np.ndarray) -> None:
    arguments = {"layer_masks": layers, "uncertainty": np.zeros((HEIGHT, WIDTH))}
    plain, marked = overview(photo, **arguments), overview(photo, **arguments, marks=[("7", 39.5, 14.5)])
    rows, columns = np.nonzero((plain != marked).any(axis=-1))
    left = MARGIN + PANEL_WIDTH + GAP
    assert abs(columns.mean() - left - 40 / WIDTH * PANEL_WIDTH) < 2
    assert np.ptp(rows) < 25 and np.ptp(columns) < 25


def test_overview_of_nothing_says_so(photo: np.ndarray) -> None:
    sheet = overview(photo, layer_masks=np.zeros((0, HEIGHT, WIDTH), dtype=bool), uncertainty=np.zeros((HEIGHT, WIDTH)))
    middle = sheet[:, 600:800].astype(int)
    dark = np.flatnonzero((middle.max(axis=-1) < 60).any(axis=1))
    assert dark.size and dark.max() > 400  # the large line below the first row


@pytest.mark.parametrize("count", [1, 4, 5, 8, 11])
def test_overview_wraps_its_layers_into_rows_of_four(photo: np.ndarray, count: int) -> None:
    masks = np.repeat(np.eye(HEIGHT, WIDTH, dtype=bool)[None], count, axis=0)
    empty = overview(photo, layer_masks=masks[:1], uncertainty=np.zeros((HEIGHT, WIDTH)))
    sheet = overview(photo, layer_masks=masks, uncertainty=np.zeros((HEIGHT, WIDTH)))
    extra_rows = -(-count // 4) - 1
    assert (sheet.shape[0] - empty.shape[0]) == extra_rows * (48 + _panel(sheet, 0).shape[0] + GAP)


@pytest.mark.parametrize("count", [16, 60, 400])
def test_overview_keeps_the_legend_of_many_layers_on_the_page(photo: np.ndarray, count: int) -> None:
    masks = np.ones((count, HEIGHT, WIDTH), dtype=bool)
    sheet = overview(photo, layer_masks=masks, uncertainty=np.zeros((HEIGHT, WIDTH)))
    assert (sheet[:, 1400 - MARGIN + 2 :] == 255).all()
    swatches = sheet[-80:, MARGIN : MARGIN + 320]
    for color in (layer_colors(count)[0], layer_colors(count)[-1]):
        assert (swatches == color).all(axis=-1).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (64, 64), (1024, 600)])
def test_overview_handles_every_shape_of_image(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 40, dtype=np.uint8)
    sheet = overview(image, layer_masks=np.ones((2, *size), dtype=bool), uncertainty=np.ones(size, dtype=np.float32))
    assert sheet.shape[1] == 1400 and 500 < sheet.shape[0] < 1300
    panel = _panel(sheet, 0)
    painted = (panel == 40).all(axis=-1)
    assert painted.sum() >= 24 * 140  # however thin, it can be seen
    assert (_panel(sheet, 1, below=True) != panel).any()


def test_overview_copes_with_any_text(photo: np.ndarray) -> None:
    arguments = {"layer_masks": np.ones((1, HEIGHT, WIDTH), dtype=bool), "uncertainty": np.zeros((HEIGHT, WIDTH))}
    sheet = overview(
        photo, **arguments, title="Äpfel 苹果 \n" * 80, layer_notes=["long " * 80], captions=["x" * 900, ""]
    )
    assert (sheet[:, 1400 - MARGIN + 2 :] == 255).all()  # nothing runs over the margin


def test_overview_refuses_what_does_not_fit(photo: np.ndarray, layers: np.ndarray) -> None:
    flat = np.zeros((HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="layer_masks must have shape"):
        overview(photo, layer_masks=layers[:, 1:], uncertainty=flat)
    with pytest.raises(ValueError, match="layer_masks must be a bool mask"):
        overview(photo, layer_masks=layers.astype(float), uncertainty=flat)
    with pytest.raises(ValueError, match="layer_notes must hold one text a layer"):
        overview(photo, layer_masks=layers, uncertainty=flat, layer_notes=["one"])
    with pytest.raises(ValueError, match=r"uncertainty must lie in \[0, 1\]"):
        overview(photo, layer_masks=layers, uncertainty=flat + 2)
    with pytest.raises(ValueError, match="preview must be uint8"):
        overview(photo / 255, layer_masks=layers, uncertainty=flat)
