"""What `export.shipping.ship` refuses, and says so before it writes anything."""

import keras
import numpy as np
import pytest
from keras import layers

from export import shipping
from gated_resnext import Architecture, Connectivity, GatedResNeXt
from gated_resnext.branches import GatedBranches
from gated_resnext.errors import UserError

SHAPE, CLASSES = (8, 8, 1), 3
IMAGES = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), np.uint8)
LABELS = np.arange(20) % CLASSES
ARCH = Architecture(11, 2, 2, 1, CLASSES, SHAPE, stem_filters=4, filters=8)


def own(activation, shape=SHAPE):
    """A model of one's own; made of `GatedBranches`."""
    images = keras.Input(shape, dtype="uint8")
    y = GatedBranches([layers.Conv2D(4, 1), layers.Conv2D(4, 3, padding="same")])(layers.Rescaling(1 / 255)(images))
    x = layers.GlobalAveragePooling2D()(layers.Average()(y))
    return keras.Model(images, layers.Dense(CLASSES, activation=activation)(x), name="own")


def network(activation="softmax"):
    return GatedResNeXt(ARCH, Connectivity.initial(ARCH, "random", seed=0), activation, seed=0)


def ship(model, path, labels=LABELS, samples=None, **options):
    probe = shipping.Probe(IMAGES, labels, "images of random pixels", samples=samples)
    return shipping.ship(model, path, probe, **{"formats": ["tflite"], **options})


@pytest.mark.parametrize("make", [own, network])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_logits_are_refused(make, labels, tmp_path):
    with pytest.raises(UserError, match="ends in logits; end it in a softmax. Received: rows from -.* that sum to "):
        ship(make(None), tmp_path / "net", labels)
    assert not list(tmp_path.iterdir())
    assert ship(make("softmax"), tmp_path / "net", labels).receipt["checks"][-1]["max_difference"] < 1e-5


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
