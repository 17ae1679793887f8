"""Exported networks and what clients send them: the right answer or an error, never a crash, a hang or a NaN."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from export import saved_model, tflite
from export.compact import compact
from gated_resnext import zoo
from gated_resnext.preprocessing import Preprocessing, central_crop, decode, grey

REFUSED = (tf.errors.InvalidArgumentError, ValueError, TypeError)
COLOUR, GREY = Preprocessing((32, 32, 3), 32), Preprocessing((8, 8, 1), 8)


class Served:
    """One network's SavedModel and .tflite, each written once and loaded once."""

    def __init__(self, name, preprocessing, folder):
        graph = compact(zoo.load(name, "published"))
        saved_model.write(graph, folder / "1", preprocessing)
        tflite.write(graph, folder / "model.tflite")
        self.loaded = tf.saved_model.load(folder / "1")
        self.preprocessing, self.file = preprocessing, folder / "model.tflite"

    def images(self, images):
        return self.loaded.signatures["serving_default"](images=images)

    def pictures(self, *encoded):
        answer = self.loaded.signatures["encoded_images"](encoded_images=tf.constant(encoded, tf.string))
        return checked(answer, len(encoded))

    def expected(self, image):
        """Probabilities of a decoded picture, (H, W, 3) uint8, through `serving_default`."""
        image = tf.constant(image)
        if self.preprocessing.shape[2] == 1:
            image = grey(image)
        size, resize = self.preprocessing.shape[:2], self.preprocessing.resize
        return checked(self.images(central_crop(image, size, resize)[None]), 1)[0]


def checked(answer, batch):
    """The probabilities of an answer that may be one."""
    probabilities, classes = answer["probabilities"].numpy(), answer["classes"].numpy()
    assert probabilities.shape == (batch, 10) and probabilities.dtype == np.float32
    assert classes.shape == (batch,) and classes.dtype == np.int64
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(classes, probabilities.argmax(-1))
    return probabilities


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    return Served("cifar10_20_4_8_k1", COLOUR, tmp_path_factory.mktemp("colour"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return Served("digits_11_4_4_k1", GREY, tmp_path_factory.mktemp("digits"))


@pytest.fixture(params=["colour", "digits"])
def served(request):
    return request.getfixturevalue(request.param)


def picture(width=40, height=36, seed=0):
    """A smooth colour picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def with_alpha(image):
    alpha = PIL.Image.fromarray(np.arange(image.height * image.width, dtype=np.uint8).reshape(image.height, -1))
    image.putalpha(alpha)
    return image


def sixteen_bits(levels):
    """A grey PNG of (H, W) uint16, as Pillow writes it."""
    return encoded(PIL.Image.fromarray(levels))


def moving(form, **options):
    return encoded(picture(), form, save_all=True, append_images=[picture(seed=1), picture(seed=2)], **options)


def enormous():
    """A PNG of a few bytes that claims 100,000 x 100,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


LEVELS = np.linspace(0, 65535, 36 * 40).astype(np.uint16).reshape(36, 40)

# Files, and what they show where Pillow does not say the same. Of JPEG, decoders differ by a few levels.
EXACT = {
    "its own size, colour": (lambda: encoded(picture(32, 32)), None),
    "its own size, grey": (lambda: encoded(picture(8, 8).convert("L")), None),
    "1x1": (lambda: encoded(picture(1, 1)), None),
    "1x5000": (lambda: encoded(picture(1, 5000)), None),
    "5000x1": (lambda: encoded(picture(5000, 1)), None),
    "4000x3000": (lambda: encoded(picture(4000, 3000), compress_level=1), None),
    "grey": (lambda: encoded(picture().convert("L")), None),
    "grey and alpha": (lambda: encoded(with_alpha(picture().convert("L"))), None),
    "RGBA": (lambda: encoded(with_alpha(picture())), None),
    "16 bits": (lambda: sixteen_bits(LEVELS), lambda: np.repeat((LEVELS >> 8).astype(np.uint8)[..., None], 3, axis=2)),
    "palette": (lambda: encoded(picture().quantize(20)), None),
    "palette with transparency": (lambda: encoded(picture().quantize(20), transparency=3), None),
    "black and white": (lambda: encoded(picture().convert("1")), None),
    "interlaced GIF": (lambda: encoded(picture(), "GIF", interlace=1), None),
    "BMP": (lambda: encoded(picture(), "BMP"), None),
    "animated GIF": (lambda: moving("GIF", disposal=2), None),
    "APNG": (lambda: moving("PNG"), None),
    "WebP": (lambda: encoded(picture(), "WEBP", lossless=True), None),
}
JPEG = {
    "JPEG": lambda: encoded(picture(), "JPEG", quality=95),
    "JPEG with halved colour": lambda: encoded(picture(), "JPEG", quality=80, subsampling=2),
    "progressive JPEG": lambda: encoded(picture(), "JPEG", quality=95, progressive=True),
    "grey JPEG": lambda: encoded(picture().convert("L"), "JPEG", quality=95),
    "CMYK JPEG": lambda: encoded(picture().convert("CMYK"), "JPEG", quality=95),
    "4000x3000 JPEG": lambda: encoded(picture(4000, 3000), "JPEG"),
}
BAD = {
    "empty string": lambda: b"",
    "garbage": lambda: np.random.default_rng(0).bytes(1000),
    "zeros": lambda: bytes(1000),
    "text": lambda: "<html>gr\u00fc\u00dfe</html>".encode(),
    "truncated PNG": lambda: encoded(picture())[:-40],
    "PNG without its data": lambda: encoded(picture())[:33],
    "PNG of a few bytes": lambda: encoded(picture())[:10],
    "damaged PNG": lambda: encoded(picture()).replace(b"IDAT", b"IDAT\x00", 1),
    "truncated JPEG": lambda: encoded(picture(), "JPEG")[:-200],
    "JPEG of a few bytes": lambda: encoded(picture(), "JPEG")[:4],
    "truncated GIF": lambda: encoded(picture(), "GIF")[:200],
    "truncated BMP": lambda: encoded(picture(), "BMP")[:200],
    "animated WebP": lambda: moving("WEBP", lossless=True),
    "a PNG that claims to be enormous": enormous,
    "TIFF": lambda: encoded(picture(), "TIFF"),
    "its name": lambda: b"picture.png",
}


def test_the_answers_tell_pictures_apart(served):
    answers = served.pictures(*(encoded(picture(seed=seed)) for seed in range(6)))
    apart = np.abs(answers[:, None] - answers).max(-1)[np.triu_indices(6, 1)]
    assert np.median(apart) > 0.01  # far more than the tolerance below


@pytest.mark.parametrize("name", EXACT)
def test_odd_pictures_are_answered_as_their_pixels(served, name):
    make, shown = EXACT[name]
    content = make()
    image = shown() if shown else np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_allclose(served.pictures(content)[0], served.expected(image), atol=1e-5)


@pytest.mark.parametrize("name", JPEG)
def test_jpegs_are_answered_as_pillow_decodes_them(served, name):
    content = JPEG[name]()
    image = np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))
    decoded = decode(tf.constant(content)).numpy()
    apart = np.abs(decoded.astype(int) - image)  # both are right: JPEG leaves the rounding to the decoder
    assert apart.mean() < 2.5 and apart.max() <= 12
    np.testing.assert_allclose(served.pictures(content)[0], served.expected(decoded), atol=1e-5)


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_and_the_next_request_is_answered(served, name):
    good = encoded(picture())
    before = served.pictures(good)
    for batch in ([BAD[name]()], [good, BAD[name]()]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            served.pictures(*batch)
    np.testing.assert_array_equal(served.pictures(good), before)


def test_pictures_of_all_kinds_in_one_batch_keep_their_places(served):
    contents = [make() for make, _ in EXACT.values()] + [make() for make in JPEG.values()]
    alone = np.concatenate([served.pictures(content) for content in contents])
    np.testing.assert_allclose(served.pictures(*contents), alone, atol=1e-5)


def test_the_networks_own_pixels_as_a_picture_give_the_same(served):
    shape = served.preprocessing.shape
    images = np.random.default_rng(0).integers(0, 256, (64, *shape), np.uint8)
    expected = checked(served.images(tf.constant(images)), 64)
    found = served.pictures(*(tf.io.encode_png(image).numpy() for image in images))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_batch_of_a_thousand(served):
    images = np.random.default_rng(1).integers(0, 256, (1000, *served.preprocessing.shape), np.uint8)
    whole = checked(served.images(tf.constant(images)), 1000)
    first = checked(served.images(tf.constant(images[:10])), 10)
    np.testing.assert_allclose(whole[:10], first, atol=1e-5)
    encoded_images = [tf.io.encode_png(image).numpy() for image in images]
    np.testing.assert_allclose(served.pictures(*encoded_images), whole, atol=1e-5)


def test_an_empty_batch_has_an_empty_answer_or_none(served):
    for signature, empty in (
        ("serving_default", {"images": tf.zeros((0, *served.preprocessing.shape), tf.uint8)}),
        ("encoded_images", {"encoded_images": tf.zeros((0,), tf.string)}),
    ):
        try:
            answer = served.loaded.signatures[signature](**empty)
        except tf.errors.InvalidArgumentError:
            continue
        assert answer["probabilities"].shape == (0, 10) and answer["classes"].shape == (0,)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 32, 31, 3), np.uint8),
        np.zeros((2, 33, 33, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((2, 32, 32, 1), np.uint8),
        np.zeros((2, 32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 2, 32, 32, 3), np.uint8),
        np.zeros((2, 1, 1, 3), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0,), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
        np.full((2, 32, 32, 3), np.nan, np.float32),
        np.zeros((2, 32, 32, 3), np.int32),
        np.zeros((2, 32, 32, 3), np.int8),
        np.zeros((2, 32, 32, 3), np.bool_),
        np.full((2, 32, 32, 3), b"a"),
        np.full((2,), b"a"),
    ],
    ids=lambda images: f"{images.dtype}{images.shape}",
)
class TestWrongTensors:
    """What `serving_default` must not take, for a network of 32x32x3 pixels.

    Several of them broadcast with its mean image, and would be answered wrongly.
    """

    def test_saved_model(self, colour, images):
        with pytest.raises(REFUSED):
            colour.images(tf.constant(images))

    def test_litert(self, colour, images):
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(colour.file), num_threads=2).get_signature_runner()
        with pytest.raises((ValueError, RuntimeError)):
            runner(images=images)


@pytest.mark.parametrize(
    "pictures",
    [b"a", [[b"a"]], [[[b"a"]]], np.zeros((2,), np.uint8), np.zeros((2, 32, 32, 3), np.uint8), 1.5],
    ids=["scalar", "matrix", "rank 3", "uint8", "pixels", "number"],
)
def test_strings_of_another_rank_and_other_types_are_refused(served, pictures):
    with pytest.raises(REFUSED):
        served.loaded.signatures["encoded_images"](encoded_images=tf.constant(pictures))


def test_other_names_are_refused(served):
    pixels = tf.zeros((1, *served.preprocessing.shape), tf.uint8)
    for arguments in ({}, {"pictures": pixels}, {"images": pixels, "more": pixels}):
        with pytest.raises(REFUSED):
            served.loaded.signatures["serving_default"](**arguments)


def test_litert_takes_batches_of_any_size_in_turn(served):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(served.file), num_threads=2).get_signature_runner()
    images = np.random.default_rng(2).integers(0, 256, (300, *served.preprocessing.shape), np.uint8)
    expected = checked(served.images(tf.constant(images)), 300)
    for count in (1, 300, 7, 64, 1):
        found = runner(images=images[:count])
        np.testing.assert_allclose(found["probabilities"], expected[:count], atol=1e-4)
        np.testing.assert_array_equal(found["classes"], expected[:count].argmax(-1))
