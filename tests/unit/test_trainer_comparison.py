"""Statistics, table and plan of a comparison."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from finetune_api import FineTuneJobSpec, RunIdentity, TrainingRun, resolve
from finetune_api.techniques import TECHNIQUES
from finetune_trainer.comparison.rows import OnTheWay, Row, append_row, by_name, key_of, read_rows, seconds_to
from finetune_trainer.comparison.spread import spread, t975
from finetune_trainer.comparison.table import markdown, size, summary
from finetune_trainer.comparison.trials import LARGEST_SEED, plan_trials
from finetune_trainer.documents import DocumentError
from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.local_run import load_runs
from pydantic import ValidationError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (4, 2.776), (30, 2.042), (31, 2.0395), (40, 2.0211), (120, 1.9799)]
)
def test_students_t_as_the_tables_have_it(freedom: int, expected: float) -> None:
    assert t975(freedom) == pytest.approx(expected, abs=5e-4)


def test_the_interval_of_a_mean() -> None:
    # s = √2.5, t(4) = 2.7764
    five = spread([1, 2, 3, 4, 5])
    assert (five.mean, five.n) == (3, 5)
    assert five.half == pytest.approx(2.7764 * math.sqrt(2.5 / 5))
    assert spread([0.5, 0.5, 0.5]).half == 0
    assert spread([7]).half is None, "one seed says nothing about others"
    with pytest.raises(ValueError, match="no seeds"):
        spread([])


def row(name: str = "figure-lora", seed: int = 0, **changes: object) -> Row:
    values: dict[str, object] = {
        "name": name,
        "technique": "lora",
        "seed": seed,
        "key": "0" * 64,
        "weights_bytes": 3 * 1024 * 1024,
        "steps": 10,
        "seconds": 20.0 + seed,
        "seconds_per_step": 0.2,
        "peak_memory_bytes": 900 * 1024 * 1024,
        "base": {"fidelity": 0.0, "leak": 0.0},
        "figures": {"fidelity": 0.8 + 0.1 * seed, "leak": 0.25},
        "judged": (
            OnTheWay(step=5, seconds=10.0, fidelity=0.4),
            OnTheWay(step=10, seconds=20.0 + seed, fidelity=0.8 + 0.1 * seed),
        ),
        "device": "cpu",
        "torch": "2",
        "results": f"results/{name}-seed-{seed}",
    }
    return Row.model_validate({**values, **changes})


def test_the_table_shows_every_seed_that_there_is_and_what_is_missing() -> None:
    never = row("figure-ti", 0, weights_bytes=4000, figures={"fidelity": 0.0}, judged=[])
    table = markdown([row(seed=1), never, row(seed=0)], 0.85)
    assert table.splitlines() == [
        "|  | seeds | size | s/step | training | to fidelity 0.85 | peak memory | fidelity | leak |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| base model |  |  |  |  |  |  | 0.00 | 0.00 |",
        "| figure-lora | 2 | 3.1 MB | 0.200 ± 0.000 | 20.5 s ± 6.4 s | 21.0 s (1 of 2) | 943.7 MB ± 0 bytes "
        "| 0.85 ± 0.64 | 0.25 ± 0.00 |",
        "| figure-ti | 1 | 4.0 kB | 0.200 | 20.0 s | – | 943.7 MB | 0.00 | – |",
    ]


def test_a_fidelity_that_no_seed_reaches() -> None:
    assert "| never (0 of 1) |" in markdown([row()], 0.95)
    assert seconds_to(row(), 0.8) == 20.0
    assert seconds_to(row(), 0.3) == 10.0
    assert seconds_to(row(), 0.95) is None


def test_the_summary_says_from_how_many_seeds() -> None:
    found = summary([row(seed=0), row(seed=1)], 0.85)["figure-lora"]
    assert found["secondsToFidelity"] == {"mean": 21.0, "half": None, "seeds": 1}
    assert found["leak"] == {"mean": 0.25, "half": 0.0, "seeds": 2}


@pytest.mark.parametrize(
    ("count", "words"), [(12, "12 bytes"), (4000, "4.0 kB"), (5_500_000, "5.5 MB"), (4 << 30, "4.3 GB")]
)
def test_sizes_for_people(count: int, words: str) -> None:
    assert size(count) == words


def test_rows_are_kept_line_by_line(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []
    append_row(tmp_path, row(seed=0))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"name": "half')
    assert read_rows(tmp_path) == [row(seed=0)], "a line without its end was being written when it ended"
    append_row(tmp_path, row(seed=1))
    assert read_rows(tmp_path) == [row(seed=0), row(seed=1)]
    assert list(by_name(read_rows(tmp_path))) == ["figure-lora"]

    (tmp_path / "rows.jsonl").write_text('{"name": "whole"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1 is no row of a comparison .*; remove the line"):
        read_rows(tmp_path)


def run_of(name: str, engine: dict[str, object] | None = None, **training: object) -> TrainingRun:
    spec = {
        **({"engine": engine} if engine else {}),
        "baseModel": {"uri": "builtin://tiny-shapes"},
        "method": {"lora": {"prompt": "a photo of a sks circle"}},
        "dataset": {"uri": "file:///pictures"},
        "training": training,
        "output": {"uri": f"file:///results/{name}"},
    }
    return resolve(FineTuneJobSpec.model_validate(spec), None, RunIdentity(name=name, namespace="local", uid=name))


def test_each_job_with_each_seed_and_a_place_of_its_own() -> None:
    trials = plan_trials([run_of("one", seed=7), run_of("two")], 2, (), Path("/out"))
    assert [(trial.label, trial.run.training.seed) for trial in trials] == [
        ("one-seed-7", 7), ("two-seed-0", 0), ("one-seed-8", 8), ("two-seed-1", 1)
    ]  # fmt: skip
    assert len({trial.run.output.uri for trial in trials} | {trial.run.identity.uid for trial in trials}) == 8
    assert trials[0].run.output.uri == "file:///out/results/one-seed-7"
    only = plan_trials([run_of("one"), run_of("two")], 1, ("two",), Path("/out"))
    assert [trial.name for trial in only] == ["two"]
    assert len(plan_trials([run_of("one"), run_of("two")], 1, ("lora",), Path("/out"))) == 2


@pytest.mark.parametrize(
    ("names", "only", "words"),
    [
        (("one", "one"), (), "two jobs are named one; give each a metadata.name of its own"),
        (("one", "two"), ("three",), "--only names three, which is no job there; use one, two"),
        (("one", "two"), ("dreamBooth",), "--only is dreamBooth, and no job uses that"),
    ],
)
def test_a_plan_that_cannot_be(names: tuple[str, ...], only: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        plan_trials([run_of(name) for name in names], 1, only, Path("/out"))


@pytest.mark.parametrize("engine", [{"nodes": 2}, {"processesPerNode": 2}])
def test_a_group_is_not_measured_as_one_process(engine: dict[str, object]) -> None:
    words = r"two: spec\.engine is \d nodes × \d processes, .*; remove engine\.nodes and engine\.processesPerNode"
    with pytest.raises(ConfigurationError, match=words):
        plan_trials([run_of("one"), run_of("two", engine)], 1, (), Path("/out"))
    assert plan_trials([run_of("one"), run_of("two", engine)], 1, ("one",), Path("/out")), "the others are"


def test_the_last_seed_is_one_that_a_job_may_have() -> None:
    with pytest.raises(ValidationError):
        run_of("one", seed=LARGEST_SEED + 1)
    trials = plan_trials([run_of("one", seed=LARGEST_SEED - 2)], 3, (), Path("/out"))
    assert [TrainingRun.model_validate_json(trial.run.to_json()).training.seed for trial in trials] == [
        LARGEST_SEED - 2, LARGEST_SEED - 1, LARGEST_SEED
    ]  # fmt: skip
    words = "one: training.seed is 2147483646, and the last of 3 seeds would be 2147483648, .*; use 2147483645 at most"
    with pytest.raises(ConfigurationError, match=words):
        plan_trials([run_of("one", seed=LARGEST_SEED - 1)], 3, (), Path("/out"))


def test_a_measured_row_counts_only_for_its_own_settings() -> None:
    one = run_of("one")
    assert key_of(one) == key_of(run_of("elsewhere")), "neither the name nor the place decides what is trained"
    assert key_of(one) != key_of(run_of("one", seed=1))
    assert key_of(one) != key_of(run_of("one", steps=7))


def test_a_file_of_several_jobs(tmp_path: Path) -> None:
    job = (ROOT / "examples/local.yaml").read_text()
    other = job.replace("name: figure", "name: other")
    file = tmp_path / "jobs.yaml"
    file.write_text(f"{job}\n---\n{other}")
    assert [run.identity.name for run in load_runs(file)] == ["figure", "other"]
    file.write_text(f"{job}\n---\n{other.replace('steps: 250', 'steps: many')}")
    with pytest.raises(DocumentError, match=r"jobs.yaml:\d+: spec.training.steps"):
        load_runs(file)
    file.write_text("")
    with pytest.raises(DocumentError, match="name FineTuneJobs, one a document"):
        load_runs(file)


def test_the_example_compares_four_techniques_on_the_same_pictures() -> None:
    runs = load_runs(ROOT / "examples/compare.yaml")
    assert {run.method.name for run in runs} == set(TECHNIQUES)
    assert len({run.dataset.uri for run in runs}) == len({run.base_model.uri for run in runs}) == 1
    assert all(run.judgement is not None and run.judgement.every_steps for run in runs), "for the time to a fidelity"
