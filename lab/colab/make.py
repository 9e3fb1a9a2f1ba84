"""Makes davidnet.ipynb and colab_cell.py from the modules, which stay the one source.

    python notebook.py            # writes both
    python notebook.py --check    # exit 1 if one of them is not what the modules make

Both need no file beside them. The notebook has a cell a module, `%%module name`, which runs the code as that module:
what is edited and run again counts at once. Cells of `%%writefile name.py` would show code without running it, leave
the imported module as it was, and leave files behind; one namespace for all would need names that no two modules
share. In colab_cell.py, which is one cell, the modules are texts that are run when they are imported.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lab.base.errors import Parser, UserError, ends_in_a_line
from lab.colab.chapters import MODULES
from lab.runs.record import write_whole

ROOT = Path(__file__).resolve().parent
REPOSITORY = "REPOSITORY"  # "owner/name" on GitHub, for the badge
NOTEBOOK, CELL = "davidnet.ipynb", "colab_cell.py"


# ---- the pieces --------------------------------------------------------------------------------------------

_MAGIC = """\
from IPython.core.magic import register_cell_magic


@register_cell_magic
def module(line: str, cell: str) -> None:
    \"\"\"%%module name: runs the cell as the module of that name, for the cells below to import.\"\"\"
    cells.run(line.strip(), cell)
"""
_RESTART = """\
if __name__ == "__main__":
    memory.restart_with_huge_pages()  # before the slow imports
"""


class Script(NamedTuple):
    """train_eager.py in parts: docstring, imports, hyperparameters, the loop, and its command line."""

    about: str
    imports: str
    form: str
    loop: str
    command_line: str


def _source(name: str) -> str:
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def _docstring(source: str) -> tuple[str, str]:
    """A module's docstring, and the code after it."""
    found = re.match(r'"""(.*?)"""\n+', source, re.DOTALL)
    if found is None:
        raise UserError("a module has no docstring, which the notebook shows above its code; write one")
    return found[1].strip(), source[found.end() :]


def _script() -> Script:
    """Raises UserError where train_eager.py has not the marks by which it is taken apart."""
    about, rest = _docstring(_source("train_eager"))
    found = re.fullmatch(r"(.*?)# fmt: off\n(.*?)# fmt: on\n(.*)(def main\(.*)", rest, re.DOTALL)
    if found is None or _RESTART not in found[1]:
        raise UserError("train_eager.py: the form between fmt: off and on, the restart or main is not found")
    return Script(about, *(part.strip() + "\n" for part in found.groups()))


def _form(lines: str) -> str:
    """The hyperparameters as Colab's form: their comments, which a form hides, become its text."""
    shown = []
    for line in lines.splitlines():
        rule = re.fullmatch(r"# -+( (.*?))? ?-+", line)
        if rule is None:
            shown.append(re.sub(r"^# ", "#@markdown ", line))
        elif rule[2]:
            shown.append(f"#@markdown ---\n#@markdown **{rule[2]}**")
    return "#@title Hyperparameters\n" + "\n".join(shown) + "\n"


def _setup() -> str:
    """The code that lets cells be modules."""
    return f"{_docstring(_source('cellmodules'))[1]}\n\ncells = CellModules()\n"


# ---- the notebook ------------------------------------------------------------------------------------------

_INTRODUCTION = f"""\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{REPOSITORY}/blob/main/{NOTEBOOK})

# DavidNet on CIFAR-10

{{about}}

This notebook is made from the modules by `python notebook.py` and holds all of their code: choose a runtime with \
a GPU, run all cells, and it downloads CIFAR-10 and trains. Or read it downwards; each module needs only those above \
it. It is made for TensorFlow 2.20 and 2.21; where there is another one, \
`%pip install "tensorflow>=2.20,<2.22"` first."""
_HOW = """\
## How the cells become modules

The first line of a cell below, `%%module name`, runs it as a module, which other cells import as if it were a file. \
Edit one, run it again, and the next training uses it."""
_LOOP = """\
## The loop

One step, in its order: batch, gradients, decay, update, counters on the device. The clock stops before the \
evaluation, and nothing is fetched between an epoch's first step and its last."""
_TRAIN = """\
## Training

With the hyperparameters of the form above, as they are now; `train(epochs=10, seed=1)` changes some for once. The \
result is also a file, in the folder printed at the end."""
_TRAIN_CODE = """\
result = train()
folder = Path(OUT) if OUT else max(Path("runs").iterdir(), key=lambda run: run.stat().st_mtime)
"""
_AS_MODULE = """\
sys.modules["train_eager"] = sys.modules["__main__"]  # for modules below that import it
"""
_CURVE = """\
## The learning curve"""
_CURVE_CODE = """\
import matplotlib.pyplot as plt

epochs = [row["epoch"] for row in result["epochs"]]
for name in ("train_accuracy", "test_accuracy"):
    plt.plot(epochs, [row[name] for row in result["epochs"]], marker=".", label=name.replace("_", " "))
plt.xlabel("epoch")
plt.ylabel("accuracy")
plt.legend()
plt.show()
"""

# Module, text and code: what is shown at the end with the modules that are there.
_USES = (
    (
        "predict",
        "## What it says of the test images",
        'import predict\n\ncode = predict.main([str(folder), "--evaluate", *(["--data", DATA] if DATA else [])])\n',
    ),
    (
        "pictures",
        "## The run as pictures",
        "from IPython.display import Image, display\n\nimport pictures\n\n"
        'for picture in pictures.draw(folder, folder / "pictures", data=DATA):\n'
        '    display(picture.missing or Image(folder / "pictures" / picture.name))\n',
    ),
)


def notebook() -> str:
    """The text of davidnet.ipynb."""
    script = _script()
    about = script.about.partition("\n\n")[0]
    cells = [_markdown("introduction", _INTRODUCTION.format(about=about))]
    cells += [_code("hyperparameters", _form(script.form))]
    cells += [_markdown("about-setup", _HOW), _code("setup", f"{_setup()}\n\n{_MAGIC}")]
    cells += _module_cells(training=True)
    imports = script.imports.replace(_RESTART, "")  # a kernel is not to be restarted
    cells += [_markdown("about-loop", _LOOP), _code("loop", f"{imports}\n{script.loop}\n\n{_AS_MODULE}")]
    cells += [_markdown("about-training", _TRAIN), _code("training", _TRAIN_CODE)]
    if "pictures" not in _present(training=False):
        cells += [_markdown("about-curve", _CURVE), _code("curve", _CURVE_CODE)]
    cells += _module_cells(training=False)
    for name, text, code in _USES:
        if name in _present(training=False):
            cells += [_markdown(f"use-of-{name}", text), _code(f"use-{name}", code)]
    content = {
        "cells": cells,
        "metadata": {
            "accelerator": "GPU",
            "colab": {"provenance": [], "toc_visible": True},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _present(*, training: bool) -> list[str]:
    """The names of the modules that there are."""
    return [
        module.name
        for module in MODULES
        if module.training is training and (training or (ROOT / f"{module.name}.py").exists())
    ]


def _module_cells(*, training: bool) -> list[dict[str, Any]]:
    """Two cells a module: what it is, and its code."""
    cells, chapter, names = [], "", _present(training=training)
    for module in MODULES:
        if module.name not in names:
            continue
        doc, code = _docstring(_source(module.name))
        heading = f"## {module.chapter}\n\n" if module.chapter != chapter else ""
        chapter = module.chapter
        cells += [
            _markdown(f"about-{module.name}", f"{heading}### {module.name}\n\n{doc}\n\n*{module.about}*"),
            _code(module.name, f"%%module {module.name}\n{code}"),
        ]
    return cells


def _markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": _lines(text)}


def _code(name: str, text: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": {"cellView": "form"} if text.startswith("#@title") else {},
        "outputs": [],
        "source": _lines(text),
    }


def _lines(text: str) -> list[str]:
    return text.rstrip("\n").splitlines(keepends=True)


# ---- the single cell ---------------------------------------------------------------------------------------

_CELL_HEAD = """\
# DavidNet on CIFAR-10 in one cell: paste it whole into a notebook and run it, or run this file. Made by notebook.py
# from the modules, whose code is below the form; change those, not this.
"""


def colab_cell() -> str:
    """The text of colab_cell.py. Raises UserError if a module cannot be put between triple quotes."""
    script = _script()
    texts = []
    for name in _present(training=True):
        source = _source(name)
        if "'''" in source:
            raise UserError(f"{name}.py holds ''', which would end its text in {CELL}; use another")
        texts.append(f"cells.add(\n    \"{name}\",\n    r'''{source}''',\n)\n")
    return "\n".join(
        [
            _form(script.form) + _CELL_HEAD,
            f'"""{script.about}\n"""\n',
            "# ---- Modules that are not in files. " + 72 * "-" + "\n",
            _setup(),
            *texts,
            "# ---- train_eager.py " + 88 * "-" + "\n",
            f"{script.imports}\n{script.loop}\n\n{script.command_line}",
        ]
    )


# ---- python notebook.py ------------------------------------------------------------------------------------


@ends_in_a_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is stale")
    options = parser.parse_args(arguments)
    for name, text in ((NOTEBOOK, notebook()), (CELL, colab_cell())):
        path = ROOT / name
        if not options.check:
            write_whole(path, text)
            print(f"wrote {name}")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{name} is not what the modules make; run python notebook.py", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
