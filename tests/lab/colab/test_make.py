"""The generated cell and notebook: current, the four files and nothing else, and run by a kernel in an empty folder."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train_eager
from lab.base.errors import UserError
from lab.colab import make

ROOT = Path(__file__).resolve().parents[3]
CORE = ("schedule.py", "model.py", "data.py", "train_eager.py")
SMALL = {"epochs": 2, "batch_size": 16, "width": 4, "learning_rate": 0.1, "seed": 7, "device": "cpu"}


@pytest.fixture(scope="module")
def cell():
    return (ROOT / "colab_cell.py").read_text()


@pytest.fixture(scope="module")
def notebook():
    return json.loads((ROOT / "davidnet.ipynb").read_text())


def code_of(notebook):
    return ["".join(part["source"]) for part in notebook["cells"] if part["cell_type"] == "code"]


def definitions(text):
    """What each function and class at the top of a program is, by its name, as a syntax tree."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: ast.dump(node) for node in nodes}


# ---- what is generated -------------------------------------------------------------------------------------


def test_both_are_what_the_four_files_make():
    """If this fails: python -m lab notebook."""
    assert make.main(["--check"]) == 0


def test_check_tells_a_stale_or_missing_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(make, "ROOT", tmp_path)
    for name in CORE:
        shutil.copy(ROOT / name, tmp_path)
    assert make.main(["--check"]) == 1 and len(list(tmp_path.iterdir())) == 4
    assert make.main([]) == 0 and make.main(["--check"]) == 0
    with (tmp_path / "model.py").open("a") as file:
        file.write("\n\nCHANGED = 1\n")
    capsys.readouterr()
    assert make.main(["--check"]) == 1
    stale = "colab_cell.py and davidnet.ipynb are not what the four files make; run python -m lab notebook\n"
    assert capsys.readouterr().err == stale
    assert make.main([]) == 0 and "CHANGED = 1" in (tmp_path / "colab_cell.py").read_text()
    assert make.main(["--what"]) == 2


def test_a_name_that_two_files_define_is_refused(tmp_path):
    for name in CORE:
        shutil.copy(ROOT / name, tmp_path)
    with (tmp_path / "schedule.py").open("a") as file:
        file.write("\n\n_OTHER, _downloaded = 1, 2\n")
    with pytest.raises(UserError, match=r"^_downloaded: defined twice in schedule\.py, model"):
        make.texts(tmp_path)


def test_a_part_that_the_notebook_leaves_out_is_refused():
    with pytest.raises(UserError, match=r"leaves out form, model.py.*\{form\}"):
        template = Path(make.__file__).with_name("notebook.md").read_text()
        make.notebook(make.take_apart(ROOT), template.replace("{model.py}", "").replace("{form}", "{from}"))


def test_the_cell_is_the_four_files(cell):
    """Each function, class, constant and docstring, under its file's name; and the form first."""
    lines = cell.splitlines()
    for name in CORE:
        text = (ROOT / name).read_text()
        kept = {key: value for key, value in definitions(cell).items() if key in definitions(text)}
        assert kept == definitions(text)
        below = iter(lines if name == "train_eager.py" else lines[lines.index(f"# ==== {name} ".ljust(110, "=")) :])
        for line in ast.get_docstring(ast.parse(text), clean=False).splitlines()[1:-1]:
            assert line in below, line
    script = (ROOT / "train_eager.py").read_text().splitlines()
    assert [line for line in lines if "#@param" in line] == [line for line in script if "#@param" in line]
    assert max(number for number, line in enumerate(lines) if "#@param" in line) < 40
    assert not re.search(r"^ *(from|import) (lab|data|model|schedule|train_eager)\b", cell, re.MULTILINE)
    assert "lab_main" not in cell
    assert len(lines) <= 950


def test_the_notebook_is_the_four_files_too(notebook):
    code = "\n".join(part for part in code_of(notebook) if "%pip" not in part)
    expected = {key: value for name in CORE for key, value in definitions((ROOT / name).read_text()).items()}
    assert definitions(code) == {key: value for key, value in expected.items() if key not in ("add_flags", "main")}
    assert len((ROOT / "davidnet.ipynb").read_bytes()) <= 60_000


def test_neither_lacks_a_name():
    """As ruff sees it: nothing undefined, nothing defined twice."""
    for name in ("colab_cell.py", "davidnet.ipynb"):
        command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select=F821,F811", name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_notebook_is_valid_and_holds_no_outputs(notebook):
    nbformat = pytest.importorskip("nbformat", reason="the notebook's format is nbformat's to judge")
    nbformat.validate(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for part in notebook["cells"]:
        assert part["cell_type"] == "markdown" or (part["outputs"], part["execution_count"]) == ([], None)
    assert 10 <= len(code_of(notebook)) <= 13
    assert code_of(notebook)[2].startswith("#@title Hyperparameters\n")


def test_it_installs_what_the_requirements_for_tpus_name(notebook):
    pinned = re.findall(r"^[\w-]+==.*", (ROOT / "requirements-tpu.txt").read_text(), re.MULTILINE)
    (line,) = re.findall(r"%pip install --quiet (.*)", code_of(notebook)[0])
    assert line.split() == pinned


@pytest.mark.parametrize("found, colab, installs", [(True, True, 0), (False, True, 1), (False, False, 0)])
def test_it_installs_nothing_where_tensorflow_is(notebook, monkeypatch, found, colab, installs):
    """Colab's CPU and GPU runtimes bring a TensorFlow that will do; its TPU runtimes bring none."""
    calls = []
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if found else None)
    exec(re.sub(r"%pip (.*)", r"install('\1')", code_of(notebook)[0]), {"install": calls.append})
    assert len(calls) == installs


# ---- what is run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(small_data):
    """The rows of the script with the same hyperparameters."""
    _, rows = train_eager.train(data=small_data, **SMALL)
    return without_times(rows)


def without_times(rows):
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def edited(text, values):
    """The form with other values, as a user would write them; each line must be there once."""
    lines = text.splitlines()
    for name, value in values.items():
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"{name.upper()} = ")]
        lines[place] = f"{name.upper()} = {value!r}"
    return "\n".join(lines)


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def outputs_of(cells, folder, *, errors=False):
    """Runs cells of code in a kernel of their own, in an empty folder, without this project on its path."""
    nbformat = pytest.importorskip("nbformat", reason="pip install -r requirements-dev.txt")
    nbclient = pytest.importorskip("nbclient", reason="pip install -r requirements-dev.txt")
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own parts
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
        client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3", allow_errors=errors)
        client.execute(cwd=str(folder), env=environment())
    return [output for part in book.cells for output in part.outputs]


LAST = "import json, os\nprint('LEFT', json.dumps([rows, sorted(os.listdir())]))"


def rows_and_files(outputs):
    """What the cell LAST printed; the bar, on stderr, may come between lines of stdout, or after them."""
    text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    rows, names = json.loads(re.search(r"^LEFT (.*)$", text, re.MULTILINE)[1])
    return without_times(rows), names


@pytest.mark.long
def test_the_cell_in_a_kernel_trains_as_the_script_does(cell, small_data, expected, tmp_path):
    outputs = outputs_of([edited(cell, {**SMALL, "data": small_data}), LAST], tmp_path / "empty")
    assert rows_and_files(outputs) == (expected, [])


@pytest.mark.long
def test_the_cell_is_a_script_too(cell, small_data, expected, tmp_path):
    (tmp_path / "cell.py").write_text(cell)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command = [sys.executable, str(tmp_path / "cell.py"), *flags, f"--data={small_data}", "--checkpoint-dir=out"]
    (folder := tmp_path / "empty").mkdir()
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["out"]
    with np.load(folder / "out" / "last.npz") as saved:
        assert without_times(json.loads(str(saved["about"]))["rows"]) == expected


@pytest.mark.long
def test_the_notebook_trains_shows_its_curve_and_goes_on(notebook, small_data, expected, tmp_path):
    """Run top to bottom; then, as after a disconnect, its form and its training again from the checkpoint."""
    code = code_of(notebook)
    code[2] = edited(code[2], {**SMALL, "data": small_data, "checkpoint_dir": "kept", "stop_after": 1})
    again = [edited(code[2], {"stop_after": 0}), next(part for part in code if "rows = train()" in part), LAST]
    outputs = outputs_of([*code, *again], tmp_path / "empty")
    assert rows_and_files(outputs) == (expected, ["kept"])
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2  # the curve, the test images


@pytest.mark.long
@pytest.mark.parametrize("mistake", [{"batch_size": 0}, {"data": "nowhere"}])
def test_a_mistake_in_a_kernel_is_one_line(cell, mistake, tmp_path):
    *_, error = outputs_of([edited(cell, {**SMALL, **mistake})], tmp_path / "empty", errors=True)
    assert error["ename"] == "UserError"
    (line,) = error["traceback"]
    assert next(iter(mistake)) in line and "\n" not in line
