"""What `export.shipping.ship` refuses, and says so before it writes anything."""

import os

import keras
import numpy as np
import pytest
from keras import layers

from export import comparison, shipping, tflite
from export.compact import compact
from gated_resnext import Architecture, Connectivity, GatedResNeXt, files, trained
from gated_resnext.branches import GatedBranches
from gated_resnext.errors import UserError
from gated_resnext.preprocessing import Preprocessing

SHAPE, CLASSES = (8, 8, 1), 3
IMAGES = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), np.uint8)
LABELS = np.arange(20) % CLASSES
ARCH = Architecture(11, 2, 2, 1, CLASSES, SHAPE, stem_filters=4, filters=8)
WIRING = Connectivity.random(ARCH.modules, 2, 1, seed=0)


def own(activation, shape=SHAPE):
    """A model of one's own; made of `GatedBranches`."""
    keras.utils.set_random_seed(0)
    images = keras.Input(shape, dtype="uint8")
    y = GatedBranches([layers.Conv2D(4, 1), layers.Conv2D(4, 3, padding="same")])(layers.Rescaling(1 / 255)(images))
    x = layers.GlobalAveragePooling2D()(layers.Average()(y))
    return keras.Model(images, layers.Dense(CLASSES, activation=activation)(x), name="own")


def network(activation="softmax"):
    return GatedResNeXt(ARCH, WIRING, activation, seed=0)


def ship(model, path, classes=LABELS, samples=None, **options):
    probe = shipping.Probe(IMAGES, classes, "images of random pixels", samples=samples)
    return shipping.ship(model, path, probe, **{"formats": ["tflite"], **options})


@pytest.mark.parametrize("make", [own, network])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_logits_are_refused(make, labels, tmp_path):
    with pytest.raises(UserError, match="ends in logits; end it in a softmax. Received: rows from -.* that sum to "):
        ship(make(None), tmp_path / "net", labels)
    assert not list(tmp_path.iterdir())
    assert ship(make("softmax"), tmp_path / "net", labels).receipt["checks"][-1]["max_difference"] < 1e-5


@pytest.mark.parametrize("classes", [LABELS[:, None], LABELS[:5], LABELS.astype(np.float32)])
def test_labels_that_are_not_one_class_an_image_are_refused(classes, tmp_path):
    """Of shape (n, 1), as Keras' data sets have them, every image would be compared with every label."""
    with pytest.raises(UserError, match=r"the classes of 20 images are 20 whole numbers, of shape \(20,\). Received: "):
        ship(network(), tmp_path / "net", classes, formats=["tflite_dynamic"])
    with pytest.raises(UserError, match="tells 3 classes apart. Received: 2 labels"):
        ship(network(), tmp_path / "net", labels=["even", "odd"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pixels", [IMAGES / 255, IMAGES.astype(np.float32), IMAGES.tolist()])
def test_pixels_that_are_no_bytes_are_refused(pixels, tmp_path):
    """Of floats from 0 to 1 a model of uint8 images sees black ones, and every file agrees on them."""
    with pytest.raises(UserError, match=r"Probe.images are raw pixels, an array of uint8 from 0 to 255. Received: "):
        shipping.ship(network(), tmp_path / "net", shipping.Probe(pixels, LABELS, "images"), formats=["tflite"])
    with pytest.raises(UserError, match=r"Probe.samples are raw pixels"):
        ship(network(), tmp_path / "net", samples=pixels, formats=["tflite_int8"])
    assert not list(tmp_path.iterdir())


def test_a_served_network_without_the_signature_of_pictures_says_so(tmp_path):
    said = "It has no signature encoded_images, which takes picture files: nobody told how they become pixels (preproce"
    said += "ssing=)"
    assert said in ship(network(), tmp_path / "net", formats=["saved_model"]).notes
    given = {"preprocessing": Preprocessing(SHAPE, 8), "formats": ["saved_model"]}
    assert said not in ship(network(), tmp_path / "net", **given).notes
    assert said not in ship(network(), tmp_path / "device").notes


def normalized():
    """As a user may begin it: with pixels normalised by what was measured of some images."""
    keras.utils.set_random_seed(0)
    norm = layers.Normalization()
    norm.adapt(IMAGES.astype(np.float32) / 3 + 20)
    images = keras.Input(SHAPE, dtype="uint8")
    x = norm(layers.Rescaling(1.0)(images))
    y = GatedBranches([layers.Conv2D(4, 1), layers.Conv2D(4, 1)], fan_in=1)(
        GatedBranches([layers.Conv2D(4, 1), layers.Conv2D(4, 1)])(x)
    )
    x = layers.GlobalAveragePooling2D()(layers.Average()(y))
    return keras.Model([images], layers.Dense(CLASSES, activation="softmax")(x), name="own")


def test_what_a_layer_computed_from_its_weights_goes_along(tmp_path):
    receipt = ship(normalized(), tmp_path / "net", samples=IMAGES, formats=["tflite", "tflite_int8"], max_top1_drop=10)
    pruned, plain, int8 = receipt.receipt["checks"]
    assert pruned["max_difference"] < 1e-6 and plain["max_difference"] < 1e-5 and int8["max_difference"] < 0.05


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_network_of_another_precision_is_exported_in_float32(precision, tmp_path):
    model = GatedResNeXt(ARCH, WIRING, seed=0, precision=precision)
    keras.config.set_dtype_policy(precision)
    try:
        checks = ship(model, tmp_path / "net").receipt["checks"]
        assert keras.config.dtype_policy().name == precision
    finally:
        keras.config.set_dtype_policy("float32")
    assert [check["form"] for check in checks] == ["pruned", "tflite"]
    assert max(check["max_difference"] for check in checks) < 1e-5


def test_the_receipt_counts_branches_of_nested_models_and_weights_that_are_frozen(tmp_path):
    trunk = own("softmax")
    images = keras.Input(SHAPE, dtype="uint8")
    outer = keras.Model(images, trunk(images), name="outer")
    outer.trainable = False
    expected = ship(own("softmax"), tmp_path / "plain").receipt
    found = ship(outer, tmp_path / "nested").receipt
    for name in ("blocks", "blocks_pruned", "parameters", "parameters_pruned"):
        assert found[name] == expected[name], name
    assert found["blocks"] == [2] and found["parameters"] == 4 * 2 + 4 * 10 + 3 * 5


def test_pictures_of_two_channels_have_no_signature(tmp_path):
    model = own("softmax", (8, 8, 2))
    images = np.repeat(IMAGES, 2, -1)
    probe = shipping.Probe(images, LABELS, "images of random pixels")
    shipped = shipping.ship(
        model, tmp_path / "net", probe, preprocessing=Preprocessing((8, 8, 2), 8), formats=["saved_model"]
    )
    assert shipped.receipt["preprocessing"] is None
    assert [check["form"] for check in shipped.receipt["checks"]] == ["pruned", "saved_model"]


def test_outputs_in_a_dictionary_are_refused(tmp_path):
    model = own("softmax")
    with pytest.raises(UserError, match="to \\(batch, classes\\)"):
        ship(keras.Model(model.input, {"probabilities": model.output}), tmp_path / "net")


def test_names_of_classes_are_any_bytes_but_the_end_of_a_line(tmp_path):
    names = ["a\u2028b\x0c", "caf\udce9\r", "größe"]
    folder = ship(own("softmax"), tmp_path / "net", labels=names).folder
    lines = ["a\u2028b\x0c".encode(), b"caf\xe9\r", "größe".encode(), b""]
    assert (folder / "labels.txt").read_bytes().split(b"\n") == lines
    assert trained.of_saved_model(folder / "model.tflite").labels == names
    with pytest.raises(UserError, match="none may hold an end of line"):
        ship(own("softmax"), tmp_path / "other", labels=["a", "b\nc", "d"])
    assert os.listdir(tmp_path) == ["net"]


def test_ids_of_wordnet_have_their_names_beside_them(tmp_path):
    ids = ["n02099601", "n02012849", "ant"]
    folder = ship(own("softmax"), tmp_path / "net", labels=ids).folder
    assert (folder / "labels.txt").read_text().split() == ids
    assert (folder / "names.txt").read_text().splitlines() == ["golden retriever", "crane (n02012849)", "ant"]
    assert not (ship(own("softmax"), tmp_path / "other", labels=["a", "b", "c"]).folder / "names.txt").exists()


def test_a_version_of_other_classes_that_comes_meanwhile_is_seen(tmp_path):
    others = [True]

    def say(line):
        if line == "Writing and checking tflite" and others:
            others.clear()
            ship(network(), tmp_path / "net", labels=["crow", "owl", "wren"])

    with pytest.raises(UserError, match="net/1 is of the classes crow, owl, wren, not coupe, truck, van"):
        ship(network(), tmp_path / "net", labels=["coupe", "truck", "van"], say=say)
    assert files.versions(tmp_path / "net") == [1]


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_ones_own_in_16_bits_is_refused(precision, tmp_path):
    keras.config.set_dtype_policy(precision)
    try:
        model = own("softmax")
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(UserError, match=f"layers that compute in {precision.removeprefix('mixed_')}$"):
        ship(model, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_the_next_version_is_of_the_same_classes_and_input_or_said_to_replace_them(tmp_path):
    birds, cars = ["crow", "owl", "wren"], ["coupe", "truck", "van"]
    for labels in (None, birds, None, birds):  # nobody says, or the same
        ship(network(), tmp_path / "net", labels=labels)
    ship(network(), tmp_path / "net", labels=birds)
    with pytest.raises(
        UserError, match=r"net/5 is of the classes crow, owl, wren, not coupe, truck, van, and its clients"
    ):
        ship(network(), tmp_path / "net", labels=cars)
    larger = own("softmax", (9, 8, 1))
    probe = shipping.Probe(np.zeros((2, 9, 8, 1), np.uint8), None, "images of no light")
    with pytest.raises(
        UserError, match=r"is of images of \(8, 8, 1\), not \(9, 8, 1\), .*choose another --output, or say"
    ):
        shipping.ship(larger, tmp_path / "net", probe, formats=["tflite"])
    fewer = GatedResNeXt(ARCH.replace(classes=2), WIRING, seed=0)
    with pytest.raises(UserError, match="net/5 is of 3 classes, not 2, and its clients"):
        ship(fewer, tmp_path / "net", None)
    assert files.versions(tmp_path / "net") == [1, 2, 3, 4, 5]
    assert ship(network(), tmp_path / "net", labels=cars, replace=True).folder.name == "6"


def test_a_version_that_is_there_is_told_of_though_what_is_around_it_cannot_be_written(tmp_path):
    (tmp_path / "models.config").mkdir()
    shipped = ship(network(), tmp_path / "net", formats=["saved_model"])
    [note] = [note for note in shipped.notes if note.startswith("models.config and the files beside it could not be")]
    assert str(tmp_path / "models.config") in note and files.versions(tmp_path / "net") == [1]


def test_outputs_that_are_no_probabilities_of_one_class_each_are_refused(tmp_path):
    with pytest.raises(UserError, match="own ends in logits"):
        ship(own("sigmoid"), tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["my net", "größe", ".net", "-net", "a:b"])
def test_names_that_the_server_cannot_be_told_are_refused_first(name, tmp_path):
    with pytest.raises(UserError, match=f"Received: {name!r}; choose another --output"):
        ship(network(), tmp_path / name, formats=["saved_model"], say=pytest.fail)
    assert not list(tmp_path.iterdir())


def test_files_for_devices_have_any_name(tmp_path):
    assert ship(network(), tmp_path / "my net").folder == tmp_path / "my net" / "1"
    assert [path.name for path in tmp_path.iterdir()] == ["my net"]


@pytest.mark.parametrize("shape", [(None, None, 1), (8, None, 1), (8, 8, None)])
def test_models_of_images_of_any_size_are_refused(shape, tmp_path):
    images = keras.Input(shape, dtype="uint8")
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(images))
    y = layers.Softmax()(layers.Lambda(lambda x: keras.ops.tile(x[:, :1], (1, CLASSES)), (CLASSES,))(x))
    with pytest.raises(UserError, match="goes from uint8 images of one size, .*Received: inputs=.*None"):
        ship(keras.Model(images, y), tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["tflite_float16", "tflite_dynamic"])
def test_what_measures_no_ranges_needs_no_samples(form, tmp_path):
    shipped = ship(network(), tmp_path / "net", formats=[form], max_top1_drop=100)
    assert [check["form"] for check in shipped.receipt["checks"]] == ["pruned", form]
    with pytest.raises(UserError, match=f"{form} is checked by its top-1: give Probe.labels"):
        ship(network(), tmp_path / "net", None, formats=[form])


@pytest.mark.parametrize("samples", [None, IMAGES[:0]])
def test_what_measures_ranges_names_the_samples_it_lacks(samples, tmp_path):
    with pytest.raises(UserError, match="tflite_int8 measures its ranges on training images: give Probe.samples$"):
        ship(network(), tmp_path / "net", samples=samples, formats=["tflite", "tflite_int8"])
    assert not list(tmp_path.iterdir())
    shipped = ship(network(), tmp_path / "net", samples=IMAGES, formats=["tflite_int8"], max_top1_drop=100)
    assert (shipped.folder / "model_int8.tflite").is_file()


def test_compressed_files_need_no_samples(tmp_path):
    def content():
        tflite.write(compact(network()), tmp_path / "small.tflite")
        return (tmp_path / "small.tflite").read_bytes()

    shipped = ship(network(), tmp_path / "net", compressed={"magnitude": content})
    assert [check["form"] for check in shipped.receipt["checks"]] == ["pruned", "tflite", "magnitude"]


def test_bytes_are_those_of_the_receipt_whoever_counts(tmp_path):
    shipped = ship(network(), tmp_path / "net", formats=["saved_model"], labels=list("abc"))
    assert (shipped.folder / "assets" / "labels.txt").read_text() == "a\nb\nc\n"
    assert comparison.size(shipped.folder) == shipped.receipt["checks"][-1]["bytes"]
