"""Disks that are full, read-only or gone: a line, an exit code, and nothing lost that was complete."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.base import console
from lab.runs import checkpoint, record


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MiB and how to mount it again with other options; only root may."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        return done.returncode == 0

    if not shutil.which("mount") or not mount("size=1m"):
        pytest.skip("mounting a small disk takes root's rights")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def main(command_line, capsys):
    """Trains with flags: main(short, out, epochs=9) -> exit code, and what was said on either stream."""

    def run(short, out, **more):
        flags = {**short, "out": out, **more}
        jit = flags.pop("jit")
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        code = command_line(arguments + ([] if jit else ["--no-jit"]))
        return code, *capsys.readouterr()

    return run


def rows(out):
    return [
        {key: value for key, value in row.items() if not key.endswith("seconds")}
        for row in record.read_result(out / "result.json")["epochs"]
    ]


@pytest.mark.long
def test_a_full_disk_ends_the_run_with_5_and_room_lets_it_go_on(short, disk, tmp_path, main, command_line):
    folder, remount = disk
    code, _, error = main(short, folder / "run", epochs=9, keep=99)
    assert code == 5 and error.count("\n") == 1 and "free the disk" in error and "No space" in error
    saved, damaged = checkpoint.newest(str(folder / "run"))
    assert saved is not None and not damaged
    before = rows(folder / "run")
    assert 1 <= len(before) < 9 and not list((folder / "run").glob(".*"))
    assert remount("size=64m")
    assert command_line(["--resume", folder / "run"]) == 0
    assert main(short, tmp_path / "whole", epochs=9)[0] == 0
    assert rows(folder / "run") == rows(tmp_path / "whole") and rows(folder / "run")[: len(before)] == before
    weights = [(out / "weights.npz").read_bytes() for out in (folder / "run", tmp_path / "whole")]
    assert weights[0] == weights[1]


def test_a_read_only_disk_is_refused_before_training(short, disk, main):
    folder, remount = disk
    assert remount("ro")
    for out, more in ((folder / "run", {}), (short["out"], {"checkpoint_dir": folder / "elsewhere"})):
        code, shown, error = main(short, out, **more)
        assert code == 2 and error.count("\n") == 1 and "ead-only" in error, error
        assert "train loss" not in shown


def after_the_first_row(monkeypatch, act):
    """Calls act() once the first row was shown."""
    row = console.row

    def first(values):
        if values["epoch"] == 1:
            act()
        return row(values)

    monkeypatch.setattr(console, "row", first)


def test_a_folder_that_vanishes_ends_the_run_with_5(short, main, monkeypatch):
    out = Path(short["out"])
    after_the_first_row(monkeypatch, lambda: shutil.rmtree(out))
    code, _, error = main(short, out)
    assert code == 5 and error.count("\n") == 1 and "cannot write" in error and not out.exists()


@pytest.mark.parametrize("name", ["result.json", "weights.npz", "checkpoints"])
def test_a_file_that_cannot_be_written_ends_the_run_with_5(short, name, main, monkeypatch):
    out = Path(short["out"])

    def block():
        with contextlib.suppress(FileNotFoundError):
            (shutil.rmtree if name == "checkpoints" else Path.unlink)(out / name)
        if name == "checkpoints":
            (out / name).write_text("a file where the folder should be")
        else:
            (out / name).mkdir()

    after_the_first_row(monkeypatch, block)
    code, _, error = main(short, out)
    assert code == 5 and error.count("\n") == 1 and name in error and "cannot write" in error
    if name != "result.json":
        assert not record.read_result(out / "result.json")["finished"]
