"""Versions of what computes, whatever name it was installed under."""

import importlib.metadata

import keras

from gated_resnext.versions import version


def test_a_distribution_of_another_name_says_its_modules_version(monkeypatch):
    assert version("keras") == keras.__version__ == importlib.metadata.version("keras")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert version("keras") == keras.__version__
    assert version("no_such_module") == "unknown"
