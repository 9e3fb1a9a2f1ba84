"""The page: it stands alone, and what names and images contain stays text."""

import base64
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import pytest

from lab.base.files import encode
from lab.report import predictions as stored
from lab.report import report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, the text, and that every element is closed where it should be."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag=None):
        """All text, or that inside elements of one name."""
        return "".join(data for inside, data in self.texts if tag in (None, inside))


def png(side=32):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes([40, 90, 160]) * side for _ in range(side)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def predictions(classes=("cat", "dog")):
    mistakes = [
        {
            "index": 17,
            "label": 0,
            "predicted": 1,
            "probability": 0.97,
            "png": base64.b64encode(png()).decode(),
        },
        {
            "index": 4,
            "label": 1,
            "predicted": 0,
            "probability": 0.99,
            "png": base64.b64encode(png()).decode(),
        },
    ]
    return {"classes": list(classes), "confusion": [[90, 10], [4, 96]], "mistakes": mistakes}


@pytest.fixture
def page(tmp_path):
    """The page of paths, parsed, and its text."""

    def make(*paths):
        out = tmp_path / "page.html"
        assert report.main(["--html", str(out), *map(str, paths)]) == 0
        text = out.read_text(encoding="utf-8")
        return Page(text), text

    return make


def test_it_stands_alone(page, leave, tmp_path, request):
    pytest.importorskip("scipy", reason="records hold two runs of a recipe")
    folder = leave(tmp_path / "run", forward_gflop_per_image=0.76).parent
    stored.write(folder, predictions())
    parsed, text = page(folder, request.config.rootpath / "records")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    names = {name for name, _ in parsed.elements}
    assert not names & {"link", "iframe", "object", "embed", "base", "form"}
    for name, attributes in parsed.elements:
        assert not {"href", "action", "srcset", "style"} & attributes.keys()
        assert not [key for key in attributes if key.startswith("on")]
        if "src" in attributes:
            assert name == "img" and attributes["src"].startswith("data:image/png;base64,")
    assert sum(name == "img" for name in (name for name, _ in parsed.elements)) == 2


def test_its_policy_names_its_script_and_style_by_their_hashes(page, leave, tmp_path):
    _, text = page(leave(tmp_path / "run"))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_curves_are_the_epochs(page, leave, tmp_path):
    parsed, _ = page(leave(tmp_path / "run", accuracies=(0.25, 0.5, 0.75)))
    scripts = [data for inside, data in parsed.texts if inside == "script"]
    data = json.loads(scripts[0])
    (series,) = data["series"]
    assert series["test_accuracy"] == [0.25, 0.5, 0.75]
    assert series["train_loss"] == pytest.approx([2.0, 1.0, 2 / 3])
    assert data["published"] is None  # three epochs are another training than DavidNet's 24


def test_davidnets_published_curve_is_behind_its_own(page, leave, tmp_path):
    path = leave(tmp_path / "run", accuracies=(0.4, 0.6, 0.7), hyperparameters={"epochs": 24})
    parsed, _ = page(path)
    data = json.loads(next(data for inside, data in parsed.texts if inside == "script"))
    assert data["published"]["train_loss"] == [1.6125, 0.92868, 0.72474]


@pytest.mark.parametrize("change", [{"cutout": 0}, {"holdout": 5000}, {"limit_train": 1000}])
def test_and_behind_no_other(page, leave, tmp_path, change):
    path = leave(tmp_path / "run", accuracies=(0.4, 0.6), hyperparameters={"epochs": 24, **change})
    parsed, _ = page(path)
    data = json.loads(next(data for inside, data in parsed.texts if inside == "script"))
    assert data["published"] is None


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&<!--"


def test_hostile_names_stay_text(page, leave, tmp_path):
    path = leave(
        tmp_path / "<img src=x>",
        recipe=HOSTILE,
        hyperparameters={"network": HOSTILE, HOSTILE: HOSTILE},
        precision=HOSTILE,
        versions={"tensorflow": HOSTILE},
        hardware={"processor": HOSTILE, "cores": 2, "accelerators": [HOSTILE]},
    )
    stored.write(path.parent, predictions((HOSTILE, "dog")))
    parsed, text = page(path)
    tags = [name for name, _ in parsed.elements]
    assert tags.count("script") == 2 and tags.count("img") == 2
    assert all("onerror" not in attributes for _, attributes in parsed.elements)
    assert text.count("alert(1)</script>") == 0
    assert HOSTILE in parsed.text("h1") and HOSTILE in parsed.text("dd") and HOSTILE in parsed.text("dt")
    assert HOSTILE in parsed.text("figcaption") and HOSTILE in parsed.text("th")
    data = json.loads(next(data for inside, data in parsed.texts if inside == "script"))
    assert HOSTILE in data["series"][0]["name"]


def test_confusion_and_mistakes_are_those_of_the_run(page, leave, tmp_path):
    path = leave(tmp_path / "run")
    _, text = page(path)
    assert "Confusion" not in text
    stored.write(path.parent, predictions())
    parsed, text = page(path)
    cells = [int(cell) for cell in re.findall(r'<td class="[rw]\d">(\d+)</td>', text)]
    assert cells == [90, 10, 4, 96]
    assert ">90.0<" in text and ">96.0<" in text
    captions = parsed.text("figcaption")
    assert captions.index("test image 4") < captions.index("test image 17")  # the most confident first
    assert "dog, taken for " in captions and "99 %" in captions


def changed_text(folder):
    path = folder / "predictions.json"
    path.write_text(path.read_text().replace("90", "95", 1))


def without_sum(folder):
    (folder / "predictions.json").write_text(json.dumps(predictions()))


@pytest.mark.parametrize("spoil", [changed_text, without_sum])
def test_changed_predictions_are_refused(leave, tmp_path, capsys, spoil):
    folder = leave(tmp_path / "run").parent
    stored.write(folder, predictions())
    spoil(folder)
    assert report.main(["--html", str(tmp_path / "page.html"), str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "predictions.json is damaged, edited" in line and "--evaluate writes it" in line


def test_predictions_of_another_result_are_not_shown(page, leave, tmp_path, made_result):
    """Of another run, copied there; and of the epoch before, to which the run went on."""
    first, second = leave(tmp_path / "runs" / "a", seed=1).parent, leave(tmp_path / "runs" / "b", seed=2).parent
    stored.write(first, predictions())
    (second / "predictions.json").write_bytes((first / "predictions.json").read_bytes())
    _, text = page(tmp_path / "runs")
    assert text.count('class="confusion"') == 1
    assert "Run 2: davidnet, seed 2: predictions.json is of another run" in text
    assert stored.read(second) is None and "python -m lab predict" in stored.missing(second)
    (first / "result.json").write_text(encode(made_result(seed=1, accuracies=(0.5, 0.9, 0.91))))
    _, text = page(tmp_path / "runs")
    assert 'class="confusion"' not in text and text.count("or of an earlier epoch of this one") == 2


def test_of_a_hundred_classes_the_most_frequent_confusions_are_listed(page, leave, tmp_path):
    counts = [[9 * (row == column) for column in range(100)] for row in range(100)]
    counts[3][7], counts[9][1] = 4, 5
    folder = leave(tmp_path / "run").parent
    content = predictions() | {"classes": [f"class {k}" for k in range(100)], "confusion": counts}
    stored.write(folder, content)
    _, text = page(folder)
    assert 'class="confusion"' not in text and len(text) < 60_000
    assert re.search(
        r"class 9</td><td[^>]*>class 1</td><td>5</td><td>14</td>.*class 3</td><td[^>]*>class 7", text, re.S
    )


def test_the_same_results_make_the_same_page_in_another_process(leave, tmp_path, request):
    """Python's order of sets and of hashes is another in each process, unless it is told."""
    for seed in range(3):
        leave(tmp_path / "runs" / str(seed), seed=seed, hyperparameters={"width": seed})
    pages = []
    for seed in "12":
        out = tmp_path / f"{seed}.html"
        command = [sys.executable, "-m", "lab", "report", "--html", str(out), str(tmp_path / "runs")]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=request.config.rootpath, env=environment, check=True, capture_output=True)
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]
