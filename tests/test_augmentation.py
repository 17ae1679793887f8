"""Crops and mirrors against numpy and Pillow."""

import collections
import dataclasses
import io

import hypothesis
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from gated_resnext.augmentation import augment, random_resized_crop
from gated_resnext.preprocessing import central_crop, decode
from gated_resnext.recipes import Phase, Recipe

PLAIN = Recipe("plain", (Phase(1, 0.1),), batch_size=64, weight_decay=0, flip=False)


def of_batch(batch_size, **changes):
    return dataclasses.replace(PLAIN, batch_size=batch_size, **changes)


# Random crops of the padded image


def numpy_augment(images, recipe, height, width, fill, seed):
    """`augment` image by image, from the same draws."""
    draws = tf.random.stateless_uniform((3, len(images)), seed).numpy()
    pad, (rows, columns, channels) = recipe.pad, images.shape[1:]
    result = np.empty((len(images), height, width, channels), np.uint8)
    for i, image in enumerate(images):
        padded = np.empty((rows + 2 * pad, columns + 2 * pad, channels), np.uint8)
        padded[:] = np.asarray(fill, np.uint8)
        padded[pad : pad + rows, pad : pad + columns] = image
        top = int(draws[0, i] * np.float32(rows + 2 * pad - height + 1))
        left = int(draws[1, i] * np.float32(columns + 2 * pad - width + 1))
        crop = padded[top : top + height, left : left + width]
        result[i] = crop[:, ::-1] if recipe.flip and draws[2, i] >= 0.5 else crop
    return result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "size, shape, pad",
    [
        ((32, 32, 3), (32, 32, 3), 4),
        ((84, 84, 3), (64, 64, 3), 0),
        ((8, 8, 1), (8, 8, 1), 0),
        ((9, 7, 2), (6, 5, 2), 1),
    ],
)
def test_augment_is_pad_crop_and_mirror(size, shape, pad, flip):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, *size), dtype=np.uint8)
    recipe, fill = of_batch(200, pad=pad, flip=flip), rng.integers(0, 256, size[2]).astype(np.float32)
    for seed in ((0, 0), (5, 123_456)):
        found = augment(tf.constant(images), recipe, shape, fill, seed=seed)
        assert found.dtype == tf.uint8
        np.testing.assert_array_equal(found, numpy_augment(images, recipe, *shape[:2], fill, seed))


def test_every_window_and_both_directions_are_as_likely_as_each_other():
    # Pixel (r, c) is 16 r + c + 1: the first pixel of a crop tells its place, the second its direction.
    image = (np.arange(10)[:, None] * 16 + np.arange(10) + 1).astype(np.uint8)[None, ..., None]
    crops = augment(
        tf.constant(np.repeat(image, 18_000, 0)), of_batch(1, flip=True), (8, 8, 1), np.zeros(1), seed=(0, 1)
    ).numpy()[..., 0]
    mirrored = crops[:, 0, 0] > crops[:, 0, 1]
    corner = np.where(mirrored, crops[:, 0, 7], crops[:, 0, 0]).astype(int) - 1
    counts = collections.Counter(zip((corner // 16).tolist(), (corner % 16).tolist(), mirrored.tolist(), strict=True))
    assert set(counts) == {(r, c, m) for r in range(3) for c in range(3) for m in (False, True)}
    # 18,000 draws over 18 cells: 1,000 each, a standard deviation of 31.
    assert max(abs(count - 1000) for count in counts.values()) < 5 * 31


# Photographs: cropped at the centre, or at random, and resized


def photograph(rng, height, width):
    """Smooth colours, as a photograph has: each channel a plane and a slow wave."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    channels = []
    for _ in range(3):
        a, b, phase = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0, 6)
        channels.append(
            128 + 50 * (a * rows / height + b * columns / width) + 40 * np.sin(rows / 9 + columns / 7 + phase)
        )
    return np.clip(np.rint(np.stack(channels, -1)), 0, 255).astype(np.uint8)


def encoded(image, form="jpeg"):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, form, **({"quality": 95} if form == "jpeg" else {}))
    return buffer.getvalue()


def pil_central_crop(image, size, resize):
    """The same by Pillow, whose bilinear filter widens in the same way where it shrinks."""
    height, width = image.shape[:2]
    factor = resize / min(height, width)
    shape = [max(round(side * factor), wanted) for side, wanted in zip((height, width), size, strict=True)]
    resized = np.asarray(PIL.Image.fromarray(image).resize(shape[::-1], PIL.Image.Resampling.BILINEAR))
    top, left = (shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2
    return resized[top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize("height, width", [(40, 60), (60, 40), (40, 40), (40, 61), (41, 40)])
def test_central_crop_without_resizing_is_the_middle(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left = (height - 32) // 2, (width - 32) // 2
    found = central_crop(tf.constant(image), (32, 32), min(height, width))
    np.testing.assert_array_equal(found, image[top : top + 32, left : left + 32])


@pytest.mark.parametrize(
    "height, width, size, resize",
    [
        (100, 150, (32, 32), 40),
        (150, 100, (32, 32), 40),
        (50, 333, (32, 32), 40),
        (20, 30, (32, 32), 40),
        (90, 70, (32, 24), 36),
    ],
)
def test_central_crop_is_pillows(height, width, size, resize):
    image = photograph(np.random.default_rng(1), height, width)
    found = central_crop(tf.constant(image), size, resize).numpy()
    assert (found.shape, found.dtype) == ((*size, 3), np.uint8)
    assert np.abs(found.astype(int) - pil_central_crop(image, size, resize)).max() <= 1


@pytest.mark.parametrize("height, width, size", [(100, 40, 32), (10, 200, 32), (31, 31, 32), (33, 70, 8)])
def test_central_crop_without_a_size_keeps_the_whole_shorter_side(height, width, size):
    # A ramp's middle stays in the middle: the mean of a symmetric crop is the mean of the image.
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 200 / height, columns * 200 / width, rows * 0 + 9], -1).round().astype(np.uint8)
    found = central_crop(tf.constant(image), (size, size), None).numpy()
    assert found.shape == (size, size, 3)
    np.testing.assert_allclose(found.mean((0, 1)), image.mean((0, 1)), atol=200 / size)
    np.testing.assert_array_equal(found[..., 2], 9)
    kept = np.ptp(found, (0, 1))[:2] / np.ptp(image, (0, 1))[:2]
    shorter = min(height, width)
    np.testing.assert_allclose(kept, [shorter / height, shorter / width], atol=2 / size)


@pytest.mark.parametrize("size", [(32, 64), (50, 20)])
def test_central_crop_of_a_picture_of_its_size_is_the_picture(size):
    image = photograph(np.random.default_rng(2), *size)
    np.testing.assert_array_equal(central_crop(tf.constant(image), size, None), image)


@pytest.mark.parametrize("shape", [(32, 32, 3), (24, 96, 3), (80, 20, 3)])
def test_a_random_crop_has_about_the_proportions_of_the_input(shape):
    """By a ramp down and one across: how much of each is seen in a row and in a column of what the network gets."""
    rows, columns = np.mgrid[:240, :240]
    encoded = tf.io.encode_png(tf.constant(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)))
    found = []
    for seed in range(60):
        crop = random_resized_crop(encoded, shape, flip=False, seed=(seed, 5)).numpy().astype(float)
        down, across = np.ptp(crop[..., 0]) / (shape[0] - 1), np.ptp(crop[..., 1]) / (shape[1] - 1)
        found.append(across / down)
    assert 0.65 < min(found) < 0.85 and 1.18 < max(found) < 1.5  # 3/4 and 4/3, but for whole pixels


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_the_parts_of_a_batch_are_cropped_as_the_whole(parts, count, step):
    images = np.random.default_rng(step).integers(0, 256, (parts * count, 6, 7, 2), dtype=np.uint8)
    recipe, fill = of_batch(1, pad=2, flip=True), np.array([3.0, 200.0])
    whole = augment(tf.constant(images), recipe, (5, 6, 2), fill, seed=(4, step))
    for part in range(parts):
        rows = slice(part * count, (part + 1) * count)
        found = augment(tf.constant(images[rows]), recipe, (5, 6, 2), fill, seed=(4, step), place=(part, parts))
        np.testing.assert_array_equal(found, whole[rows])


@pytest.mark.parametrize("form", ["jpeg", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decode_gives_three_channels(form, mode):
    image = np.asarray(PIL.Image.fromarray(photograph(np.random.default_rng(2), 30, 50)).convert(mode))
    found = decode(tf.constant(encoded(image, form))).numpy()
    expected = image if mode == "RGB" else np.repeat(image[..., None], 3, -1)
    assert (found.shape, found.dtype) == ((30, 50, 3), np.uint8)
    assert np.abs(found.astype(int) - expected).max() <= (0 if form == "png" else 12)


def test_random_resized_crops_cover_the_areas_and_ratios_they_may():
    # Red tells the column and green the row, so that a crop tells its place: 256 x 256, one level a pixel.
    rows, columns = np.mgrid[:256, :256]
    picture = tf.constant(encoded(np.stack([columns, rows, rows * 0], -1).astype(np.uint8), "png"))
    seeds = tf.stack([tf.zeros(400, tf.int64), tf.range(400, dtype=tf.int64)], 1)
    crop = tf.function(lambda seed: random_resized_crop(picture, (32, 32, 3), seed=(seed[0], seed[1])))
    crops = np.stack([crop(seed).numpy() for seed in seeds]).astype(np.float64)
    assert crops.shape == (400, 32, 32, 3)
    np.testing.assert_array_equal(crops[0], random_resized_crop(picture, (32, 32, 3), seed=(0, 0)))

    # Between the centres of the first and the last pixel of a row lie 31/32 of the crop's width.
    across = crops[:, :, -1, 0].mean(1) - crops[:, :, 0, 0].mean(1)
    width, height = np.abs(across) * 32 / 31, (crops[:, -1, :, 1].mean(1) - crops[:, 0, :, 1].mean(1)) * 32 / 31
    area, ratio = width * height / 256**2, width / height
    assert 0.07 < area.min() < 0.15 and 0.85 < area.max() < 1.02
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.37
    # 400 fair throws: 200 with a standard deviation of 10.
    assert abs((across < 0).sum() - 200) < 50
    left = np.where(across > 0, crops[:, 0, 0, 0], crops[:, 0, -1, 0])
    assert left.min() < 10 and (left + width).max() > 245


FORMS = {
    "palette.png": ("P", "png"),
    "transparent.png": ("RGBA", "png"),
    "grey and transparent.png": ("LA", "png"),
    "black and white.png": ("1", "png"),
    "cmyk.jpg": ("CMYK", "jpeg"),
    "colours.gif": ("RGB", "gif"),
    "grey.gif": ("L", "gif"),
    "colours.bmp": ("RGB", "bmp"),
    "grey.bmp": ("L", "bmp"),
}


def written(form):
    """An image in one of `FORMS`: its bytes, and what Pillow reads from them."""
    mode, suffix = FORMS[form]
    image = PIL.Image.fromarray(photograph(np.random.default_rng(3), 30, 50)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, suffix, **({"quality": 95} if suffix == "jpeg" else {}))
    return buffer.getvalue(), np.asarray(PIL.Image.open(buffer).convert("RGB")).astype(int)


@pytest.mark.parametrize("form", FORMS)
def test_decode_reads_what_pillow_reads(form):
    content, expected = written(form)
    found = decode(tf.constant(content)).numpy().astype(int)
    # The fast transform of JPEG is a level or two off.
    assert np.abs(found - expected).mean() < (3 if form.endswith("jpg") else 1e-9)


@pytest.mark.parametrize("form", ["grey.gif", "grey.bmp", "palette.png", "transparent.png"])
def test_decode_for_a_network_of_grey_images(form):
    content, expected = written(form)
    found = decode(tf.constant(content), 1).numpy().astype(int)
    assert found.shape == (30, 50, 1)
    grey = expected @ [0.299, 0.587, 0.114]
    assert np.abs(found[..., 0] - grey).mean() < 2


def test_a_16_bit_png_keeps_its_upper_byte():
    image = np.random.default_rng(4).integers(0, 2**16, (9, 7), dtype=np.uint16)
    found = decode(tf.constant(encoded(image, "png"))).numpy()
    np.testing.assert_array_equal(found, np.repeat((image >> 8)[..., None], 3, -1))


def test_the_first_frame_of_an_animation_is_the_image():
    frames = [PIL.Image.new("RGB", (6, 5), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(tf.constant(buffer.getvalue())), np.full((5, 6, 3), (255, 0, 0)))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_the_smallest_images_are_cropped_too(height, width):
    picture = tf.constant(encoded(np.full((height, width, 3), (10, 20, 30), np.uint8), "png"))
    expected = np.full((8, 6, 3), (10, 20, 30))
    for step in range(20):
        np.testing.assert_array_equal(random_resized_crop(picture, (8, 6, 3), seed=(0, step)), expected)
    np.testing.assert_array_equal(central_crop(decode(picture), (8, 6), 9), expected)
    np.testing.assert_array_equal(central_crop(decode(picture), (8, 6), None), expected)


def test_a_crop_depends_on_both_parts_of_its_seed_and_is_not_mirrored_unless_asked():
    picture = tf.constant(encoded(photograph(np.random.default_rng(5), 60, 90), "png"))
    crops = {
        random_resized_crop(picture, (16, 16, 3), flip=False, seed=(seed, step)).numpy().tobytes()
        for seed in range(4)
        for step in range(4)
    }
    assert len(crops) == 16
    ramp = np.repeat(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    for step in range(40):
        crop = random_resized_crop(tf.constant(encoded(ramp, "png")), (16, 16, 3), flip=False, seed=(0, step)).numpy()
        assert (np.diff(crop[..., 0].astype(int), axis=1) >= 0).all()
