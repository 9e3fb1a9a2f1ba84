"""Files that are cut or have a bit flipped; tests/damage.py makes as many cases as you like."""

import numpy as np
import pytest

import damage
from lab.images import formats

SEED = 20191122


@pytest.mark.long
def test_damage_is_refused_or_said(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "IMAGES_PER_FILE", 20)
    monkeypatch.setattr(formats, "PUBLISHED_MD5", dict(formats.PUBLISHED_MD5))
    print(f"seed {SEED}")
    found = damage.cases(tmp_path, 80, np.random.default_rng(SEED))
    assert len(found) == 8 and sum(sum(results.values()) for results in found.values()) == 80
    for kind in ("npz", "result", "python archive", "tfrecord"):
        assert set(found[kind]) == {"refused"}
