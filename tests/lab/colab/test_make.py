"""The generated notebook and cell: current, complete, and run by a real kernel in an empty folder."""

import ast
import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lab.colab import make as notebook
from lab.colab.cellmodules import CellModules
from lab.colab.chapters import MODULES

ROOT = Path(__file__).resolve().parents[3]
NAMES = [module.name for module in MODULES if (ROOT / f"{module.name}.py").exists()]
# Imported by functions that only a command line calls, or that do without.
COMMAND_LINE_ONLY = {"preview", "train_eager", "confusion", "pictures", "trained"}
SHORT = {
    "EPOCHS": 1,
    "BATCH_SIZE": 16,
    "WIDTH": 4,
    "WARMUP_EPOCHS": 0.5,
    "DEVICE": "cpu",
    "JIT": False,
    "DATA": "synthetic",
    "LIMIT_TRAIN": 80,
    "LIMIT_TEST": 40,
    "OUT": "out",
}


def with_values(text, values):
    """Form lines with other values; every one of them must be there."""
    lines = text.splitlines()
    for name, value in values.items():
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[place] = f"{name} = {value!r}"
    return "\n".join(lines)


def imported(name, *, inside):
    """Names of this project's modules that a module imports, at its top or inside functions too."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    nodes = list(ast.walk(tree)) if inside else tree.body
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {module for module in found if (ROOT / f"{module}.py").exists()}


# ---- what is generated -------------------------------------------------------------------------------------


def test_the_files_are_what_the_modules_make():
    """If this fails: python notebook.py."""
    assert notebook.main(["--check"]) == 0


def test_check_finds_a_stale_or_missing_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    for name in [*NAMES, "train_eager", "cellmodules"]:
        (tmp_path / f"{name}.py").write_text((ROOT / f"{name}.py").read_text())
    assert notebook.main(["--check"]) == 1
    assert notebook.main([]) == 0 and notebook.main(["--check"]) == 0
    (tmp_path / "ops.py").write_text((ROOT / "ops.py").read_text() + "# changed\n")
    capsys.readouterr()
    assert notebook.main(["--check"]) == 1
    assert capsys.readouterr().err == "davidnet.ipynb is not what the modules make; run python notebook.py\n"
    assert notebook.main(["--what"]) == 2
    (tmp_path / "train_eager.py").write_text('"""About."""\n')
    assert notebook.main([]) == 2 and "the form" in capsys.readouterr().err


def test_the_list_holds_all_that_training_imports_and_each_after_what_it_needs():
    needed, new = set(), {"train_eager"}
    while new:
        needed |= new
        new = set().union(*(imported(name, inside=True) for name in new)) - needed - COMMAND_LINE_ONLY
    assert {module.name for module in MODULES if module.training} == needed - COMMAND_LINE_ONLY
    for place, name in enumerate(NAMES):
        assert imported(name, inside=False) <= {*NAMES[:place], "train_eager"}, name


def test_the_cell_has_the_form_on_top_and_every_module_as_it_is():
    text = (ROOT / "colab_cell.py").read_text()
    lines = text.splitlines()
    assert lines[0] == "#@title Hyperparameters"
    script = (ROOT / "train_eager.py").read_text().splitlines()
    assert [line for line in lines if "#@param" in line] == [line for line in script if "#@param" in line]
    assert max(number for number, line in enumerate(lines) if "#@param" in line) < 200
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    for module in MODULES:
        if module.name in NAMES:
            assert ((ROOT / f"{module.name}.py").read_text() in strings) is module.training, module.name


def test_the_notebook_is_valid_and_has_the_badge_and_no_outputs():
    nbformat = pytest.importorskip("nbformat", reason="the notebook's format is nbformat's to judge")
    content = json.loads((ROOT / "davidnet.ipynb").read_text())
    nbformat.validate(content)
    first, form = content["cells"][:2]
    assert "colab-badge.svg" in "".join(first["source"])
    assert f"colab.research.google.com/github/{notebook.REPOSITORY}/blob/" in "".join(first["source"])
    assert form["source"][0] == "#@title Hyperparameters\n"
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


# ---- modules without files ---------------------------------------------------------------------------------


@pytest.fixture
def cells():
    finder = CellModules()
    yield finder
    sys.meta_path.remove(finder)
    for name in finder.sources:
        sys.modules.pop(name, None)


def test_a_module_is_run_from_its_text_and_can_be_read(cells):
    cells.add("made_up", "import inspect\n\ndef double(x):\n    return 2 * x\n")
    made = importlib.import_module("made_up")
    assert made.double(4) == 8 and made.__name__ == "made_up"
    assert made.inspect.getsource(made.double) == "def double(x):\n    return 2 * x\n"
    import tensorflow as tf

    cells.run(
        "made_loop",
        "def count(n):\n    total = n\n    for i in tf.range(n):\n        total += i\n    return total",
    )
    loop = importlib.import_module("made_loop")
    loop.tf = tf
    assert int(tf.function(loop.count)(tf.constant(4))) == 10  # AutoGraph found the source


def test_a_cell_that_is_run_again_counts_for_those_who_imported_it(cells):
    cells.run("made_up", "value = 1")
    before = importlib.import_module("made_up")
    cells.run("made_up", "def value():\n    return 2")
    assert before.value() == 2 and importlib.import_module("made_up") is before
    import inspect

    assert "return 2" in inspect.getsource(before.value)
    with pytest.raises(ZeroDivisionError):
        cells.run("made_up", "1 / 0")


# ---- in a kernel -------------------------------------------------------------------------------------------


def run(content, folder):
    """Executes a notebook in a kernel of its own, in an empty folder, without this project on its path."""
    nbformat = pytest.importorskip("nbformat", reason="pip install -r requirements-dev.txt")
    nbclient = pytest.importorskip("nbclient", reason="pip install -r requirements-dev.txt")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own parts
        book = nbformat.reads(json.dumps(content), 4)
        client = nbclient.NotebookClient(book, timeout=120, kernel_name="python3")
        client.execute(cwd=str(folder), env=environment)
    return book


def shown(book):
    """All that its cells printed, to stdout and stderr."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def check_result(folder):
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["finished"] and result["hyperparameters"]["width"] == 4 and result["data"]["synthetic"]
    assert not list(folder.glob("*.py"))


def test_the_notebook_trains(tmp_path):
    content = json.loads((ROOT / "davidnet.ipynb").read_text())
    form = content["cells"][1]
    form["source"] = with_values("".join(form["source"]), SHORT)
    content["cells"].append(
        {
            "cell_type": "code", "id": "after", "metadata": {}, "outputs": [], "execution_count": None,
            "source": "import augment\nprint(augment.__file__, EPOCHS, sorted(__import__('os').listdir()))",
        }
    )  # fmt: skip
    book = run(content, tmp_path)
    text = shown(book)
    assert "synthetic test accuracy" in text and "epoch 1/1" in text  # the row, and a live bar
    assert "augment.py in the notebook 1 ['out']" in text
    assert any(
        "image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", [])
    )
    check_result(tmp_path)


def test_the_single_cell_trains_in_a_kernel(tmp_path):
    cell = {"cell_type": "code", "id": "cell", "metadata": {}, "outputs": [], "execution_count": None}
    cell["source"] = with_values((ROOT / "colab_cell.py").read_text(), SHORT)
    content = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    text = shown(run(content, tmp_path))
    assert "synthetic test accuracy" in text and "epoch 1/1" in text
    check_result(tmp_path)


def test_the_single_cell_is_a_script_too(tmp_path):
    path = tmp_path / "elsewhere" / "cell.py"
    path.parent.mkdir()
    path.write_text((ROOT / "colab_cell.py").read_text())
    flags = [f"--{name.lower().replace('_', '-')}={value}" for name, value in SHORT.items() if name != "JIT"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, str(path), *flags, "--no-jit"]
    (folder := tmp_path / "work").mkdir()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "synthetic test accuracy" in done.stdout
    check_result(folder)
