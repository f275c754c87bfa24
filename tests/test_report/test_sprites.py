"""Sheets of frames: bytes, places, scale."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from report.sprites import coarsened, coarsening, coil_pictures, sheet, sheet_columns, thumbnail


def decoded(uri):
    assert uri.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (5, 12, 8), (16, 9, 7), (25, 4, 30), (3, 40, 2)])
def test_every_frame_is_at_its_place(frames, height, width):
    series = np.random.default_rng(0).uniform(0, 2, (frames, height, width))
    picture = decoded(sheet(series, 2.0))
    assert picture.mode == "L" and "gamma" not in picture.info and "icc_profile" not in picture.info
    pixels, columns = np.asarray(picture).astype(float), sheet_columns(frames, height, width)
    for i, frame in enumerate(series):
        top, left = i // columns * height, i % columns * width
        assert np.abs(pixels[top : top + height, left : left + width] * 2 / 255 - frame).max() <= 1 / 255 + 1e-9


def test_values_are_clipped_and_nan_is_black():
    series = np.array([[[0.0, 1.0, 5.0, np.nan]]])
    assert np.asarray(decoded(sheet(series, 2.0))).tolist() == [[0, 128, 255, 0]]
    levels = np.unique(np.asarray(decoded(sheet(np.linspace(0, 1, 1000).reshape(1, 10, 100), 1.0, 64))))
    assert len(levels) == 64 and levels[-1] == 255


def test_large_series_are_averaged():
    assert coarsening(16, 192, 192) == 1 and coarsening(40, 512, 512) == 2
    series = np.arange(2 * 5 * 3, dtype=float).reshape(2, 5, 3)
    small = coarsened(series, 2)
    assert small.shape == (2, 3, 2) and small[0, 0, 0] == series[0, :2, :2].mean()
    assert small[1, 2, 1] == series[1, 4, 2]  # the corner, repeated


def test_coil_maps_show_magnitude_and_phase():
    maps = np.zeros((3, 200, 100), np.complex64)
    maps[0], maps[1] = 1, np.exp(2j * np.pi / 3)
    first, second, dark = (np.asarray(decoded(one)) for one in coil_pictures(maps))
    assert first.shape[0] <= 96 and first.shape[2] == 3
    assert first[0, 0].argmax() == 0 and second[0, 0].argmax() == 1 and dark.max() == 0


def test_thumbnails_keep_the_shape_of_the_object():
    assert decoded(thumbnail(np.ones((50, 50)), 2.0)).size == (56, 112)
    assert decoded(thumbnail(np.zeros((40, 80)), 1.0)).size == (224, 112)
