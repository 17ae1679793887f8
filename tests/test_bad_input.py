"""Bad input in bulk: whatever a user can cause ends in a UserError or in one line, and never in wrong values.

A case that its part of the library takes for good fails here too: what is nonsense must be refused.
"""

import io
import json
import math
import re
import shutil

import keras
import numpy as np
import PIL.Image
import pytest

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

K1 = "digits_11_4_4_k1"
NAN, INF, HUGE = math.nan, math.inf, 10**400
SMALL = {
    "depth": 8, "width": 2, "cardinality": 3, "fan_in": 1, "stem_filters": 4, "filters": 8, "stages": [1, 1],
}  # fmt: skip
RECIPE = {
    "name": "quick",
    "phases": [{"epochs": 1, "learning_rate": 0.1, "gate_learning_rate": 0.2}, {"epochs": 1, "learning_rate": 0.1}],
    "batch_size": 8,
    "weight_decay": 1e-4,
    "crop": "resized",
}


def variants(good, bad):
    """The good object with one field at a time set to each of its bad values, by a name that tells which."""
    for field, values in bad.items():
        for number, value in enumerate(values):
            yield f"{field} {number}: {str(value)[:40]}", {**good, field: value}


def without_each(good):
    for field in good:
        yield f"no {field}", {name: value for name, value in good.items() if name != field}


def not_refused(cases, attempt, refusal=UserError):
    """The cases that `attempt` takes for good, or that end in another exception: by name, what happened."""
    wrong = {}
    for name, case in cases.items():
        try:
            attempt(case)
        except refusal as error:
            if not str(error):
                wrong[name] = "refused without a word"
        except Exception as error:
            wrong[name] = repr(error)[:200]
        else:
            wrong[name] = "taken for good"
    return wrong


def assert_none(wrong):
    assert not wrong, "\n".join([f"{len(wrong)} cases:", *(f"{name}: {what}" for name, what in wrong.items())])


def named(cases):
    return {f"{number}: {str(case)[:40]!r}": case for number, case in enumerate(cases)}


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
    """A folder with a good recipe, a folder of images, and things by the names of others."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "folder.json").mkdir()
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "file").write_text("precious")
    (folder / "quick.json").write_text(json.dumps(RECIPE))
    for label in "abc":
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(10):
            PIL.Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / "photos" / label / f"{number}.png")
    return folder


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

GOOD_RUN = Run.of(K1, recipes.RECIPES["digits"], seed=0).to_dict()
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
    with pytest.raises(UserError, match="holds a Sequential, not a GatedResNeXt"):
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
    assert sum(len(y) for _, y in images.test()) == len(images)


# Commands, all in one process: each runs up to the first step of its training

HARNESS = """
import contextlib, importlib, io, json, os, sys, traceback
from absl import flags
from gated_resnext import errors, loop, trainer

class Started(BaseException):
    pass

def started(*args, **kwargs):
    raise Started

shallow = trainer._Training.run_phases
loop.Loop.train = started
own, mains = {}, {}
commands = "train", "draw", "publish", "evaluate"
for module in (*(f"gated_resnext.{command}" for command in commands), "export.prune_and_save"):
    mains[module] = importlib.import_module(module).main
    own[module] = {flag.name: flag for flag in flags.FLAGS.flags_by_module_dict()[module]}
    for name in own[module]:
        delattr(flags.FLAGS, name)
report = {}
for name, (module, arguments, deep, environment) in json.load(open(sys.argv[1])).items():
    trainer._Training.run_phases = shallow if deep else started
    for flag in own[module].values():
        flag.unparse()
        flags.FLAGS[flag.name] = flag
    flags.FLAGS.unparse_flags()
    out, err = io.StringIO(), io.StringIO()
    argv, before, sys.argv = sys.argv, dict(os.environ), [module, *arguments]
    os.environ.update(environment)
    status, raised = None, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            errors.run(mains[module])
        except SystemExit as exit:
            status = exit.code
        except Started:
            raised = "a training started"
        except BaseException:
            raised = traceback.format_exc()
    sys.argv = argv
    os.environ.clear()
    os.environ.update(before)
    for flag in own[module]:
        delattr(flags.FLAGS, flag)
    report[name] = [status, raised, out.getvalue(), err.getvalue()]
json.dump(report, open(sys.argv[2], "w"))
"""
TRAIN, DRAW, PUBLISH = "gated_resnext.train", "gated_resnext.draw", "gated_resnext.publish"
EXPORT, EVALUATE = "export.prune_and_save", "gated_resnext.evaluate"
# Where the harness runs: photos/ is a folder of images, quick.json a recipe for it, run/ the workdir of another run.
PHOTOS = ["--image_folder=photos", "--recipe=quick.json"]
SINGLE = {
    "entry": ["digits", " ", "x" * 10_000, "../zoo", "digits_11_4_4_k1 ", "größe", "None", "*", "\n", K1.upper()],
    "recipe": [
        "adam",
        "missing.json",
        "folder.json",
        "loop.json",
        "quick",
        "cifar,digits",
        "file",
        " ",
        "~/nowhere.json",
    ],
    "epochs_scale": ["0", "-1", "nan", "inf", "-inf", "abc", "", "1e308", "1e999", "0,5", "½", "1e-400"],
    "seed": ["-1", "abc", "1.5", "", "1e3", "nan"],
    "strategy": ["gpu", "", "Auto", "tpu", "multi_worker", "mirrored,tpu"],
    "on_nan": ["go", "", "STOP"],
    "checkpoint_seconds": ["-1", "abc", "", "nan"],
    "batch_size": ["0", "-1", "abc", "1.5", "", "1441"],
    "sync_batch_norm": ["maybe", "2", ""],
    "precision": ["half", "", "float64", "FLOAT32"],
    "remat": ["maybe"],
    "workdir": ["file", "file/run", "run", "photos", "broken", "quick.json"],
    "data_dir": ["file", "file/data"],
    "architecture": ['{"depth": 28}', '{"classes": 3}', "{", "missing.json"],
    "nonsense": ["1"],
}
OWN = {
    "architecture": [
        "{", "[]", "5", "null", "true", '"depth"', "[1, 2]", "{'depth': 20}", '{"depth": 20,}', "depth=20", "NaN",
        " ",
        "missing.json", "folder.json", "loop.json", "binary.json", "deep.json", "digits.json", "quick.json",
        "[" * 100_000,
        '{"width": ' + "9" * 5_000 + "}", '{"width": 1e3}', '{"width": NaN}', '{"width": Infinity}', '{"width": -4}',
        '{"classes": 2}', '{"depth": 21}', '{"fan_in": 9}', '{"stages": [1.0, 5.0]}', '{"widht": 4}', "\ud800",
        '{"input_shape": [32, 32, 2]}',
    ],
    "entry": ["digits", "../zoo"],
    "recipe": ["cifar", "photos", "adam", "broken.json", "folder.json", "plain.json"],
    "epochs_scale": ["0", "nan", "1e308"],
    "dataset": ["optical_digits", "nope"],
    "strategy": ["gpu"],
}  # fmt: skip
FOLDERS = ["missing", "file", "run", "one", "none", "untested", "missing/\udcff", " ", "x" * 300, "broken_images"]
DATASETS = ["nope", " ", "../x", "two words", "nope/config", "nope:1.0.0", "folder:", "folder:missing", "folder:file"]
DATASETS += ["optical_digits:9.9.9", "optical_digits/config", "x" * 300, "größe", "FOLDER:photos"]
TF_CONFIGS = ["{", "[]", "null", "5", '"x"', '{"cluster": 5}', '{"cluster": []}', '{"cluster": {"worker": 5}}']
TF_CONFIGS += ['{"cluster": null}', "\x00x"[1:], '{"cluster": {"chief": true}}']
RESULTS = {
    "no connectivity": {"entry": K1},
    "a list": [],
    "null": None,
    "a number": 5,
    "another wiring": {"entry": K1, "connectivity": {"first": 2, "sources": []}},
    "no wiring": {"entry": K1, "connectivity": {"first": 2}},
    "endless wiring": {"entry": K1, "connectivity": {"first": INF, "sources": []}},
    "text for a wiring": {"entry": K1, "connectivity": "full"},
}
# In the network, where the numbers are good ones but no machine has the memory or no library the type.
DEEP = {
    "width of 10**13": [*PHOTOS, '--architecture={"width": 10000000000000}'],
    "width of 10**30": [*PHOTOS, f'--architecture={{"width": 1{"0" * 30}}}'],
    "padding of 10**30": [f"--entry={K1}", "--recipe=padded.json"],
    "test images of 10**30": ["--image_folder=photos", "--recipe=resized.json"],
    "seed of 2**63": [*PHOTOS, f"--seed={2**63}"],
    "seed of 10**30": [f"--entry={K1}", f"--seed={10**30}"],
    "broken images": ["--image_folder=broken_images", "--recipe=quick.json"],
}


def cases():
    """By name: module, arguments, whether to build the network, environment."""
    result = {}

    def add(module, name, *arguments, deep=False, **environment):
        result[f"{module.split('.')[1]} {name}"[:80]] = (module, list(arguments), deep, environment)

    for flag, values in SINGLE.items():
        for number, value in enumerate(values):
            recipe = [] if flag == "recipe" else ["--recipe=digits"]
            add(TRAIN, f"--{flag} {number}: {value[:30]!r}", f"--{flag}={value}", *recipe)
    for flag, values in OWN.items():
        for number, value in enumerate(values):
            add(TRAIN, f"own --{flag} {number}: {value[:30]!r}", *PHOTOS, f"--{flag}={value}")
    for folder in FOLDERS:
        deep = folder == "broken_images"
        add(TRAIN, f"folder {folder[:30]!r}", f"--image_folder={folder}", "--recipe=quick.json", deep=deep)
    for name in DATASETS:
        add(TRAIN, f"dataset {name[:30]!r}", f"--dataset={name}", "--recipe=quick.json")
    for number, text in enumerate(TF_CONFIGS):
        add(TRAIN, f"TF_CONFIG {number}", "--strategy=multi_worker", TF_CONFIG=text)
    for stray in ("x", "--", "-x", "--entr=x", "--seed", "---", "=", "--=", "--entry", "run"):
        add(TRAIN, f"stray {stray}", stray, *(["x"] if stray == "--" else []))
    for name, arguments in DEEP.items():
        add(TRAIN, name, *arguments, deep=True)
    add(TRAIN, "a batch larger than the folder", "--image_folder=photos")
    for module in (DRAW, EXPORT, EVALUATE):
        add(module, "nothing")
        add(module, "both", f"--entry={K1}", "--workdir=run")
        add(module, "unknown", "--entry=digits")
        add(module, "unpublished", "--entry=cifar100_29_64_8_k1")
        for folder in ("missing", "file", "photos", "run", "broken"):
            add(module, f"workdir {folder}", f"--workdir={folder}")
        for run in BAD_WORKDIRS:
            add(module, run, f"--workdir=workdirs/{run}", "--output=out.svg")
    for flags in (["--entry="], ["--workdir="], [f"--entry={K1}", "--output="]):
        add(EXPORT, f"empty {flags[-1]}", *flags)
    for result_ in RESULTS:
        add(DRAW, f"result {result_}", f"--workdir=results/{result_}")
    add(DRAW, "output folder", f"--entry={K1}", "--output=photos")
    add(DRAW, "output a folder of a good name", f"--entry={K1}", "--output=pictures.svg")
    add(DRAW, "output below a file", f"--entry={K1}", "--output=file/x.svg")
    for what in ("", "Wiring", "wiring,gates", "all"):
        add(DRAW, f"what {what}", f"--entry={K1}", f"--what={what}")
    for what in ("wiring", "active", "gates", "curves"):
        for name in ("x.pdf", "x", ".svg", "", "x.svgz", "x.html.txt"):
            add(DRAW, f"{what} as {name}", f"--entry={K1}", f"--what={what}", f"--output={name}")
        for name in (RESULTS if what == "active" else ["no connectivity"]) if what != "wiring" else []:
            add(DRAW, f"{what} of result {name}", f"--what={what}", f"--workdir=results/{name}")
        add(DRAW, f"{what} of nothing", f"--what={what}")
        add(DRAW, f"{what} of what is not there", f"--what={what}", f"--workdir=missing,{K1}", f"--entry={K1},nope")
    add(DRAW, "wiring as gif", f"--entry={K1}", "--output=x.gif")
    add(DRAW, "gates of the zoo", f"--entry={K1}", "--what=gates")
    add(DRAW, "gates of two", "--workdir=run,run", "--what=gates")
    add(DRAW, "active of two cardinalities", f"--entry={K1},cifar10_20_4_8_k1", "--what=active")
    for number, value in enumerate(["", "onnx", "tflite,onnx", " ", ",", "SAVED_MODEL"]):
        add(EXPORT, f"formats {number}: {value}", f"--entry={K1}", f"--formats={value}")
    add(EXPORT, "images", f"--entry={K1}", "--images=-1")
    add(EXPORT, "drop", f"--entry={K1}", "--max_top1_drop=abc")
    add(EXPORT, "output below a file", f"--entry={K1}", "--output=file", "--noise")
    for number, name in enumerate(DATASETS):
        add(EVALUATE, f"dataset {number}", f"--entry={K1}", f"--dataset={name}")
    for number, folder in enumerate(FOLDERS):
        add(EVALUATE, f"folder {number}", f"--entry={K1}", f"--image_folder={folder}")
    for flag in ("--split=val", "--images=0", "--bins=0", "--white=x", "--output=file/x", "--output= ", "--dataset="):
        add(EVALUATE, flag, f"--entry={K1}", flag)
    for folder in ("missing", "file", "photos", "run", "quick.json", ""):
        add(EVALUATE, f"saved_model {folder}", f"--saved_model={folder}")
    add(PUBLISH, "nothing")
    add(PUBLISH, "no hardware", "--workdir=run")
    for folder in ("missing", "file", "run", "broken", "photos"):
        add(PUBLISH, f"workdir {folder}", f"--workdir={folder}", "--hardware=x", "--zoo=photos")
    return result


BAD_WORKDIRS = ["run a number for a name", "run no wiring", "run seed", "run no dataset"]
BROKEN = dict(
    zip(
        BAD_WORKDIRS,
        ({"entry": 5}, {"wiring": "some"}, {"seed": INF}, {"dataset": None}),
        strict=True,
    )
)
COMMANDS = cases()


@pytest.fixture(scope="module")
def reported(place, run_python, tmp_path_factory):
    """What every command said, run in a copy of the place."""
    folder = shutil.copytree(place, tmp_path_factory.mktemp("commands") / "place", symlinks=True)
    (folder / "binary.json").write_bytes(bytes(range(256)))
    (folder / "deep.json").write_bytes(b"[" * 100_000)
    (folder / "digits.json").write_bytes(b'{"width": ' + b"9" * 5_000 + b"}")
    (folder / "broken.json").write_text(json.dumps({**RECIPE, "batch_size": "8"}))
    (folder / "plain.json").write_text(json.dumps({**RECIPE, "crop": "pad"}))
    (folder / "padded.json").write_text(json.dumps({**RECIPE, "crop": "pad", "pad": 10**30}))
    (folder / "resized.json").write_text(json.dumps({**RECIPE, "test_resize": 10**30}))
    files.write_json(folder / "run" / "run.json", {**GOOD_RUN, "entry": "another"})
    (folder / "pictures.svg").mkdir()
    (folder / "pictures.svg" / "kept").touch()
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    shutil.copytree(folder / "photos", folder / "broken_images")
    (folder / "broken_images" / "a" / "3.png").write_bytes(b"")
    for name, labels in {"one": "a", "none": "", "untested": "ab"}.items():
        for label in labels:
            (folder / name / label).mkdir(parents=True)
            shutil.copy(folder / "photos" / "a" / "0.png", folder / name / label)
        (folder / name).mkdir(exist_ok=True)
    for name, result in RESULTS.items():
        files.write_json(folder / "results" / name / "run.json", GOOD_RUN)
        (folder / "results" / name / "result.json").write_text(json.dumps(result))
    for name, changes in BROKEN.items():
        (folder / "workdirs" / name).mkdir(parents=True)
        (folder / "workdirs" / name / "run.json").write_text(json.dumps({**GOOD_RUN, **changes}))
        wiring = Connectivity.full(3, 4).to_dict()
        files.write_json(folder / "workdirs" / name / "result.json", {"entry": K1, "connectivity": wiring})
    (folder / "harness.py").write_text(HARNESS)
    (folder / "cases.json").write_text(json.dumps(COMMANDS))
    done = run_python("harness.py", "cases.json", "report.json", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return files.read_json(folder / "report.json")


def test_every_command_ends_in_one_line(reported):
    wrong = {}
    for name, (status, raised, out, err) in reported.items():
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        if raised or (status, len(lines)) != (1, 1) or "Traceback" in out + err or len(lines[0]) < 20:
            wrong[name] = raised.strip().splitlines()[-1][:200] if raised else f"status {status}: {err[-200:]}"
    assert_none(wrong)


def test_there_are_1400_cases():
    tables = [
        *(2 * [BAD_RECIPES]), BAD_RECIPE_NAMES, BAD_SCALES, *(2 * [BAD_ARCHITECTURES]), NO_FIELDS, BAD_WIRINGS,
        BAD_CARDS, BAD_RUNS, *(3 * [NO_OBJECT]), *(2 * [range(DAMAGES)]), range(NETWORK_DAMAGES),
        *(4 * [NO_NETWORK]), range(PICTURES), COMMANDS,
    ]  # fmt: skip
    assert sum(map(len, tables)) >= 1400
    assert len(COMMANDS) >= 200
