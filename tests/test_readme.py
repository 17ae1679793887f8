"""Every block of the README runs, in one folder, in order; its table is the zoo's."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import links
import pytest

from gated_resnext import zoo

README = pathlib.Path(__file__).parent.parent / "README.md"
# Of each data set one row of each kind that the paper or a card gives a number for.
SHOWN = ("digits_*", "cifar10_20_4_8_*", "mini_imagenet_20_4_8_*", "cifar100_29_8_8_*", "cifar100_29_64_8_*")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_block_runs(tmp_path, digits_dir):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": str(tmp_path)}
    shutil.copytree(digits_dir, tmp_path / "tensorflow_datasets")

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) >= 3
    for line in commands:
        assert line.startswith("python -m "), line
        # The whole schedule takes over a minute; the test runs two hundredths of it.
        short = ["--epochs_scale=0.02"] if "gated_resnext.train" in line else []
        run(sys.executable, *line.split()[1:], *short)
    for name in ("wiring.svg", "gates.html", "evaluation/confusion.png", "evaluation/evaluation.json"):
        assert (tmp_path / name).is_file(), name
    printed = [run(sys.executable, "-c", block) for block in blocks("python")]
    assert printed[0].strip().endswith(")") and "->" in printed[0]
    assert printed[1].split() == ["(2,)", "(1,", "10)", "(1,", "10)"]
    assert (tmp_path / "models" / "compose.yaml").is_file()
    assert printed[2].split() == ["204890", "11036", "59"]  # the figure in the text
    assert printed[3].startswith("260442 ")
    assert float(printed[4].split()[-1]) > 0.93  # as in docs/transfer.md


def test_the_table_is_the_zoos():
    text = README.read_text(encoding="utf-8")
    table = re.search(r"<!-- zoo -->\n(.*)\n<!-- /zoo -->", text, re.DOTALL)
    tables = [zoo.markdown(pattern).splitlines() for pattern in SHOWN]
    assert table and table.group(1).splitlines() == [*tables[0], *(row for rows in tables[1:] for row in rows[2:])]


def test_it_counts_the_networks():
    assert f"lists all {len(zoo.names())}," in README.read_text(encoding="utf-8")


@pytest.mark.parametrize(("link", "anchor"), links.of_page(README))
def test_links_lead_to_files_and_to_headings(link, anchor):
    if not (README.parent / "setup.py").is_file() and not (README.parent / link).exists():
        pytest.skip(f"{link} is in the checkout only, and this is the installed package")
    links.check(README, link, anchor)
