import dataclasses
import json
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from gated_resnext.errors import UserError
from gated_resnext.recipes import RECIPES, Phase, Recipe, read

# Appendices E.1 to E.3 of the paper, by hand: epochs, rate of the weights, rate of the gates.
CIFAR_PHASES = [(120, 0.1, 0.2), (100, 0.1, 0.0), (50, 0.01, 0.0), (50, 0.001, 0.0)]
IMAGENET_PHASES = [(30, 0.1, 0.2), (30, 0.1, 0.0), (30, 0.01, 0.0), (30, 0.001, 0.0)]

recipes = st.builds(
    lambda epochs, learned: Recipe(
        "made_up",
        tuple(Phase(e, 0.1, 0.2 if number < learned else 0.0) for number, e in enumerate(epochs)),
        batch_size=8,
        weight_decay=0.0,
    ),
    st.lists(st.floats(0.02, 200), min_size=1, max_size=5),
    st.integers(0, 5),
)


@pytest.mark.parametrize(
    "name, phases, epochs, batch_size, weight_decay, crop, pad",
    [
        ("cifar", CIFAR_PHASES, 320, 128, 0.0005, "pad", 4),
        ("mini_imagenet", CIFAR_PHASES, 320, 256, 0.0005, "pad", 0),
        ("imagenet", IMAGENET_PHASES, 120, 256, 0.0001, "resized", 0),
    ],
)
def test_the_papers_schedules(name, phases, epochs, batch_size, weight_decay, crop, pad):
    recipe = RECIPES[name]
    assert [(p.epochs, p.learning_rate, p.gate_learning_rate) for p in recipe.phases] == phases
    assert recipe.epochs == epochs
    assert (recipe.batch_size, recipe.weight_decay, recipe.momentum) == (batch_size, weight_decay, 0.9)
    assert (recipe.crop, recipe.pad, recipe.flip) == (crop, pad, True)
    assert recipe.source.startswith("Appendix E.")


def test_the_embedded_digits_keep_the_papers_proportions():
    recipe = RECIPES["digits"]
    assert [(5 * p.epochs, p.learning_rate, p.gate_learning_rate) for p in recipe.phases] == CIFAR_PHASES
    assert not recipe.flip, "a mirrored digit is another sign"
    assert "not in the paper" in recipe.source


def test_photographs_of_ones_own_are_trained_as_cifar_on_crops_as_imagenet():
    recipe = RECIPES["photos"]
    assert [(p.epochs, p.learning_rate, p.gate_learning_rate) for p in recipe.phases] == CIFAR_PHASES
    assert (recipe.crop, recipe.batch_size, recipe.flip, recipe.test_resize) == ("resized", 64, True, None)
    assert "not in the paper" in recipe.source


def test_every_recipe_is_called_by_its_name():
    assert list(RECIPES) == [recipe.name for recipe in RECIPES.values()]
    assert set(RECIPES) == {"cifar", "mini_imagenet", "imagenet", "digits", "photos"}


def test_another_rate_of_gates_that_no_phase_learns_is_refused():
    recipe = dataclasses.replace(RECIPES["digits"], phases=(Phase(1, 0.1),))
    with pytest.raises(ValueError, match="the recipe 'digits' learns no gates"):
        recipe.with_gate_rate(5)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["cifar"].batch_size = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["cifar"].phases[0].epochs = 1


@hypothesis.given(recipes, st.floats(1e-3, 100))
def test_scaled_keeps_the_proportions_and_all_else(recipe, factor):
    scaled = recipe.scaled(factor)
    assert len(scaled.phases) == len(recipe.phases)
    for short, long in zip(scaled.phases, recipe.phases, strict=True):
        assert short == Phase(long.epochs * factor, long.learning_rate, long.gate_learning_rate)
    assert scaled.epochs == pytest.approx(recipe.epochs * factor)
    assert dataclasses.replace(scaled, phases=recipe.phases) == recipe


def test_a_part_of_a_schedule_has_its_numbers_and_its_proportions():
    whole = RECIPES["digits"]
    for factor in (0.03, 0.0075, 1, 7):
        assert whole.scaled(factor).is_part_of(whole)
    longer = dataclasses.replace(whole.phases[0], epochs=25)
    others = [
        whole.with_gate_rate(5),
        dataclasses.replace(whole, batch_size=32),
        dataclasses.replace(whole, phases=(longer, *whole.phases[1:])),
        dataclasses.replace(whole, phases=whole.phases[:3]),
        RECIPES["cifar"],
    ]
    assert not any(other.scaled(0.5).is_part_of(whole) for other in others)


def test_scaled_by_one_is_the_recipe_itself():
    assert RECIPES["cifar"].scaled(1.0) is RECIPES["cifar"]
    assert RECIPES["cifar"].scaled(0.1).epochs == 32


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf])
def test_scaled_by_a_senseless_factor_is_refused(factor):
    with pytest.raises(ValueError, match=f"epochs_scale must be .*{factor}"):
        RECIPES["cifar"].scaled(factor)


@hypothesis.given(recipes, st.integers(1, 10_000))
def test_steps_are_the_epochs_to_within_the_rounding_of_a_round(recipe, steps_per_epoch):
    steps = recipe.steps(steps_per_epoch)
    assert len(steps) == len(recipe.phases)
    for phase, (rounds, length) in zip(recipe.phases, steps, strict=True):
        exact = phase.epochs * steps_per_epoch
        assert rounds >= 1 and length >= 1
        # Half a step a round, or the one step that every round has at least.
        assert abs(rounds * length - exact) <= max(rounds / 2, 1 - exact) + 1e-6
        # A round is about one pass: never over one and a half, nor under two thirds of one unless the phase is shorter.
        assert length <= 1.5 * steps_per_epoch + 0.5
        assert length >= min(2 / 3 * steps_per_epoch, exact) - 0.5


def test_steps_of_a_whole_schedule_are_one_round_an_epoch():
    assert RECIPES["cifar"].steps(390) == ((120, 390), (100, 390), (50, 390), (50, 390))
    assert RECIPES["imagenet"].steps(5004) == ((30, 5004),) * 4


def test_steps_of_a_short_schedule_keep_each_phases_share():
    # 320 epochs of 390 steps times 0.01: 468, 390, 195 and 195 steps.
    assert [rounds * length for rounds, length in RECIPES["cifar"].scaled(0.01).steps(390)] == [468, 390, 195, 195]
    # However short, no phase is left out.
    assert RECIPES["cifar"].scaled(1e-6).steps(390) == ((1, 1),) * 4


GOOD = {"name": "good", "phases": (Phase(2, 0.1, 0.2), Phase(1, 0.1)), "batch_size": 8, "weight_decay": 0.1}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"phases": ()}, "at least one phase"),
        ({"phases": (Phase(0, 0.1),)}, "phase 1 needs epochs > 0"),
        ({"phases": (Phase(1, 0.1), Phase(-1, 0.1))}, "phase 2 needs epochs > 0"),
        ({"phases": (Phase(math.nan, 0.1),)}, "phase 1 needs epochs > 0"),
        ({"phases": (Phase(1, -0.1),)}, "rates >= 0"),
        ({"phases": (Phase(1, math.nan),)}, "rates >= 0"),
        ({"phases": (Phase(1, 0.1, -0.2),)}, "rates >= 0"),
        ({"phases": (Phase(1, 0.1, math.nan),)}, "rates >= 0"),
        ({"phases": (Phase(1, 0.1), Phase(1, 0.1, 0.2))}, "no later phase can learn"),
        ({"batch_size": 0}, "'good' has a batch size"),
        ({"weight_decay": -1e-4}, "decay"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"pad": -1}, "padding"),
        ({"crop": "middle"}, "crop must be 'pad' or 'resized'.*'middle'"),
        ({"test_resize": 40}, "leave test_resize out. Received: test_resize=40"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    Recipe(**GOOD)
    with pytest.raises(ValueError, match=message):
        Recipe(**{**GOOD, **changes})


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    for recipe in (RECIPES[name], RECIPES[name].scaled(0.0125)):
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {**RECIPES["cifar"].to_dict(), "batchsize": 8},
        {name: value for name, value in RECIPES["cifar"].to_dict().items() if name != "phases"},
        {**RECIPES["cifar"].to_dict(), "phases": [{"epochs": 1}]},
        {**RECIPES["cifar"].to_dict(), "phases": [{"epochs": 1, "learning_rate": 0.1, "rate": 2}]},
        {**RECIPES["cifar"].to_dict(), "phases": 3},
        {**RECIPES["cifar"].to_dict(), "batch_size": "128"},
        {**RECIPES["cifar"].to_dict(), "batch_size": 0},
    ],
    ids=["empty", "unknown", "missing", "phase incomplete", "phase unknown", "no phases", "text", "out of range"],
)
def test_other_fields_are_no_recipe(fields):
    with pytest.raises(ValueError):
        Recipe.from_dict(fields)


def test_whole_numbers_are_rates_too():
    recipe = Recipe("whole", (Phase(2, 1, 3), Phase(1, 1)), 8, weight_decay=0, momentum=0)
    rates = [rate for phase in recipe.phases for rate in (phase.epochs, phase.learning_rate, phase.gate_learning_rate)]
    assert {type(rate) for rate in (*rates, recipe.weight_decay, recipe.momentum)} == {float}
    assert rates == [2, 1, 3, 1, 1, 0]


def test_read_by_name_or_from_a_file(tmp_path):
    assert read("imagenet") is RECIPES["imagenet"]
    assert read("imagenet", 0.25) == RECIPES["imagenet"].scaled(0.25)
    path = tmp_path / "mine.json"
    fields = {"name": "mine", "phases": [{"epochs": 3, "learning_rate": 0.1}], "batch_size": 4, "weight_decay": 0}
    path.write_text(json.dumps(fields))
    assert read(str(path)) == Recipe("mine", (Phase(3, 0.1),), 4, 0)
    assert read(str(path), 2.0).epochs == 6
    path.write_text(json.dumps(RECIPES["digits"].to_dict()))
    assert read(str(path)) == RECIPES["digits"]


def test_the_batch_size_of_any_recipe_may_be_another():
    recipe = read("cifar", 0.5, 3.0, 32)
    assert recipe.name == "cifar, batches of 32, gates at 3" and recipe.batch_size == 32
    assert recipe.phases == RECIPES["cifar"].scaled(0.5).with_gate_rate(3).phases
    assert read("cifar", batch_size=128) == RECIPES["cifar"]
    with pytest.raises(UserError, match="a batch size.*out of range"):
        read("cifar", batch_size=0)


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="recipe must be one of cifar, .*photos or a .json file. Received: 'adam'"):
        read("adam")
    with pytest.raises(UserError, match="there is no .*mine.json"):
        read(str(tmp_path / "mine.json"))
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(UserError, match="mine.json is not a JSON file"):
        read(str(tmp_path / "mine.json"))
    (tmp_path / "mine.json").write_text('{"name": "mine"}')
    with pytest.raises(UserError, match="mine.json is no recipe: .*phases"):
        read(str(tmp_path / "mine.json"))
    with pytest.raises(UserError, match="epochs_scale must be above 0"):
        read("cifar", 0.0)
