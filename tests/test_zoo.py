import hashlib
import json
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest

from gated_resnext import files, zoo
from gated_resnext.connectivity import Connectivity
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt
from gated_resnext.pruning import freeze, prune
from zoo.entries import ENTRIES

K1 = "digits_11_4_4_k1"
DIGITS = ["digits_11_4_4_full", "digits_11_4_4_k1", "digits_11_4_4_k2", "digits_11_4_4_random_k2"]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


def unlike_any_other(name, seed):
    """A network whose every weight is random, so that one that was not read shows."""
    model, rng = zoo.load(name, weights=None, seed=seed), np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(rng.uniform(0.1, 1.0, variable.shape))
    return model


@pytest.fixture(scope="module")
def source():
    return unlike_any_other(K1, seed=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of cards and weights in place of the package's."""
    for name in ("cards", "weights"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture
def published(folder, source):
    """`source` as the published network."""
    path = folder / "weights" / f"{K1}.npz"
    frozen = freeze(source)
    np.savez(path, **frozen.weights_by_name())
    card = {
        "weights": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "connectivity": frozen.connectivity.to_dict(),
    }
    (folder / "cards" / f"{K1}.json").write_text(json.dumps(card))
    return path


def test_names_match_a_pattern_in_the_tables_order():
    assert zoo.names() == list(ENTRIES)
    assert zoo.names("digits_*") == DIGITS
    assert zoo.names("cifar10_20_4_8_k[1-3]") == [f"cifar10_20_4_8_k{k}" for k in (1, 2, 3)]
    weighed = {path.stem for path in (zoo.FOLDER / "weights").iterdir()}
    assert zoo.names(published=True) == [name for name in ENTRIES if name in weighed] and len(weighed) > 5
    assert zoo.names("cifar100_*", published=True) == []
    assert zoo.names("DIGITS_*") == zoo.names("") == zoo.names("digits") == []


def test_an_entry_is_its_row():
    assert zoo.entry(K1) is ENTRIES[K1]
    assert zoo.entry(zoo.DEFAULT).name == zoo.DEFAULT


@pytest.mark.parametrize(
    "wrong, meant", [("cifar10_20_4_8_K1", "cifar10_20_4_8_k1"), ("digits_11_4_4", None), ("", None)]
)
def test_an_unknown_name_suggests_three(wrong, meant):
    for look in (zoo.entry, zoo.architecture, zoo.card, zoo.load):
        with pytest.raises(UserError) as error:
            look(wrong)
        message = str(error.value)
        suggested = message.rpartition("the closest are ")[2].split(", ")
        assert repr(wrong) in message
        assert len(set(suggested)) == 3 and set(suggested) <= set(ENTRIES)
        assert meant is None or suggested[0] == meant


@pytest.mark.parametrize(
    "name, shape, classes, aggregation",
    [
        ("digits_11_4_4_full", (8, 8, 1), 10, "shared"),
        ("fashion_mnist_20_4_8_k4", (28, 28, 1), 10, "mean"),
        ("cifar10_29_64_8_k1", (32, 32, 3), 10, "mean"),
        ("cifar100_29_8_8_random_k4", (32, 32, 3), 100, "mean"),
        ("mini_imagenet_20_4_8_k4", (64, 64, 3), 100, "mean"),
        ("imagenet_101_4_64_k32", (224, 224, 3), 1000, "mean"),
    ],
)
def test_architecture_is_that_of_the_row_and_its_data_set(name, shape, classes, aggregation):
    arch, row = zoo.architecture(name), ENTRIES[name]
    assert (arch.input_shape, arch.classes, arch.aggregation) == (shape, classes, aggregation)
    for field in ("depth", "width", "cardinality", "fan_in", "stem", "stem_filters", "filters"):
        assert getattr(arch, field) == getattr(row, field)


@pytest.mark.parametrize("name", DIGITS)
def test_without_a_card_load_warns_and_gives_a_fresh_network(name, folder, images):
    with pytest.warns(UserWarning, match=f"{name} has no published weights.*train --entry={name}") as caught:
        model = zoo.load(name, seed=3)
    assert pathlib.Path(caught[0].filename).name == "test_zoo.py"
    assert (model.name, model.input_shape, model.output_shape) == (name, (None, 8, 8, 1), (None, 10))
    probabilities = model(images).numpy()
    assert probabilities.shape == (5, 10) and probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


@pytest.mark.filterwarnings("error::UserWarning")
def test_no_weights_asked_for_is_no_warning(folder):
    model, again, other = (zoo.load(K1, weights=None, seed=seed) for seed in (3, 3, 4))
    kernel = "stage2_module1/conv/kernel"
    np.testing.assert_array_equal(model.weights_by_name()[kernel], again.weights_by_name()[kernel])
    assert np.abs(model.weights_by_name()[kernel] - other.weights_by_name()[kernel]).max() > 0.01
    for gate in model.real_gates():
        np.testing.assert_array_equal(gate, np.full((4, 4), 0.25, np.float32))


def test_a_random_wiring_is_a_function_of_the_seed():
    name = "digits_11_4_4_random_k2"
    wirings = [zoo.load(name, weights=None, seed=seed).connectivity for seed in (1, 1, 2)]
    assert wirings[0] == wirings[1] == Connectivity.random(3, 4, 2, seed=1) != wirings[2]
    assert [len(block) for module in wirings[0].sources for block in module] == [2] * 8


def test_published_weights_that_are_not_there_name_the_training(folder):
    with pytest.raises(UserError, match=f"no published weights of {K1}.*python -m gated_resnext.train --entry={K1}$"):
        zoo.load(K1, weights="published")


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("weights", ["auto", "published"])
def test_published_weights_come_with_their_wiring(published, source, images, weights):
    model = zoo.load(K1, weights=weights)
    assert model.connectivity == freeze(source).connectivity
    assert not model.real_gates()
    np.testing.assert_allclose(model(images).numpy(), source(images).numpy(), atol=1e-6)


def test_published_weights_of_another_digest_are_refused(published):
    damaged = bytearray(published.read_bytes())
    damaged[1000] ^= 1
    published.write_bytes(damaged)
    with pytest.raises(UserError, match=f"{published.name} is damaged: its sha256 should be"):
        zoo.load(K1)


def test_published_weights_that_are_missing_are_refused(published):
    published.unlink()
    with pytest.raises(UserError, match=f"there is no file .*{published.name}"):
        zoo.load(K1)
    assert zoo.load(K1, weights=None).output_shape == (None, 10)


def test_card_is_what_the_file_holds_or_none(published):
    assert zoo.card(K1)["weights"]["file"] == published.name
    assert zoo.card("digits_11_4_4_k2") is None
    (zoo.FOLDER / "cards" / f"{K1}.json").write_text("{")
    with pytest.raises(UserError, match=f"{K1}.json is not a JSON file"):
        zoo.card(K1)


FORMATS = ["a.npz", "a.keras", "a.weights.h5"]


def written(model, folder):
    """The weights of a network in every format: paths by name."""
    files.write_arrays(folder / "a.npz", model.weights_by_name())
    model.save(folder / "a.keras")
    model.save_weights(folder / "a.weights.h5")
    return {name: folder / name for name in FORMATS}


@pytest.fixture(scope="module")
def own(source, tmp_path_factory):
    return written(source, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return written(zoo.load("digits_11_4_4_full", weights=None), tmp_path_factory.mktemp("foreign"))


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("form", FORMATS)
def test_weights_of_a_file(own, source, images, form):
    expected = source(images).numpy()
    np.testing.assert_array_equal(zoo.load(K1, own[form], seed=9)(images).numpy(), expected)
    logits = zoo.load(K1, str(own[form]), classifier_activation=None)(images).numpy()
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(exponentials / exponentials.sum(1, keepdims=True), expected, atol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_weights_of_a_random_wiring_need_its_seed(tmp_path, images, form):
    name = "digits_11_4_4_random_k2"
    model = zoo.load(name, weights=None, seed=3)
    path = written(model, tmp_path)[form]
    if form == "a.keras":
        np.testing.assert_array_equal(zoo.load(name, path)(images), model(images))
        return
    with pytest.raises(UserError, match=f"{form} does not hold the wiring of {name}, .*: give seed=, the training's"):
        zoo.load(name, path)
    np.testing.assert_array_equal(zoo.load(name, path, seed=3)(images), model(images))


@pytest.mark.parametrize("cut", [freeze, prune])
def test_a_keras_file_brings_its_wiring(tmp_path, source, images, cut):
    network = cut(source)
    network.save(tmp_path / "a.keras")
    model = zoo.load(K1, tmp_path / "a.keras")
    assert (model.connectivity, model.name) == (network.connectivity, K1)
    np.testing.assert_allclose(model(images).numpy(), source(images).numpy(), atol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_refused(own, tmp_path, form, damage):
    path, whole = tmp_path / form, own[form].read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "flipped": bytes(255 - byte for byte in whole[:2000]) + whole[2000:],
            "empty": b"",
        }[damage]
    )
    with pytest.raises(
        UserError, match=f"{form} (is damaged and cannot be read|does not hold weights of {K1})"
    ) as error:
        zoo.load(K1, path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("default::UserWarning")  # Keras warns of an HDF5 file; the library must refuse it
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("options", [{}, {"classes": 3}, {"include_top": False}])
def test_a_file_of_another_network_is_refused(foreign, form, options):
    with pytest.raises(UserError, match=f"does not hold weights of {K1}") as error:
        zoo.load(K1, foreign[form], **options)
    assert "\n" not in str(error.value)


def test_a_keras_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "a.keras"
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]).save(path)
    with pytest.raises(UserError, match="it holds another network"):
        zoo.load(K1, path)


def test_weights_that_are_no_file_are_refused(tmp_path):
    for weights in ("imagenet", tmp_path / "missing.npz", tmp_path):
        with pytest.raises(UserError, match="weights must be 'auto', 'published', None or a file"):
            zoo.load(K1, weights)
    shutil.copy(__file__, tmp_path / "a.txt")
    with pytest.raises(UserError, match="a.txt does not hold weights"):
        zoo.load(K1, tmp_path / "a.txt")


# Transfer


@pytest.mark.filterwarnings("error::UserWarning")
def test_classes_of_ones_own_are_a_new_head_on_the_published_trunk(published, source):
    weights = source.weights_by_name()
    for classes in (3, 10):
        model = zoo.load(K1, classes=classes, seed=0)
        assert model.output_shape == (None, classes) and model.connectivity == freeze(source).connectivity
        for name, value in model.weights_by_name().items():
            own = name.startswith("classifier/")
            same = value.shape == weights[name].shape and (value == weights[name]).all()
            assert same != own, name


@pytest.mark.filterwarnings("error::UserWarning")
def test_features_and_larger_images_of_the_published_network(published, source, images):
    maps = zoo.load(K1, include_top=False)
    assert maps.output_shape == (None, 2, 2, 256)
    pooled = zoo.load(K1, include_top=False, pooling="avg")(images).numpy()
    np.testing.assert_allclose(pooled, maps(images).numpy().mean((1, 2)), rtol=1e-5)
    larger = zoo.load(K1, "published", input_shape=[16, 12, 1])
    assert larger.input_shape == (None, 16, 12, 1) and larger.output_shape == (None, 10)
    mean = larger.weights_by_name()["standardize/mean_image"]
    np.testing.assert_allclose(mean, np.full((16, 12, 1), source.weights_by_name()["standardize/mean_image"].mean()))


@pytest.mark.parametrize("changes", [{"fan_in": 2}, {"cardinality": 3}, {"input_shape": (8, 8, 3), "classes": 5}])
def test_published_weights_that_do_not_fit_are_not_taken(published, changes):
    with pytest.raises(UserError, match=f"weights of {K1} are of K = 1, C = 4 and 1 channels, not K = .*weights=None"):
        zoo.load(K1, "published", **changes)
    with pytest.warns(UserWarning, match="are of K = 1, C = 4 and 1 channels, not K = .* freshly initialised"):
        model = zoo.load(K1, **changes)
    for field, value in changes.items():
        assert getattr(model.architecture, field) == value
    assert model.connectivity is None and len(model.real_gates()) == 2


@pytest.mark.filterwarnings("error::UserWarning")
def test_what_is_changed_may_be_what_it_was(published, source, images):
    model = zoo.load(K1, "published", fan_in=1, cardinality=4, input_shape=(8, 8, 1))
    np.testing.assert_allclose(model(images).numpy(), source(images).numpy(), atol=1e-6)
    shared = zoo.load("digits_11_4_4_full", None, cardinality=2, classes=3)
    assert (shared.architecture.fan_in, shared.output_shape) == (2, (None, 3))
    random = zoo.load("digits_11_4_4_random_k2", None, fan_in=3, seed=1)
    assert random.connectivity == Connectivity.random(3, 4, 3, seed=1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fan_in": 5}, "fan_in .K. must be at most cardinality"),
        ({"classes": 0}, "classes must be a whole number of at least 1"),
        ({"classes": 1}, "the softmax of one class is always 1"),
        ({"input_shape": 8}, "Changed: {'input_shape': 8}"),
        ({"input_shape": (8, 8)}, "input_shape must be .height, width, channels."),
        ({"classes": 3, "include_top": False}, "features have no classes"),
        ({"pooling": "avg"}, "pooling is of features"),
        ({"include_top": False, "pooling": "sum"}, "pooling must be one of"),
        ({"include_top": "yes"}, "include_top must be True or False"),
        ({"classifier_activation": "softmaxx"}, "classifier_activation must be one of"),
        ({"seed": "x"}, "seed must be a whole number of at least 0 or None"),
        ({"seed": -1}, "seed must be a whole number of at least 0 or None"),
        ({"model_name": "team/a"}, "model_name must be a string without a slash"),
    ],
)
@pytest.mark.parametrize("weights", [None, "auto"])
def test_changes_that_do_not_go_together_are_refused(weights, changes, message):
    with pytest.raises(UserError, match=f"{'.*' if 'Changed' in message else '^'}{message}") as error:
        zoo.load(K1, weights, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("form", FORMATS)
def test_the_trunk_of_a_file(own, source, images, form):
    weights = source.weights_by_name()
    for options in ({"classes": 3}, {"include_top": False, "pooling": "max"}, {"input_shape": (10, 8, 1)}):
        model = zoo.load(K1, own[form], seed=0, **options)
        kept = "input_shape" in options
        for name, value in model.weights_by_name().items():
            if name.startswith("classifier/") and not kept:
                assert value.shape[-1] == 3
            elif name != "standardize/mean_image":
                np.testing.assert_array_equal(value, weights[name], err_msg=name)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_with_a_classifier_of_its_own_fits_as_far_as_it_is_asked_to(tmp_path, images, form):
    tuned = zoo.load(K1, None, seed=5, classes=3)
    path, weights = written(tuned, tmp_path)[form], tuned.weights_by_name()
    larger = zoo.load(K1, path, classes=3, input_shape=(10, 8, 1)).weights_by_name()
    other = zoo.load(K1, path, classes=5, seed=6).weights_by_name()
    as_many = zoo.load(K1, path, classes=10, seed=6).weights_by_name()
    features = zoo.load(K1, path, include_top=False, input_shape=(10, 8, 1)).weights_by_name()
    for name, value in weights.items():
        head = name.startswith("classifier/")
        for found in (larger, other, as_many, features):
            if name != "standardize/mean_image" and not (head and found is not larger):
                np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert [found["classifier/kernel"].shape[-1] for found in (other, as_many)] == [5, 10]
    assert "classifier/kernel" not in features
    # Nobody asked for a classifier that was never trained.
    with pytest.raises(UserError, match=rf"{form} tells 3 classes apart, not 10: give classes= for one of as many"):
        zoo.load(K1, path, input_shape=(10, 8, 1))
    path = written(zoo.load(K1, None, include_top=False), tmp_path)[form]
    with pytest.raises(UserError, match=f"{form} has no classifier: give classes="):
        zoo.load(K1, path, input_shape=(10, 8, 1))
    for classes in (4, 10):  # the latter as many as the entry has
        assert zoo.load(K1, path, classes=classes).output_shape == (None, classes)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("form", ["a.npz", "a.weights.h5"])
@pytest.mark.parametrize("options", [{}, {"classes": 2}])
def test_a_file_of_weights_does_not_hold_a_wiring_that_was_fixed(tmp_path, source, form, options):
    path = written(freeze(source), tmp_path)[form]
    with pytest.raises(
        UserError, match=f"{form} does not hold weights of {K1} with its gates: where they were fixed, give the .keras"
    ):
        zoo.load(K1, path, **options)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("options", [{"classes": 3}, {"include_top": False, "pooling": "avg"}])
def test_a_file_of_a_network_with_another_head_is_read_whole(tmp_path, images, options):
    tuned = zoo.load(K1, None, seed=5, **options)
    for form, path in written(tuned, tmp_path).items():
        model = zoo.load(K1, path, seed=6, **options)
        np.testing.assert_array_equal(model(images).numpy(), tuned(images).numpy(), err_msg=form)
        if form != "a.keras":
            continue
        with pytest.raises(UserError, match="it holds another network"):
            zoo.load(K1, path)


def test_looking_needs_neither_keras_nor_tensorflow(run_python, tmp_path):
    code = """
import sys
import gated_resnext
assert len(gated_resnext.zoo.names()) > 50
assert gated_resnext.zoo.architecture(gated_resnext.zoo.entry("digits_11_4_4_k1").name).modules == 3
gated_resnext.zoo.card("digits_11_4_4_k1")
print(sorted({"keras", "tensorflow", "tensorflow_datasets", "jax", "torch"} & set(sys.modules)))
"""
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_a_loaded_network_has_the_parameters_the_table_says():
    for name in DIGITS:
        model = zoo.load(name, weights=None)
        gates = sum(gate.size for gate in model.real_gates())
        assert isinstance(model, GatedResNeXt)
        assert sum(np.prod(w.shape, dtype=int) for w in model.trainable_weights) - gates == 93_754


def test_the_markdown_table_keeps_what_is_the_papers_apart_from_what_was_measured(folder):
    card = {"epochs": 6.4, "schedule_epochs": 64, "top1": 0.91234, "parameters_pruned": 87_738}
    (folder / "cards" / f"{K1}.json").write_text(json.dumps(card))
    head, rule, row = zoo.markdown(K1).splitlines()
    assert re.findall("(paper|here): ([^|]+) [|]", head) == [
        ("paper", "top-1"),
        ("paper", "pruned, M"),
        ("here", "top-1"),
        ("here", "pruned"),
        ("here", "epochs"),
    ]
    assert rule == "|---" * 8 + "|"
    assert row == f"| `{K1}` | K = 1 | 93,754 |  |  | 91.23 | 87,738 | 6.4 of 64 |"
    assert [zoo.markdown(name).splitlines()[2] for name in ("cifar100_29_8_8_k1", "imagenet_50_4_32_full")] == [
        "| `cifar100_29_8_8_k1` | K = 1 | 858,292 | 73.76 ± 0.14 | 0.65 |  |  |  |",
        "| `imagenet_50_4_32_full` | full (ResNeXt) | 25,965,352 | 77.8 |  |  |  |  |",
    ]
    assert "| random, K = 4 |" in zoo.markdown("cifar10_20_4_8_random_k4")
    assert len(zoo.markdown().splitlines()) == len(ENTRIES) + 2
