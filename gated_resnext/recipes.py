"""How a network is trained: the paper's schedules as data.

Plain Python: nothing here needs Keras or TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, Literal, NamedTuple

from gated_resnext import files
from gated_resnext.errors import UserError

# Beyond these a number is a mistake: epochs, images and pixels; rates.
MOST, MOST_RATE = 10**9, 1e38


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase: epochs at constant rates. A gate rate of 0 means that the wiring is fixed."""

    epochs: float
    learning_rate: float
    gate_learning_rate: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _make_float(self, field.name)


def _make_float(one: Any, field: str) -> None:
    """A number of JSON may be whole, and Keras takes no whole rates; what is no number is refused later."""
    value = getattr(one, field)
    if type(value) is int and abs(value) <= MOST_RATE:
        object.__setattr__(one, field, float(value))


class Rounds(NamedTuple):
    """A phase in steps: `rounds` of `steps` each, a round being about one pass over the training images."""

    rounds: int
    steps: int

    @property
    def total(self) -> int:
        """Steps in all rounds."""
        return self.rounds * self.steps


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training schedule.

    Args:
        name: what `--recipe` calls it.
        phases: in order; where the gate rate becomes 0, the top-K wiring is frozen.
        batch_size: global, over all replicas.
        weight_decay: coupled L2 on the kernels (docs/deviations.md, row 16).
        momentum: of the weights; the gates have none.
        crop: "pad" takes a random crop out of the image padded by `pad` pixels; "resized" the random area and aspect
            ratio of Szegedy et al.'s "Going deeper with convolutions".
        pad: pixels on every side, for crop="pad".
        flip: whether half of the images are mirrored.
        test_resize: shorter side of a test image before its central crop; None crops as it is.
        source: where the numbers come from.
    """

    name: str
    phases: tuple[Phase, ...]
    batch_size: int
    weight_decay: float
    momentum: float = 0.9
    crop: Literal["pad", "resized"] = "pad"
    pad: int = 0
    flip: bool = True
    test_resize: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        phases = tuple(phase if isinstance(phase, Phase) else Phase(**phase) for phase in self.phases)
        object.__setattr__(self, "phases", phases)
        for field in ("weight_decay", "momentum"):
            _make_float(self, field)
        if not phases:
            raise ValueError("a recipe needs at least one phase")
        for number, phase in enumerate(phases, start=1):
            rates = phase.learning_rate, phase.gate_learning_rate
            if not (0 < phase.epochs <= MOST and all(0 <= rate <= MOST_RATE for rate in rates)):
                raise ValueError(f"phase {number} needs epochs > 0 and rates >= 0. Received: {phase}")
        learned = [phase.gate_learning_rate > 0 for phase in phases]
        if learned != sorted(learned, reverse=True):
            raise ValueError("once a phase has frozen the wiring, no later phase can learn it")
        for field in ("batch_size", "pad", "test_resize"):
            value = getattr(self, field)
            if not (type(value) is int or (field == "test_resize" and value is None)):
                raise ValueError(f"{field} must be a whole number. Received: {field}={value!r}")
        if not isinstance(self.name, str) or not isinstance(self.source, str) or not isinstance(self.flip, bool):
            raise ValueError("name and source must be text, flip true or false")
        in_range = 1 <= self.batch_size <= MOST and 0 <= self.pad <= MOST
        in_range = in_range and (self.test_resize is None or 1 <= self.test_resize <= MOST)
        if not (in_range and 0 <= self.weight_decay <= MOST_RATE and 0 <= self.momentum < 1):
            raise ValueError(f"recipe {self.name!r} has a batch size, decay, padding or momentum out of range")
        if self.crop not in ("pad", "resized"):
            raise ValueError(f"crop must be 'pad' or 'resized'. Received: crop={self.crop!r}")
        if self.crop == "pad" and self.test_resize is not None:
            given = f"test_resize={self.test_resize}"
            raise ValueError(f"test images of crop='pad' keep their size: leave test_resize out. Received: {given}")

    @property
    def epochs(self) -> float:
        """Epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def shorter_side(self, shape: tuple[int, int, int], own: int | None = None) -> int:
        """Of a test picture before its central crop to `shape`: the recipe's, else the one that pictures `own`."""
        return self.test_resize or own or min(shape[:2])

    def scaled(self, factor: float) -> Recipe:
        """The same schedule with every phase longer or shorter by `factor`.

        Example:

        >>> RECIPES["cifar"].scaled(0.1).epochs
        32.0
        """
        if not 0 < factor < math.inf:
            raise ValueError(f"epochs_scale must be above 0. Received: {factor}")
        if factor == 1:
            return self
        phases = (dataclasses.replace(phase, epochs=phase.epochs * factor) for phase in self.phases)
        return dataclasses.replace(self, phases=tuple(phases))

    def is_part_of(self, whole: Recipe) -> bool:
        """Whether it is that schedule, every phase longer or shorter in one proportion.

        Example:

        >>> RECIPES["cifar"].scaled(0.0075).is_part_of(RECIPES["cifar"])
        True
        """

        def but_for_length(recipe: Recipe) -> Recipe:
            phases = tuple(dataclasses.replace(phase, epochs=1) for phase in recipe.phases)
            return dataclasses.replace(recipe, phases=phases)

        return but_for_length(self) == but_for_length(whole) and all(
            math.isclose(mine.epochs * whole.epochs, theirs.epochs * self.epochs, rel_tol=1e-9)
            for mine, theirs in zip(self.phases, whole.phases, strict=True)
        )

    def fine_tuning(self) -> Recipe:
        """The phases alone that have a smaller rate than the first: the last two of the paper's four.

        Example:

        >>> [(phase.epochs, phase.learning_rate) for phase in RECIPES["photos"].fine_tuning().phases]
        [(50.0, 0.01), (50.0, 0.001)]
        """
        first = self.phases[0].learning_rate
        phases = tuple(phase for phase in self.phases if phase.learning_rate < first)
        return dataclasses.replace(self, name=f"{self.name}, fine-tuning", phases=phases)

    def with_gate_rate(self, rate: float) -> Recipe:
        """The same schedule with gates learned at another rate, which its name then says.

        Example:

        >>> RECIPES["cifar"].with_gate_rate(5).name
        'cifar, gates at 5'
        """
        if not rate > 0:
            raise ValueError(f"gate_learning_rate must be above 0. Received: {rate}")
        if not any(phase.gate_learning_rate for phase in self.phases):
            raise ValueError(f"the recipe {self.name!r} learns no gates")
        phases = tuple(
            dataclasses.replace(phase, gate_learning_rate=float(rate)) if phase.gate_learning_rate else phase
            for phase in self.phases
        )
        return dataclasses.replace(self, name=f"{self.name}, gates at {rate:g}", phases=phases)

    def with_batch_size(self, images: int) -> Recipe:
        """The same schedule, rates included, in batches of another size, which its name then says.

        Example:

        >>> RECIPES["photos"].with_batch_size(16).name
        'photos, batches of 16'
        """
        return dataclasses.replace(self, name=f"{self.name}, batches of {images}", batch_size=images)

    def check_enough(self, name: str, images: int) -> None:
        """Finds that the training images of a data set fill a batch.

        Raises:
            UserError: if they do not.
        """
        if images < self.batch_size:
            raise UserError(
                f"{name} has {images} training images, fewer than the batch of {self.batch_size}: take smaller "
                "batches, by --batch_size=N or recipe.with_batch_size(N)"
            )

    def steps(self, steps_per_epoch: int) -> tuple[Rounds, ...]:
        """Each phase in rounds of equal length, so that a fraction of an epoch keeps its proportion.

        Example:

        >>> [tuple(phase) for phase in RECIPES["cifar"].scaled(0.0125).steps(390)]
        [(2, 292), (1, 488), (1, 244), (1, 244)]
        """
        result = []
        for phase in self.phases:
            rounds = max(1, round(phase.epochs))
            result.append(Rounds(rounds, max(1, round(phase.epochs * steps_per_epoch / rounds))))
        return tuple(result)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields = dataclasses.asdict(self)
        return {**fields, "phases": list(fields["phases"])}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if a field is unknown, missing or out of range.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a recipe: {error}") from None


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "cifar",
            (Phase(120, 0.1, 0.2), Phase(100, 0.1), Phase(50, 0.01), Phase(50, 0.001)),
            batch_size=128,
            weight_decay=5e-4,
            pad=4,
            source="Appendix E.1",
        ),
        Recipe(
            "mini_imagenet",
            (Phase(120, 0.1, 0.2), Phase(100, 0.1), Phase(50, 0.01), Phase(50, 0.001)),
            batch_size=256,
            weight_decay=5e-4,
            source="Appendix E.3",
        ),
        Recipe(
            "imagenet",
            (Phase(30, 0.1, 0.2), Phase(30, 0.1), Phase(30, 0.01), Phase(30, 0.001)),
            batch_size=256,
            weight_decay=1e-4,
            crop="resized",
            test_resize=256,
            source="Appendix E.2",
        ),
        Recipe(
            "digits",
            (Phase(24, 0.1, 0.2), Phase(20, 0.1), Phase(10, 0.01), Phase(10, 0.001)),
            batch_size=64,
            weight_decay=5e-4,
            pad=1,
            flip=False,
            source="the proportions of Appendix E.1; not in the paper",
        ),
        Recipe(
            "photos",
            (Phase(120, 0.1, 0.2), Phase(100, 0.1), Phase(50, 0.01), Phase(50, 0.001)),
            batch_size=64,
            weight_decay=5e-4,
            crop="resized",
            source="Appendix E.1 with the crops of E.2, for photographs of one's own; not in the paper",
        ),
    )
}


def read(
    name: str, epochs_scale: float = 1.0, gate_learning_rate: float | None = None, batch_size: int | None = None
) -> Recipe:
    """A recipe by name, or from a JSON file with the fields of `Recipe`.

    Args:
        name: a key of `RECIPES`, or the path of a .json file.
        epochs_scale: makes every phase longer or shorter, in proportion.
        gate_learning_rate: another rate of the gates, where they are learned.
        batch_size: another one; the rates stay.

    Raises:
        UserError: if a number is out of range, there is none of that name, or the file does not hold one.
    """
    if not 0 < epochs_scale < math.inf:
        raise UserError(f"epochs_scale must be above 0. Received: {epochs_scale}")
    if name not in RECIPES and not name.endswith(".json"):
        raise UserError(f"recipe must be one of {', '.join(RECIPES)} or a .json file. Received: {name!r}")
    try:
        recipe = RECIPES.get(name) or Recipe.from_dict(files.read_json(os.path.expanduser(name)))
        recipe = recipe.scaled(epochs_scale)
        if batch_size is not None and batch_size != recipe.batch_size:
            recipe = recipe.with_batch_size(batch_size)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{name} is no recipe: {error}") from None
    if gate_learning_rate is None:
        return recipe
    try:
        return recipe.with_gate_rate(gate_learning_rate)
    except ValueError as error:
        raise UserError(f"--gate_learning_rate: {error}") from None
