"""Nonsense in bulk: what tests of bad input and of bad commands share."""

import json
import math

import PIL.Image

from gated_resnext import recipes
from gated_resnext.errors import UserError
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
GOOD_RUN = Run.of(K1, recipes.RECIPES["digits"], seed=0).to_dict()


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


def place(folder):
    """Fills the folder with a good recipe, a folder of images, and things by the names of others."""
    (folder / "folder.json").mkdir()
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "file").write_text("precious")
    (folder / "quick.json").write_text(json.dumps(RECIPE))
    for label in "abc":
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(10):
            PIL.Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / "photos" / label / f"{number}.png")
    return folder
