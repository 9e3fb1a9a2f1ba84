"""A set of results as one HTML page that needs nothing else: no network, no other file.

What comes from files is escaped, and the page's own policy lets a browser run and load nothing but what is written
here: its script and style are named by their hashes.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lab.base.errors import UserError
from lab.ladder import published, recipes
from lab.report import groups, predictions, tables
from lab.report.evidence import Report, Section
from lab.report.groups import Group
from lab.report.predictions import Mistake, Predictions
from lab.report.tables import Table
from lab.runs.results import Run

COLOURS = 8  # of curves, in page.css
SHADES = 10  # of a confusion matrix' cells, in page.css
IMAGES = 24  # mistakes shown of a run


def html(report: Report) -> str:
    """The page.

    Raises UserError if a run's predictions.json is damaged, or the page's script or style is missing.
    """
    style, script = _asset("page.css"), _asset("page.js")
    runs, title = report.runs, _title(report)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(_subtitle(runs))}</p>',
        *(_section(section, report.target) for section in report.sections),
        _comparison(report),
        "<h2>Learning curves</h2>",
        _curves(runs, report),
        "<h2>Runs</h2>",
        _table(tables.of_runs(runs)),
        "<h2>Speed</h2>",
        _table(tables.of_speeds(runs, report.target, report.peak_tflops)),
        "<h2>Hyperparameters</h2>",
        *(_hyperparameters(group) for section in report.sections for group, _ in section.groups),
        _predictions(runs),
        "<footer>",
        *(f"<p>{escape(note)}</p>" for note in tables.footnotes(report.target)),
        "</footer>",
    ]
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    path = Path(__file__).with_name(name)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; restore it") from None


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _title(report: Report) -> str:
    names = [section.name for section in report.sections if section.name]
    if names:
        return " beside ".join(names)
    labels = [group.label for group, _ in report.sections[0].groups]
    runs = report.runs
    what = labels[0] if len(labels) == 1 else ", ".join(dict.fromkeys(run.recipe for run in runs))
    return f"{what}: {len(runs)} runs" if len(runs) > 1 else f"{what}, seed {runs[0].seed}"


def _subtitle(runs: Sequence[Run]) -> str:
    """The machines, precisions and versions of TensorFlow."""
    return "; ".join(dict.fromkeys(tables.machine(run) for run in runs))


# ---- tables ------------------------------------------------------------------------------------------------


def _table(table: Table) -> str:
    def cell(kind: str, index: int, text: str) -> str:
        words = f' class="word{" path" if table.heads[index] == "file" else ""}"' if index in table.words else ""
        return f"<{kind}{words}>{escape(text)}</{kind}>"

    def line(kind: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(cell(kind, index, text) for index, text in enumerate(texts)) + "</tr>"

    head, body = line("th", table.heads), "\n".join(line("td", row) for row in table.rows)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _section(section: Section, target: float) -> str:
    parts = [f"<h2>{escape(section.name or 'Accuracy')}</h2>"]
    for group, summaries in section.groups:
        parts.append(f"<h3>{escape(group.label)}</h3>")
        parts += [f'<p class="note">{escape(note)}</p>' for note in group.notes]
        parts.append(_table(tables.of_summaries(summaries, target)))
        parts.append(f'<p class="quiet">Median seconds: {escape(tables.medians(group, target))}.</p>')
    if section.unfinished:
        parts.append(f'<p class="note">{escape(tables.left_out(section.unfinished))}</p>')
    return "\n".join(parts)


def _comparison(report: Report) -> str:
    parts = []
    if report.comparisons:
        parts += ["<h2>Comparison</h2>", _table(tables.of_comparison(report.comparisons, report.difference))]
    parts += [f'<p class="quiet">{escape(note)}</p>' for note in report.notes]
    return "\n".join(parts)


def _hyperparameters(group: Group) -> str:
    """Those of a group's first run; the ones in which its runs differ say so."""
    entries = []
    for name, value in group.runs[0].hyperparameters.items():
        values = {str(run.hyperparameters.get(name)) for run in group.runs}
        text = str(value) if len(values) == 1 else f"{len(values)} values"
        mark = ' class="changed"' if name in group.changed else ""
        entries.append(f"<div{mark}><dt>{escape(name)}</dt><dd>{escape(text) or '&nbsp;'}</dd></div>")
    label = f"{group.label}" + (" (what is changed stands out)" if group.changed else "")
    return f'<details><summary>{escape(label)}</summary><dl class="columns">{"".join(entries)}</dl></details>'


# ---- curves ------------------------------------------------------------------------------------------------


def _curves(runs: Sequence[Run], report: Report) -> str:
    data = {"series": _series(runs, report), "published": _published(runs)}
    # "</script>" and "<!--" in a name would end or change the element that holds it.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return (
        '<div id="curves"><div class="bar"></div>\n'
        '<div class="wide"><svg viewBox="0 0 960 420" tabindex="0" role="img" aria-label="Learning curves; '
        'the arrow keys show the values of an epoch"></svg></div>\n<div id="tip" hidden></div>\n'
        "<noscript>The curves need JavaScript; their numbers are in each result.json.</noscript></div>\n"
        f'<script type="application/json" id="curve-data">{text}</script>'
    )


def _series(runs: Sequence[Run], report: Report) -> list[dict[str, Any]]:
    """A run's curves each. Few runs have a colour each, many that of their group."""
    labels: Mapping[Path, str] = {
        run.path: f"{section.name}: {group.label}" if section.name else group.label
        for section in report.sections
        for group, _ in section.groups
        for run in group.runs
    }
    series: list[dict[str, Any]] = []
    colours: dict[str, int] = {}
    for number, run in enumerate(runs, start=1):
        name = f"{number}: {run.recipe}, seed {run.seed}"
        kind = name if len(runs) <= COLOURS else labels.get(run.path, "unfinished")
        series.append(
            {
                "name": name,
                "group": kind,
                "colour": colours.setdefault(kind, len(colours) % COLOURS),
                "train_loss": [epoch.train_loss for epoch in run.epochs],
                "test_loss": [epoch.test_loss for epoch in run.epochs],
                "train_accuracy": [epoch.train_accuracy for epoch in run.epochs],
                "test_accuracy": [epoch.test_accuracy for epoch in run.epochs],
            }
        )
    return series


def _published(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The published curve of DavidNet's training, as far as the runs go, if one of them is that recipe unchanged."""
    ours = [run for run in runs if run.recipe == recipes.ROOT and groups.is_unchanged(run)]
    if not ours:
        return None
    points = published.LEARNING_CURVE[: max(len(run.epochs) for run in ours)]
    return {
        "name": "published, training (mean of 4 or 5)",
        "train_loss": [loss for loss, _, _ in points],
        "train_accuracy": [accuracy for _, _, accuracy in points],
    }


# ---- predictions -------------------------------------------------------------------------------------------


def _predictions(runs: Sequence[Run]) -> str:
    """The confusion matrix and mistakes of each run that has them in its folder; the first one's are open."""
    parts: list[str] = []
    for number, run in enumerate(runs, start=1):
        if run.folder is None or not (run.folder / predictions.NAME).exists():
            continue
        name = escape(f"Run {number}: {run.recipe}, seed {run.seed}")
        of_run = predictions.read(run.folder)
        if of_run is None:
            parts.append(f'<p class="note">{name}: {escape(predictions.missing(run.folder))}</p>')
            continue
        body = f"{_confusion(of_run)}\n<h3>Mistakes</h3>\n{_images(of_run)}"
        parts.append(f"<details{'' if parts else ' open'}><summary>{name}</summary>\n{body}\n</details>")
    return "\n".join(["<h2>Predictions</h2>", *parts]) if parts else ""


def _confusion(of_run: Predictions) -> str:
    """Rows are the true classes, columns the predicted ones; right and wrong are shaded apart. Of many classes the
    most frequent confusions alone."""
    if len(of_run.classes) > predictions.SHOWN_CLASSES:
        pairs = predictions.most_frequent(of_run.confusion, of_run.classes)
        titles = ("most often the class", "was taken for", "times", "of images")
        shown = [(one, other, str(count), str(total)) for one, other, count, total in pairs]
        return f"<h3>Confusions</h3>\n{_table(Table(titles, shown, words=(0, 1)))}"
    wrong = [row[j] for i, row in enumerate(of_run.confusion) for j in range(len(row)) if i != j]
    most = max([1, *wrong])
    lines = []
    for i, (name, row) in enumerate(zip(of_run.classes, of_run.confusion, strict=True)):
        total, cells = sum(row), []
        for j, count in enumerate(row):
            share = count / max(total, 1) if i == j else count / most
            shade = f"{'r' if i == j else 'w'}{min(SHADES - 1, int(share * SHADES))}"
            cells.append(f'<td class="{shade}">{count}</td>')
        right = tables.percent(row[i] / total, 1) if total else tables.NONE
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}<td class="share">{right}</td></tr>')
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in of_run.classes)
    return (
        "<h3>Confusion matrix</h3>\n"
        '<p class="quiet">A row is a true class, a column what its images were taken for; at the end, how many '
        'percent are right.</p>\n<div class="wide"><table class="confusion">\n'
        f"<thead><tr><th></th>{heads}<th>% right</th></tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n"
        "</tbody></table></div>"
    )


def _images(of_run: Predictions) -> str:
    if not of_run.mistakes:
        return '<p class="quiet">None was recorded.</p>'
    shown = predictions.most_confident(of_run, IMAGES)
    about = f"The {len(shown)} of {len(of_run.mistakes)} recorded ones that the network was most confident about."
    figures = "\n".join(_figure(mistake, of_run.classes) for mistake in shown)
    return f'<p class="quiet">{about}</p>\n<div class="images">\n{figures}\n</div>'


def _figure(mistake: Mistake, classes: Sequence[str]) -> str:
    picture = base64.b64encode(mistake.png).decode()
    label, predicted = escape(classes[mistake.label]), escape(classes[mistake.predicted])
    return (
        f'<figure><img src="data:image/png;base64,{picture}" width="32" height="32" '
        f'alt="test image {mistake.index}"><figcaption>{label}, taken for <b>{predicted}</b>, '
        f"{tables.percent(mistake.probability, 0)} %<br>test image {mistake.index}</figcaption></figure>"
    )
