"""The tutorial does what it shows, cell by cell, in the kernel of a notebook."""

import nbformat
import pytest
from nbclient import NotebookClient

from support import ROOT

PATH = ROOT / "docs" / "tutorial.ipynb"


@pytest.mark.slow
def test_the_tutorial_runs_and_shows_what_it_is_committed_with(tmp_path):
    notebook = nbformat.read(PATH, as_version=4)
    shown = [shape_of(cell) for cell in notebook.cells]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    assert [shape_of(cell) for cell in notebook.cells] == shown
    assert "stopped_early" in str(notebook.cells[-3].outputs)
    assert PATH.stat().st_size < 200_000


def shape_of(cell):
    """The kinds of what a cell shows; texts come in pieces."""
    return {(output.output_type, output.get("name")) for output in cell.get("outputs", [])}
