"""The tutorial notebook runs from its first cell to its last in an empty folder."""

import pathlib
import re

import pytest

NOTEBOOK = pathlib.Path(__file__).parent.parent / "docs" / "tutorial.ipynb"
pytestmark = pytest.mark.skipif(
    not NOTEBOOK.is_file(), reason="docs/ is in the checkout only, and this is the installed package"
)
EXECUTE = """
import sys
import nbclient, nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=800, resources={"metadata": {"path": sys.argv[2]}}).execute()
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        print(output.get("text", ""), *output.get("data", {}))
"""


def test_every_cell_runs(run_python, tmp_path, digits_dir):
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, to run a notebook")
    (tmp_path / "tensorflow_datasets").symlink_to(digits_dir)
    done = run_python("-c", EXECUTE, NOTEBOOK, tmp_path, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-3000:]
    top1 = re.search(r"([\d.]+) % of 360 test images, blocks", done.stdout)
    assert top1 and float(top1[1]) > 60  # of ten classes
    assert done.stdout.count("image/png") == 3
    assert re.search(r"98,778 -> \d\d,\d{3} weights, largest difference (0|\d[.\d]*e-0[6-9])\n", done.stdout)
    assert re.search(r"checked on 360 test images", done.stdout)
    labels, server, device = re.findall(r"^(?:labels|server|device) +\[([\d ]+)\]", done.stdout, re.MULTILINE)
    assert server == device and len(labels.split()) == 12
