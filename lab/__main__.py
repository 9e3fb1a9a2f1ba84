"""python -m lab: lists the tools and starts them."""

import re
import sys

from lab.base.errors import UserError, exits_with_one_line, nearest
from lab.start import load

TOOLS = {  # name: module, what it does
    "recipes": ("lab.show", "the recipes as a table, how two differ, a network layer by layer"),
    "schedule": ("lab.ladder.schedules", "a learning rate as text or picture"),
    "preview": ("lab.preview", "training images as the network sees them"),
    "convert": ("lab.convert", "a data set to TFRecords"),
    "devices": ("lab.machine.devices", "what a run would train on, and what is wrong"),
    "tune": ("lab.tune.tune", "the best rate, momentum and decay, or others, on held-out images"),
    "report": ("lab.report.report", "what many runs say together: tables, comparisons, a page"),
    "pictures": ("lab.report.figures", "a run's curves, confusion matrix and mistakes"),
    "predict": ("lab.predict", "a run's network on image files; its export"),
    "bench": ("lab.bench.bench", "seconds of a step beside PyTorch, Keras and the tutorial"),
    "pace": ("lab.bench.pace", "seconds of whole recipes beside each other, by the median step"),
    "tpu": ("lab.tpu.lower", "compiles a training step for a TPU without having one"),
    "notebook": ("lab.colab.make", "writes colab_cell.py and davidnet.ipynb from the four files"),
    "posts": ("lab.posts.frame", "the posts' experiments, as post6 norms: what is claimed, and whether it holds"),
    "documents": ("lab.documents", "fills the tables of README and docs from records/"),
}


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["-h"]
    if name in ("-h", "--help"):
        print("python -m lab TOOL [-h], with TOOL one of\n")
        for tool, (_, about) in TOOLS.items():
            print(f"  {tool:<10} {about}")
        print("\nTraining is python train_eager.py.")
        return 0
    if re.fullmatch(r"post\d+", name):
        name, rest = "posts", [name, *rest]
    if name not in TOOLS:
        raise UserError(f"unknown tool {name}; {nearest(name, TOOLS) or 'python -m lab lists them'}")
    sys.argv[0] = f"python -m lab {name}"  # what the tool's -h and messages call it
    code: int = load(TOOLS[name][0], log_level="3" if name == "predict" else "2").main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
