"""Hostile contents of folders that are resumed or written to; tests/folders.py makes as many cases as you like."""

import numpy as np

import folders

SEED = 20191123


def test_hostile_folders_are_refused_reported_or_ignored(tmp_path):
    print(f"seed {SEED}")
    found = folders.cases(tmp_path, 120, np.random.default_rng(SEED))
    assert {kind: sum(ends.values()) for kind, ends in found.items()} == dict.fromkeys(found, 20) and len(found) == 6
    assert set(found["manifest"]) == {"reported"}
    assert {how for kind in ("arrays", "series_file", "written") for how in found[kind]} == {"refused"}
