"""Which way a CPU computes in: by made-up timings and processors, then by this one's."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lab import assemble
from lab.machine import fastest, processor

FASTEST = fastest.fastest  # before conftest.py puts float32 in its place
OLD, NEW = ["avx2"], ["avx2", "avx512f", "avx512_bf16"]


@pytest.mark.parametrize(
    ("flags", "seconds", "jit", "expected"),
    [
        (OLD, (0.01, 0.1), True, ("float32", True)),  # bfloat16 emulated is not even timed
        (None, (0.01, 0.1), True, ("float32", True)),  # not Linux
        (NEW, (0.06, 0.10), True, ("bfloat16", False)),
        (NEW, (0.09, 0.10), True, ("float32", True)),  # faster than oneDNN's float32, not than Winograd's
        (NEW, (0.09, 0.10), False, ("bfloat16", False)),
        (NEW, (0.11, 0.10), False, ("float32", False)),
    ],
)
def test_the_faster_way_is_taken(monkeypatch, flags, seconds, jit, expected):
    monkeypatch.setattr(processor, "flags", lambda: flags)
    monkeypatch.setattr(fastest, "timed", lambda: dict(zip(("bfloat16", "float32"), seconds, strict=True)))
    monkeypatch.setattr(fastest, "fastest", FASTEST)
    way = fastest.choose("auto", jit=jit)
    assert (way.precision, jit and way.xla) == expected
    assert ("100 ms" in way.why) == (flags is NEW)


def test_this_processor_is_timed():
    seconds = fastest.timed()
    assert set(seconds) == {"bfloat16", "float32"}
    assert all(0 < value < 10 and math.isfinite(value) for value in seconds.values())


CPU = SimpleNamespace(kind="cpu", replicas=1, workers=1)


@pytest.mark.parametrize(
    ("changes", "placement", "expected"),
    [
        ({}, {}, ("bfloat16", False)),
        ({"jit": False}, {}, ("bfloat16", False)),
        ({"precision": "float32"}, {}, ("float32", True)),
        ({"precision": "bfloat16"}, {}, ("bfloat16", False)),  # XLA would emulate it
        ({"precision": "float16"}, {}, ("float16", True)),
        ({"eager": True}, {}, ("float32", True)),
        ({}, {"workers": 2}, ("float32", True)),  # their processors may differ
        ({}, {"kind": "gpu"}, ("auto", True)),
        ({}, {"kind": "tpu"}, ("auto", True)),
    ],
)
def test_what_a_run_is_to_compute_in(monkeypatch, changes, placement, expected):
    monkeypatch.setattr(fastest, "fastest", lambda *, jit: ("bfloat16", "timed"))
    options, _ = assemble.resolved(assemble.configure(changes), SimpleNamespace(**vars(CPU) | placement))
    assert (options.precision, options.jit) == expected
    again, why = assemble.resolved(options, SimpleNamespace(**vars(CPU) | placement))
    assert again == options and not why  # so a run that goes on keeps it


def test_the_forms_follow_the_way():
    options = assemble.configure({})
    for precision, jit, fast in (("bfloat16", False, True), ("float32", True, True), ("float32", False, False)):
        assert assemble.is_fast(replace(options, precision=precision, jit=jit), CPU) is fast
