"""Bad input in bulk: whatever a user can cause ends in a UserError, and never in wrong values.

A case that its part of the library takes for good fails here too: what is nonsense must be refused.
"""

import io
import json
import re
import shutil

import keras
import nonsense
import numpy as np
import PIL.Image
import pytest
from nonsense import (
    GOOD_RUN,
    HUGE,
    INF,
    K1,
    NAN,
    RECIPE,
    SMALL,
    assert_none,
    named,
    not_refused,
    variants,
    without_each,
)

import gated_resnext
from gated_resnext import files, own_data, recipes, zoo
from gated_resnext.architecture import Architecture
from gated_resnext.checkpoints import Checkpoints, Place
from gated_resnext.connectivity import Connectivity
from gated_resnext.data import Images
from gated_resnext.datasets.table import FOLDER
from gated_resnext.errors import UserError
from gated_resnext.model import GatedResNeXt
from gated_resnext.sources import FolderSource
from gated_resnext.workdir import Run

# Files that hold no JSON, or no object

NO_OBJECT = {
    "empty": b"",
    "blank": b" \n",
    "open": b"{",
    "cut": b'{"name": "x", "pha',
    "trailing": b"{} {}",
    "comma": b'{"name": "x",}',
    "quotes": b"{'name': 'x'}",
    "comment": b"// a recipe\n{}",
    "yaml": b"name: x\nphases: []\n",
    "zeros": bytes(100),
    "binary": bytes(range(256)),
    "utf-16": '{"name": "größe"}'.encode("utf-16"),
    "latin-1": '{"name": "größe"}'.encode("latin-1"),
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "digits": b"9" * 5_000,
    "digits in an object": b'{"name": ' + b"9" * 5_000 + b"}",
    "null": b"null",
    "true": b"true",
    "number": b"5",
    "nan": b"NaN",
    "text": b'"cifar"',
    "list": b"[]",
    "list of pairs": b'[["name", "x"]]',
    "no fields": b"{}",
    "other fields": b'{"a": 1}',
}

# Recipes

NO_NUMBER = [None, "1", [], {}, -1, NAN, INF, -INF, HUGE]
PHASES = [
    {"phases": [{**RECIPE["phases"][0], field: value}]}
    for field in ("epochs", "learning_rate", "gate_learning_rate")
    for value in NO_NUMBER
]
BAD_RECIPES = dict(
    [
        *variants(
            RECIPE,
            {
                "name": [None, 5, [], {}, True, NAN],
                "phases": [
                    None, 5, "abc", [], {}, [5], [None], ["x"], [[]], [{}], [[1, 0.1]], {"epochs": 1}, [{"epochs": 1}],
                    [{"epochs": 0, "learning_rate": 0.1}], [{"epochs": 1, "learning_rate": 0.1, "rate": 1}],
                    [{"epochs": 1, "learning_rate": 0.1}, {"epochs": 1, "learning_rate": 0.1, "gate_learning_rate": 1}],
                    [[{"epochs": 1, "learning_rate": 0.1}]],
                ],
                "batch_size": [None, "8", 8.0, 1.5, NAN, INF, 0, -1, True, [], {}, [8]],
                "weight_decay": NO_NUMBER,
                "momentum": [*NO_NUMBER, 1, 1.5],
                "crop": [None, 5, "", "Pad", [], {}, ["pad"], NAN],
                "pad": [None, "1", 1.0, -1, NAN, True, [], {}],
                "flip": [None, 0, 1, "yes", [], {}],
                "test_resize": [0, -1, "256", 256.0, True, NAN, [], {}],
                "source": [None, 5, [], {}],
                "optimizer": ["adam"],
                "": [1],
            },
        ),
        *((f"phase {number}: {phase}"[:60], {**RECIPE, **phase}) for number, phase in enumerate(PHASES)),
        *((name, value) for name, value in without_each(RECIPE) if name != "no crop"),
    ]
)  # fmt: skip
BAD_RECIPE_NAMES = [
    "",
    "adam",
    "cifar ",
    "CIFAR",
    "missing.json",
    "folder.json",
    ".json",
    "quick.yaml",
    "/",
    "x" * 5000,
]
BAD_RECIPE_NAMES += ["ü.json", "\n", "loop.json"]
BAD_SCALES = [0.0, -1.0, NAN, INF, -INF, 1e308, -0.0]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return nonsense.place(tmp_path_factory.mktemp("place"))


def test_the_good_recipe_is_one(place):
    assert recipes.read(str(place / "quick.json")).epochs == 2
    for name in recipes.RECIPES:
        assert recipes.read(name, 0.5).epochs == recipes.RECIPES[name].epochs / 2


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_recipes_of_nonsense_are_refused(scale, tmp_path):
    def read(fields):
        (tmp_path / "bad.json").write_text(json.dumps(fields))
        recipes.read(str(tmp_path / "bad.json"), scale)

    assert_none(not_refused(BAD_RECIPES, read))


def test_recipes_that_are_no_json_object_are_refused(tmp_path):
    def read(content):
        (tmp_path / "bad.json").write_bytes(content)
        recipes.read(str(tmp_path / "bad.json"))

    assert_none(not_refused(NO_OBJECT, read))


def test_recipes_that_are_not_there_are_refused(place, monkeypatch):
    monkeypatch.chdir(place)
    assert_none(not_refused(named(BAD_RECIPE_NAMES), recipes.read))


def test_schedules_of_no_or_endless_length_are_refused():
    assert_none(not_refused(named(BAD_SCALES), lambda scale: recipes.read("cifar", scale)))


# Architectures

NO_COUNT = [None, "5", 1.5, 8.0, NAN, INF, 0, -1, True, [], {}, [5], {"depth": 8}]
BAD_ARCHITECTURES = dict(
    variants(
        SMALL,
        {
            **{name: NO_COUNT for name in ("depth", "width", "cardinality", "fan_in", "stem_filters", "filters")},
            "classes": [*NO_COUNT, 2, 4],
            "depth": [*NO_COUNT, 1, 2, 7, 11],
            "fan_in": [*NO_COUNT, 4],
            "input_shape": [
                None, 5, "abc", "", [], [32], [32, 32], [32, 32, 3, 1], [0, 32, 3], [-1, 32, 3], [32.0, 32, 3],
                ["32", 32, 3], [NAN, 32, 3], [INF, 32, 3], [None, None, 3], [[32], 32, 3], {}, {"a": 1, "b": 2, "c": 3},
                True, [True, True, 3],
            ],
            "aggregation": [None, "", "max", 5, [], {}, ["mean"], NAN, True, "shared"],
            "gates": [None, "", "soft", 5, [], {}, True],
            "stem": [None, "", "conv5", 3, [], {}, True],
            "stages": [
                5, "11", "ab", [], [3], [1, 2], [0, 2], [-1, 3], [1.0, 1.0], [0.5, 1.5], [NAN, 1], [INF, 1], [None, 2],
                ["1", "1"], [[1], [1]], {}, {"1": 1}, True, [True, True],
            ],
            "heads": [8], "Depth": [8], "": [1], "__class__": [None],
        },
    )
)  # fmt: skip
NO_FIELDS = [None, 5, "x", [], [1], True, NAN, {}, {"depth": 8}, {"depth": 8, "width": 2}]


def test_the_good_architecture_is_one(place):
    assert Architecture.from_dict({**SMALL, "classes": 3}).modules == 2
    assert own_data.run_of(f"{FOLDER}{place / 'photos'}", fields=SMALL).architecture.stages == (1, 1)


def test_architectures_of_nonsense_are_refused():
    # 2 and 4 classes are good numbers, but not the folder's.
    cases = {name: case for name, case in BAD_ARCHITECTURES.items() if case.get("classes") not in (2, 4)}

    def build(fields):
        Architecture.from_dict(json.loads(json.dumps({"classes": 3, **fields})))

    assert_none(not_refused(cases, build, ValueError))
    assert_none(not_refused(named(NO_FIELDS), Architecture.from_dict, ValueError))


def test_architectures_of_nonsense_for_ones_own_images_are_refused(place):
    def run_of(fields):
        own_data.run_of(f"{FOLDER}{place / 'photos'}", fields=json.loads(json.dumps(fields)))

    assert_none(not_refused(BAD_ARCHITECTURES, run_of))


# Wirings

GOOD_WIRING = {"first": 3, "sources": [[[0], [1, 2], [0, 1, 2]], [[2]]]}
BAD_WIRINGS = dict(
    [
        *variants(
            GOOD_WIRING,
            {
                "first": [None, "three", [], {}, NAN, INF, -INF, 0, -1, 2, 2.5, [3]],
                "sources": [
                    None, 5, "x", {"a": [[0]]}, [5], [None], ["ab"], [[]], [[[]]], [[[0], []]], [[0]], [[[0, 0]]],
                    [[[3]]], [[[-1]]], [[[0.5]]], [[[1.5, 0]]], [[["a"]]], [[[None]]], [[[NAN]]], [[[INF]]], [[[-INF]]],
                    [[[[0]]]], [[[HUGE]]], [[[0]], [[1]]], [[[0]], []], [[[{}]]], [[{}]], NAN,
                ],
                "gates": [1],
            },
        ),
        *without_each(GOOD_WIRING),
        *((f"not a wiring: {value}", value) for value in (None, 5, "x", [], {}, True, NAN, [3, [[[0]]]])),
    ]
)  # fmt: skip


def test_the_good_wiring_is_one():
    assert Connectivity.from_dict(GOOD_WIRING).blocks == (3, 3, 1)


def test_wirings_of_nonsense_are_refused():
    def build(fields):
        Connectivity.from_dict(json.loads(json.dumps(fields)))

    assert_none(not_refused(BAD_WIRINGS, build, ValueError))


# Cards of the zoo


@pytest.fixture(scope="module")
def good_card(tmp_path_factory):
    """A zoo with one card and its weights: its folder, and the card."""
    folder = tmp_path_factory.mktemp("zoo")
    model = zoo.load(K1, weights=None, seed=1)
    wiring = model.wiring()
    (folder / "cards").mkdir()
    path = folder / "weights" / f"{K1}.npz"
    files.write_arrays(path, gated_resnext.freeze(model).weights_by_name())
    card = {
        "entry": K1,
        "connectivity": wiring.to_dict(),
        "weights": {"file": path.name, "sha256": files.sha256(path)},
    }
    files.write_arrays(folder / "weights" / "other.npz", {"a": np.zeros(3)})
    return folder, card, files.sha256(folder / "weights" / "other.npz")


BAD_CARDS = dict(
    variants(
        {},
        {
            "weights": [
                None, 5, "x", [], {}, {"file": f"{K1}.npz"}, {"sha256": "0"},
                *({"file": name, "sha256": "0"} for name in (None, 5, [], {}, "", "no.npz", "..")),
                *({"file": f"{K1}.npz", "sha256": value} for value in (None, 5, [], "0", "")),
            ],
            "connectivity": [
                None, 5, "x", [], {}, {"first": 4}, {"first": INF, "sources": []}, {"first": 4, "sources": []},
                {"first": 4, "sources": [[[0]]]}, {"first": 4, "sources": [[[9]], [[0]]]},
            ],
        },
    )
)  # fmt: skip


@pytest.fixture
def zoo_folder(good_card, tmp_path, monkeypatch):
    folder = shutil.copytree(good_card[0], tmp_path / "zoo")
    monkeypatch.setattr(zoo, "FOLDER", folder)
    return folder


def published(folder, card):
    (folder / "cards" / f"{K1}.json").write_text(json.dumps(card))
    return zoo.load(K1, "published")


def test_the_good_card_is_one(zoo_folder, good_card):
    assert published(zoo_folder, good_card[1]).connectivity.to_dict() == good_card[1]["connectivity"]


def test_cards_of_nonsense_are_refused(zoo_folder, good_card):
    _, card, other = good_card
    whole = {name: {**card, **changes} for name, changes in BAD_CARDS.items()} | dict(without_each(card))
    del whole["no entry"]
    whole["weights of another network"] = {**card, "weights": {"file": "other.npz", "sha256": other}}
    assert_none(not_refused(whole, lambda card: published(zoo_folder, card)))


def test_cards_that_are_no_json_object_are_refused(zoo_folder):
    def load(content):
        (zoo_folder / "cards" / f"{K1}.json").write_bytes(content)
        zoo.load(K1, "published")

    assert_none(not_refused(NO_OBJECT, load))


# The description of a run

WIRING, OTHER = (Connectivity.random(3, 4, fan_in, seed=0) for fan_in in (1, 2))
GIVEN_RUN = Run.of(K1, recipes.RECIPES["digits"], seed=0).with_wiring(WIRING).to_dict()
BAD_RUNS = dict(
    [
        *variants(
            GOOD_RUN,
            {
                "entry": [None, 5, [], {}, "", "../x", "a/b"],
                "architecture": [*NO_FIELDS, {**GOOD_RUN["architecture"], "depth": 12}],
                "wiring": [None, 5, [], {}, "", "some"],
                "dataset": [None, 5, [], {}],
                "recipe": [None, 5, "digits", [], {}, {**GOOD_RUN["recipe"], "batch_size": "8"}],
                "seed": [None, "x", [], {}, NAN, INF, -INF, 1.5, -1],
                "limit": [0, -1, 1.5, "5", True, [], {}, NAN, INF],
                "connectivity": [None, {}, WIRING.to_dict()],  # of a learned wiring
            },
        ),
        *variants(GIVEN_RUN, {"wiring": ["learned", "random", "full"], "connectivity": [*NO_FIELDS, OTHER.to_dict()]}),
        *without_each(GOOD_RUN),
        *without_each(GIVEN_RUN),
    ]
)


def test_the_good_run_is_one(tmp_path):
    for good in (GOOD_RUN, GIVEN_RUN):
        files.write_json(tmp_path / "run.json", good)
        assert Run.read(tmp_path).to_dict() == good


def test_runs_of_nonsense_are_refused(tmp_path):
    def read(fields):
        (tmp_path / "run.json").write_text(json.dumps(fields))
        Run.read(tmp_path)

    assert_none(not_refused(BAD_RUNS, read))


def test_runs_that_are_no_json_object_are_refused(tmp_path):
    def read(content):
        (tmp_path / "run.json").write_bytes(content)
        Run.read(tmp_path)

    assert_none(not_refused(NO_OBJECT, read))


# Damaged bytes

ARRAYS = {
    "stage1/kernel": np.random.default_rng(0).normal(size=(3, 17, 40, 7)).astype(np.float32),
    "stage1/mean": np.random.default_rng(1).normal(size=(3, 2000)).astype(np.float32),
    "optimizer/iteration": np.array(7, np.int64),
}
DAMAGES = 120


def damaged(whole, number):
    """Bytes damaged at a seeded place: a bit, a byte, a sector of zeros, the end cut off; or a header changed."""
    rng = np.random.default_rng(number)
    content = bytearray(whole)
    place = int(rng.integers(len(whole)))
    match number % 6:
        case 0:
            content[place] ^= 1 << int(rng.integers(8))
        case 1:
            content[place] ^= int(rng.integers(1, 256))
        case 2:
            content[place : place + 512] = bytes(len(content[place : place + 512]))
        case 3:
            del content[place:]
        case 4:
            headers = [match.start() for match in re.finditer(rb"PK..|NUMPY", whole)] or [0]
            content[min(len(whole) - 1, headers[place % len(headers)] + int(rng.integers(120)))] ^= 1 << place % 8
        case 5:
            shapes = [match.start() for match in re.finditer(rb"\d+[,)]", whole[:600])] or [place]
            content[shapes[place % len(shapes)]] ^= 1 << int(rng.integers(4))
    return bytes(content)


def same(found, expected):
    return list(found) == list(expected) and all(
        found[name].dtype == value.dtype and np.array_equal(found[name], value) for name, value in expected.items()
    )


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "a.npz"
    files.write_arrays(path, ARRAYS)
    return path


def wrongly_read(whole, path, numbers, read, expected):
    """The damages after which `read` gives other arrays than before, or no UserError of one line."""
    wrong = {}
    for number in numbers:
        path.write_bytes(damaged(whole, number))
        try:
            if not same(read(path), expected):
                wrong[number] = "other arrays"
        except UserError as error:
            if path.name not in str(error) or "\n" in str(error):
                wrong[number] = str(error)
        except Exception as error:
            wrong[number] = repr(error)[:200]
    return wrong


def test_damaged_weights_are_refused_or_the_same(weights_file, tmp_path):
    whole = weights_file.read_bytes()
    assert_none(wrongly_read(whole, tmp_path / "a.npz", range(DAMAGES), files.read_arrays, ARRAYS))


@pytest.mark.parametrize("shape", [b"(1, 17, 40, 7)", b"(3, 17, 40, 5)", b"(2, 17, 40, 7)", b"(3, 16, 40, 7)"])
def test_weights_whose_shape_was_damaged_are_refused(shape, weights_file, tmp_path):
    content = weights_file.read_bytes()
    assert content.count(b"(3, 17, 40, 7)") == 1
    (tmp_path / "a.npz").write_bytes(content.replace(b"(3, 17, 40, 7)", shape))
    with pytest.raises(UserError, match="is damaged"):
        files.read_arrays(tmp_path / "a.npz")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with two checkpoints, whose arrays tell them apart."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (3, 12):
        Checkpoints(folder).write(Place(step=step), {**ARRAYS, "optimizer/iteration": np.array(step)})
    return folder


def test_damaged_checkpoints_are_skipped_or_the_same(checkpoints, tmp_path):
    newest = checkpoints / "step000000012.npz"
    shutil.copy(checkpoints / "step000000003.npz", tmp_path)
    wrong = {}
    for number in range(DAMAGES):
        (tmp_path / newest.name).write_bytes(damaged(newest.read_bytes(), number))
        said = []
        try:
            place, state = Checkpoints(tmp_path).newest(said.append)
        except Exception as error:
            wrong[number] = repr(error)[:200]
            continue
        step = 3 if said else 12
        if place.step != step or not same(state, {**ARRAYS, "optimizer/iteration": np.array(step)}):
            wrong[number] = f"step {place.step}, {said}"
        if len(said) > 1 or not all(newest.name in line and "\n" not in line for line in said):
            wrong[number] = f"said {said}"
    assert_none(wrong)


@pytest.mark.parametrize("number", range(3, DAMAGES, 12))
def test_when_every_checkpoint_is_cut_short_that_is_said(number, checkpoints, tmp_path):
    for path in checkpoints.glob("*.npz"):
        (tmp_path / path.name).write_bytes(damaged(path.read_bytes(), number))
    said = []
    with pytest.raises(UserError, match="no checkpoint in .* is whole"):
        Checkpoints(tmp_path).newest(said.append)
    assert len(said) == 2


NETWORK_DAMAGES = 36


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "model.keras"
    shape = Architecture.from_dict({**SMALL, "input_shape": [8, 8, 1]})
    model = GatedResNeXt(shape, seed=1)
    model.save(path)
    return path, model.weights_by_name()


def test_damaged_networks_are_refused_or_the_same(network_file, tmp_path):
    path, weights = network_file

    def load(damaged_path):
        return gated_resnext.load(damaged_path).weights_by_name()

    assert_none(wrongly_read(path.read_bytes(), tmp_path / "model.keras", range(NETWORK_DAMAGES), load, weights))


NO_NETWORK = {
    "empty": b"",
    "text": b"a network",
    "zip without members": b"PK\x05\x06" + bytes(18),
    "zeros": bytes(1000),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "pickle": b"\x80\x04N.",
}


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".txt", ""])
def test_files_of_another_kind_are_no_network(suffix, weights_file, tmp_path):
    def load(content):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(content)
        gated_resnext.load(path)

    assert_none(not_refused({**NO_NETWORK, "arrays": weights_file.read_bytes()}, load))


def test_what_lies_beside_a_file_does_not_matter_when_it_is_written(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    files.write_json(tmp_path / "a.json", [1])
    assert files.read_json(tmp_path / "a.json") == [1]


def test_neither_a_folder_nor_another_model_is_a_network(tmp_path):
    for path in (tmp_path, tmp_path / "missing.keras"):
        with pytest.raises(UserError, match="there is no file"):
            gated_resnext.load(path)
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    with pytest.raises(UserError, match="holds a Sequential without gates, not a GatedResNeXt"):
        gated_resnext.load(tmp_path / "other.keras")


# Images of a folder

PICTURES = 96


def picture(number):
    """The name and the content of an image damaged at a seeded place."""
    rng = np.random.default_rng(number)
    form, suffix = [("jpeg", "jpg"), ("png", "png"), ("gif", "gif"), ("bmp", "bmp")][number // 6 % 4]
    mode = ["RGB", "L", "P"][number // 24 % 3] if form != "jpeg" else ["RGB", "L", "CMYK"][number // 24 % 3]
    image = PIL.Image.fromarray(rng.integers(0, 256, (11, 13, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return f"{number:03}.{suffix}", damaged(buffer.getvalue(), number)


def test_damaged_images_are_named_or_can_be_trained_on(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(20):
            PIL.Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / label / f"x{number:02}.png")
    for number in range(PICTURES):
        name, content = picture(number)
        (tmp_path / "b" / name).write_bytes(content)
    for _ in range(PICTURES):
        source = FolderSource(tmp_path)
        try:
            source.check()
        except UserError as error:
            broken = re.search(r"mend or remove them: (.*?)(, \.\.\.)?$", str(error))[1].split(", ")
            for name in broken:
                assert name.startswith(f"{tmp_path}/b/"), name
                (tmp_path / "b" / name.rsplit("/", 1)[1]).unlink()
        else:
            break
    left = sum(source.sizes.values()) - 40
    assert 0 < left < PICTURES, "all or none are broken"
    recipe = recipes.Recipe("r", (recipes.Phase(1, 0.1),), batch_size=1, weight_decay=0, crop="resized")
    images = Images(f"{FOLDER}{tmp_path}", recipe, None, (8, 8, 3))
    images.check()
    assert sum(len(y) for _, y in images.train(seed=0, first_step=0, steps=images.size)) == images.size
    assert sum(len(y) for _, y in images.in_order()) == len(images)


def test_there_are_1000_cases():
    tables = [
        *(2 * [BAD_RECIPES]), BAD_RECIPE_NAMES, BAD_SCALES, *(2 * [BAD_ARCHITECTURES]), NO_FIELDS, BAD_WIRINGS,
        BAD_CARDS, BAD_RUNS, *(3 * [NO_OBJECT]), *(2 * [range(DAMAGES)]), range(NETWORK_DAMAGES),
        *(4 * [NO_NETWORK]), range(PICTURES),
    ]  # fmt: skip
    assert sum(map(len, tables)) >= 1000
