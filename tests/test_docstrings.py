"""The examples of all docstrings give what they say."""

import doctest
import importlib
import pathlib

import pytest

import export
import gated_resnext

ROOMS = [pathlib.Path(package.__file__).parent for package in (gated_resnext, export)]
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(room.parent).with_suffix("").parts).removesuffix(".__init__")
    for room in ROOMS
    for path in room.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module(name, digits_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_dir))
    monkeypatch.setenv("HOME", str(tmp_path))  # where nothing is, and nothing must come
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
    assert not list(tmp_path.iterdir())


def test_most_rooms_have_examples():
    assert len(WITH_EXAMPLES) > 30
