"""The list of runs that remain has every network once, agrees with the cards, and its commands are ones."""

import json
import pathlib
import re
import shlex
import shutil

import pytest

from gated_resnext import remaining, zoo
from gated_resnext.recipes import RECIPES
from gated_resnext.sources import open_source
from zoo.entries import ENTRIES

PAGE = zoo.FOLDER / "cards" / "README.md"


def rows(page):
    """Cells of every network's line, by network."""
    found = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert len({name for name, *_ in found}) == len(found), "a network twice"
    return {name: cells for name, *cells in found}


def commands(page):
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [shlex.split(command) for block in blocks for command in block.replace("&&\n", "\n").splitlines()]


def test_the_page_is_the_functions():
    if not PAGE.is_file():
        pytest.skip("zoo/cards/README.md is in the checkout only, and this is the installed package")
    text = PAGE.read_text(encoding="utf-8")
    assert text == remaining.page(), f"write it anew: {re.search('^`(.*)`$', text, re.MULTILINE)[1]}"


def test_every_network_is_listed_once_in_the_order_of_their_worth():
    page = remaining.page()
    assert set(rows(page)) == set(ENTRIES)
    assert list(rows(page))[:8] == [
        f"{dataset}_20_4_8_{wiring}"
        for dataset in ("cifar10", "mini_imagenet")
        for wiring in ("full", "k1", "k4", "random_k4")
    ]
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert [title.split(":")[0] for title in titles[2:5]] == [
        "CIFAR-10, {29,8,8}",
        "Mini-ImageNet, {29,8,8}",
        "CIFAR-10, {29,64,8}",
    ]
    for title, section in zip(titles, page.split("\n## ")[1:], strict=True):
        assert ("could not be had here" in section) == title.startswith(("CIFAR-100,", "ImageNet,")), title


def test_cards_are_told_and_whole_schedules_need_no_command(tmp_path, monkeypatch):
    shutil.copytree(zoo.FOLDER / "cards", tmp_path / "cards")
    card = zoo.card("digits_11_4_4_k1")
    half = {**card, "top1": 0.5, "epochs": 32.0, "seconds": 1800.0, "hardware": "an abacus"}
    whole = {**card, "top1": 0.25, "epochs": 63.95, "seconds": 3600.0, "hardware": "an abacus"}
    for name, fields in {"digits_11_4_4_k2": half, "digits_11_4_4_full": whole}.items():
        (tmp_path / "cards" / f"{name}.json").write_text(json.dumps(fields))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    page = remaining.page()
    assert rows(page)["digits_11_4_4_k2"][::2] == ["50.00 % after 32 of 64 epochs", "1 (an abacus)"]
    assert rows(page)["digits_11_4_4_full"][::2] == ["25.00 % after 63.95 of 64 epochs", "1 (an abacus)"]
    assert rows(page)["digits_11_4_4_random_k2"][::2] == ["", ""]
    named = {argument for command in commands(page) for argument in command if argument.startswith("--entry=")}
    assert "--entry=digits_11_4_4_k2" in named and "--entry=digits_11_4_4_full" not in named
    unfinished = {name for name in ENTRIES if not (zoo.card(name) and zoo.card(name)["epochs"] > 63)}
    assert named == {f"--entry={name}" for name in unfinished}


def test_multiply_adds_are_of_the_whole_schedule():
    # 3 passes of 1,437 images of 64 epochs.
    arch = zoo.architecture("digits_11_4_4_k1")
    assert remaining.multiply_adds("digits_11_4_4_k1") == 3 * arch.multiply_adds() * 1437 * 64
    assert float(rows(remaining.page())["cifar10_20_4_8_full"][1]) == pytest.approx(
        3 * zoo.architecture("cifar10_20_4_8_full").multiply_adds() * 50_000 * RECIPES["cifar"].epochs / 1e15, rel=5e-3
    )


def test_the_table_of_data_sets_counts_their_images(digits_dir):
    assert open_source("optical_digits", digits_dir).sizes["train"] == zoo.DATASETS["optical_digits"].train_images
    assert all(info.train_images for info in zoo.DATASETS.values())


def test_commands_have_the_flags_of_the_commands(run_python, tmp_path):
    known = {}
    for module in ("train", "publish", "reproduce"):
        text = run_python("-m", f"gated_resnext.{module}", "--help", cwd=tmp_path).stdout
        known[f"gated_resnext.{module}"] = set(re.findall(r"^  --(?:\[no\])?(\w+):", text, re.MULTILINE))
    found = commands(remaining.page())
    assert len(found) > 2 * 60
    for python, m, module, *arguments in found:
        assert (python, m) == ("python", "-m")
        assert arguments and {argument.split("=")[0] for argument in arguments} <= {f"--{n}" for n in known[module]}
    by_workdir = {}
    for _, _, module, *arguments in found:
        for argument in arguments:
            if argument.startswith("--workdir="):
                by_workdir.setdefault(argument, []).append(module)
    assert set(map(tuple, by_workdir.values())) == {("gated_resnext.train", "gated_resnext.publish")}
    for workdir in by_workdir:
        place = pathlib.PurePath(workdir.removeprefix("--workdir="))
        assert place.parts[:2] == ("runs", "reproduce") and place.name.removesuffix("-0") in ENTRIES
