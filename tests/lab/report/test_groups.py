"""Which runs are of one training, and what is said of them."""

import json

import pytest

from lab.base.errors import UserError
from lab.base.files import encode
from lab.ladder import recipes
from lab.report import groups
from lab.runs import results


@pytest.fixture
def put(made_result, tmp_path):
    """Groups of made results: put({"seed": 1}, {"recipe": "speedrun"})."""

    def make(*made):
        runs = []
        for number, values in enumerate(made):
            file = tmp_path / f"{number}.json"
            file.write_text(encode(made_result(**values)))
            runs.append(results.read(file))
        return groups.put_together(runs)

    return make


@pytest.fixture
def read(made_result, tmp_path):
    """A made result, read: read(recipe="speedrun")."""

    def make(**values):
        file = tmp_path / "result.json"
        file.write_text(encode(made_result(**values)))
        return results.read(file)

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
        "davidnet, width 8, cutout 0",
        "davidnet, stopped after 2 of 24 epochs",
        "davidnet, SYNTHETIC images",
        "davidnet, data cdcdcdcd",
        "no-longer-there",
        "no-longer-there, width 8",
    ]
    assert [run.seed for run in found[0].runs] == [0, 1]


def test_what_only_older_results_have_parts_runs_if_it_changed_them(put):
    assert len(put(full(), full(sync_bn=False))) == 1
    assert [group.label for group in put(full(), full(sync_bn=True))] == ["davidnet", "davidnet, sync_bn True"]


def test_subsets_are_drawn_by_the_seed_and_so_are_of_one_training(put, made_result):
    data = made_result()["data"]
    found = put(
        full(limit_test=512) | {"data": data | {"test_images": 512}},
        full(limit_test=512) | {"seed": 1, "data": data | {"test_images": 512, "sha256": "cd" * 32}},
    )
    assert len(found) == 1
    shapes = [data | {"synthetic": True, "sha256": 32 * f"0{seed}", "source": f"seed {seed}"} for seed in (0, 1)]
    assert len(put(*(full() | {"seed": seed, "data": one} for seed, one in enumerate(shapes)))) == 1
    photos = data | {"test_images": 512, "sha256": "ef" * 32, "source": "photos.npz"}
    of_cifar = full(limit_test=512) | {"data": data | {"test_images": 512}}
    assert len(put(of_cifar, full(limit_test=512) | {"data": photos})) == 2


def test_an_older_results_flip_is_the_same(put):
    assert len(put(full(), full(flip=True), full(flip="random"))) == 1
    assert len(put(full(), full(flip=False))) == 2


def test_unfinished_runs_are_in_no_group(put):
    assert put(full() | {"finished": False}) == []


def test_notes_tell_what_spoils_the_statistics(put, made_result):
    hardware = made_result()["hardware"] | {"processor": "Slide rule"}
    (group,) = put(full(), full() | {"hardware": hardware}, full() | {"seed": 1, "versions": {"tensorflow": "2.20.0"}})
    notes = "\n".join(group.notes)
    assert "seed 0 more than once" in notes and "not independent" in notes
    assert "2 kinds of machine" in notes and "more than one version" in notes
    (alone,) = put(full(), full() | {"seed": 1})
    assert alone.notes == ()
    (held,) = put(full(holdout=5000))
    assert "held-out" in held.notes[0]


def test_other_code_and_other_random_numbers_are_one_training_with_a_note(put):
    def by(sha256, commit="0123456789", changed=False):
        return {"code": {"commit": commit, "changed": changed, "sha256": sha256}}

    (group,) = put(full() | by("ab" * 32), full() | {"seed": 1} | by("ab" * 32))
    assert group.notes == ()
    (group,) = put(
        full() | by("ab" * 32),
        full() | {"seed": 1} | by("cd" * 32, changed=True),
        full() | {"seed": 2} | by("ef" * 32, commit=None, changed=None),
        full() | {"seed": 3},
    )
    (note,) = group.notes
    assert note == (
        "made by 4 versions of this code: commit 01234567 (1 run); commit 01234567 with changes, sha256 cdcdcdcd "
        "(1 run); sha256 efefefef (1 run); not recorded (1 run)"
    )
    (group,) = put(full(), full() | {"seed": 1}, full() | {"random_stream": "numpy-plan"})
    (note,) = group.notes  # seed 0 is twice there, but not with the same draws
    assert note.startswith("random numbers of 2 streams: the older one (2 runs); numpy-plan (1 run)")


# ---- which runs measure a recipe ---------------------------------------------------------------------------


def test_what_differs_from_a_recipe_by_hand(read):
    values = recipes.values("speedrun")
    assert groups.changed(read(recipe="speedrun", hyperparameters={"epochs": 8, "seed": 5}), values) == {}
    run = read(recipe="speedrun", hyperparameters={"epochs": 9, "cutout": 4, "limit_test": 9, "device": "gpu"})
    assert groups.changed(run, values) == {"epochs": 9, "cutout": 4, "limit_test": 9}
    assert groups.changed(run, values | {"epochs": 9}) == {"cutout": 4, "limit_test": 9}


def test_the_measurements_of_a_folder_are_full_runs_of_unchanged_recipes(tmp_path, made_result):
    def leave(name, **changes):
        base = {"recipe": "speedrun", "accuracies": [0.5] * 7 + [0.93], "test_accuracy_tta": 0.94}
        (tmp_path / name).write_text(encode(made_result(**base | changes)))

    leave("a.json")
    leave("b.json", test_accuracy_tta=0.942, seed=1)
    leave("short.json", accuracies=[0.5], hyperparameters={"epochs": 8})
    leave("narrow.json", hyperparameters={"width": 8})
    leave("half.json", hyperparameters={"limit_train": 25000})
    leave("fast.json", accuracies=[0.93])  # --epochs 1
    leave("unfinished.json", finished=False)
    leave("made-up.json", data=made_result()["data"] | {"synthetic": True})
    leave("unknown.json", recipe="no-longer-there")
    (tmp_path / "bench.json").write_text(json.dumps({"rows": []}))
    found = groups.measured(tmp_path)
    assert {name: [run.accuracy for run in runs] for name, runs in found.items()} == {"speedrun": [0.94, 0.942]}
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(UserError, match=r"torn\.json"):
        groups.measured(tmp_path)


def test_accuracies_with_tta_come_first_where_all_have_them(put):
    (group,) = put(full(tta="six") | {"test_accuracy_tta": 0.95}, full(tta="six") | {"test_accuracy_tta": 0.96})
    assert groups.accuracies(group) == [("with TTA, six views", [0.95, 0.96]), ("plain", [0.94, 0.94])]
    (group,) = put(full(tta="six") | {"test_accuracy_tta": 0.95}, full(tta="six"))
    assert [name for name, _ in groups.accuracies(group)] == ["plain"]


def test_what_an_older_codes_recipe_did_otherwise_parts_runs_and_counts_only_without_todays(put, made_result, tmp_path):
    older = full() | {"unlike": "the bias started at 0"}
    labels = [group.label for group in put(older, full() | {"seed": 1}, older | {"seed": 2})]
    assert labels == ["davidnet, unlike today's recipe: the bias started at 0", "davidnet"]
    assert [run.seed for run in groups.measured(tmp_path)["davidnet"]] == [1]
    (tmp_path / "1.json").unlink()
    assert [run.seed for run in groups.measured(tmp_path)["davidnet"]] == [0, 2]
