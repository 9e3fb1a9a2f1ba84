"""Which runs are of one training, and what is said of them."""

import pytest

from lab.ladder import recipes
from lab.report import groups
from lab.runs import record, results

CONSTANTS = recipes.written_constants()


@pytest.fixture
def put(made_result, tmp_path):
    """Groups of made results: put({"seed": 1}, {"recipe": "speedrun"})."""

    def make(*made):
        runs = []
        for number, values in enumerate(made):
            file = tmp_path / f"{number}.json"
            file.write_text(record.encode(made_result(**values)))
            runs.append(results.read(file))
        return groups.put_together(runs, CONSTANTS)

    return make


def full(**hyperparameters):
    return {"accuracies": [0.5] * 23 + [0.94], "hyperparameters": hyperparameters}


def test_seeds_and_places_do_not_part_runs(put):
    (group,) = put(full(), full(seed=1, device="gpu", jit=False), full(precision="bfloat16"))
    assert (group.label, group.recipe, group.changed, len(group.runs)) == ("davidnet", "davidnet", {}, 3)


def test_hyperparameters_data_and_length_do(put, made_result):
    data = made_result()["data"]
    found = put(
        full(),
        full(width=8),
        full() | {"seed": 1},
        full(limit_train=2048),
        full(width=8, cutout=0),
        {"accuracies": [0.5, 0.6], "hyperparameters": {"epochs": 24}},
        full() | {"data": data | {"synthetic": True}},
        full() | {"data": data | {"sha256": "cd" * 32}},
        full() | {"recipe": "no-longer-there"},
        full(width=8) | {"recipe": "no-longer-there"},
    )
    assert [group.label for group in found] == [
        "davidnet, data abababab",
        "davidnet, width 8",
        "davidnet, limit_train 2048",
        "davidnet, cutout 0, width 8",
        "davidnet, stopped after 2 of 24 epochs",
        "davidnet, SYNTHETIC images",
        "davidnet, data cdcdcdcd",
        "no-longer-there",
        "no-longer-there, width 8",
    ]
    assert [run.seed for run in found[0].runs] == [0, 1]


def test_subsets_are_drawn_by_the_seed_and_so_are_of_one_training(put, made_result):
    data = made_result()["data"]
    found = put(
        full(limit_test=512) | {"data": data | {"test_images": 512}},
        full(limit_test=512) | {"seed": 1, "data": data | {"test_images": 512, "sha256": "cd" * 32}},
    )
    assert len(found) == 1


def test_an_older_results_flip_is_the_same(put):
    assert len(put(full(), full(flip=True), full(flip="random"))) == 1
    assert len(put(full(), full(flip=False))) == 2


def test_unfinished_runs_are_in_no_group(put):
    assert put(full() | {"finished": False}) == []


def test_notes_tell_what_spoils_the_statistics(put, made_result):
    hardware = made_result()["hardware"] | {"processor": "Slide rule"}
    (group,) = put(
        full(), full() | {"hardware": hardware}, full() | {"seed": 1, "versions": {"tensorflow": "2.20.0"}}
    )
    notes = "\n".join(group.notes)
    assert "seed 0 more than once" in notes and "not independent" in notes
    assert "2 kinds of machine" in notes and "more than one version" in notes
    (alone,) = put(full(), full() | {"seed": 1})
    assert alone.notes == ()
    (held,) = put(full(holdout=5000))
    assert "held-out" in held.notes[0]


def test_accuracies_with_tta_come_first_where_all_have_them(put):
    (group,) = put(
        full(tta="six") | {"test_accuracy_tta": 0.95}, full(tta="six") | {"test_accuracy_tta": 0.96}
    )
    assert groups.accuracies(group) == [("with TTA, six views", [0.95, 0.96]), ("plain", [0.94, 0.94])]
    (group,) = put(full(tta="six") | {"test_accuracy_tta": 0.95}, full(tta="six"))
    assert [name for name, _ in groups.accuracies(group)] == ["plain"]
