"""The notebooks of examples/ run from the first cell to the last, and hold the outputs of such a run."""

import os
import pathlib
import re
import sys

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(file: pathlib.Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=4)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_outputs_are_stored_and_name_no_machine(file):
    cells = [cell for cell in read(file).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) - 2
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert not re.search(r"(/home/|/root/|/tmp/|/work/|Traceback)", file.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs(file, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join((str(pathlib.Path(sys.executable).parent), os.environ["PATH"])))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    book = read(file)
    nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    stored = [cell for cell in read(file).cells if cell.cell_type == "code"]
    for cell, before in zip([cell for cell in book.cells if cell.cell_type == "code"], stored, strict=True):
        assert [sorted(o.get("data", {})) for o in cell.outputs] == [sorted(o.get("data", {})) for o in before.outputs]
