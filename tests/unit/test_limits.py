"""What a profile allows: the table that the API server is asked too (tests/contract/test_profile_limits.py), the
operator's own check, and `finetune validate`."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_specs import GOOD
from finetune_api import Asked, FineTuneJob, FineTuneJobSpec, FineTuneProfileSpec, RunIdentity, resolve
from finetune_api.asked import STEPS, WARMUP
from finetune_api.limits import LIMITS, LimitError, OfLimits, check_limits, refusals
from finetune_api.profile import ProfileLimits
from finetune_api.techniques import TECHNIQUES
from finetune_operator.policies import acceptance
from finetune_operator.policies.acceptance import Refused, accept
from finetune_operator.projections import ProfileState
from finetune_operator.specs.configmap import Snapshot
from finetune_trainer.documents import DocumentError
from finetune_trainer.local_run import load_run
from hypothesis import given, settings
from hypothesis import strategies as st
from misfits import FITS, MISFITS, NAMESPACE, PROFILE, Misfit, profile_document
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

IDENTITY = RunIdentity(name="good", namespace=NAMESPACE, uid="0000-1111")


def asked(row: Misfit) -> Asked:
    return Asked(row.job()["spec"], row.profile, PROFILE, NAMESPACE)


def accepted(row: Misfit) -> Snapshot | Refused:
    """What the operator says."""
    profile = ProfileState(PROFILE, "uid", 1, False, json.dumps(row.profile).encode())
    return accept(row.job()["spec"], {PROFILE: profile}, IDENTITY, "operator:1")


@pytest.mark.parametrize("row", MISFITS, ids=lambda m: m.id)
def test_a_misfit_is_named(row: Misfit) -> None:
    first, *others = refusals(asked(row))
    assert row.says in first
    assert [words in other for words, other in zip(row.also, others, strict=True)] == [True] * len(others)


@pytest.mark.parametrize("row", MISFITS, ids=lambda m: m.id)
def test_the_operator_says_the_same(row: Misfit) -> None:
    with pytest.raises(LimitError) as refused:
        check_limits(asked(row))
    assert accepted(row) == Refused("InvalidSpec", str(refused.value))


@pytest.mark.parametrize("row", FITS, ids=lambda m: m.id)
def test_what_fits_is_accepted(row: Misfit) -> None:
    assert refusals(asked(row)) == ()
    assert isinstance(accepted(row), Snapshot)


@pytest.mark.parametrize("row", MISFITS, ids=lambda m: m.id)
def test_validate_says_the_same(row: Misfit, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump_all([row.job(), profile_document(PROFILE, row.profile)]))
    with pytest.raises(DocumentError) as refused:
        load_run(file)
    assert str(refused.value).splitlines() == [f"{file}: {words}" for words in refusals(asked(row))]


def test_every_limit_of_the_profile_is_held() -> None:
    held = {limit.limit for limit in LIMITS if isinstance(limit, OfLimits)}
    assert held == {to_camel(name) for name in ProfileLimits.model_fields}


def test_names_in_the_policy_mean_one_thing() -> None:
    meanings: dict[str, str] = {}
    for limit in LIMITS:
        for name, cel in limit.variables.items():
            assert meanings.setdefault(name, cel) == cel


# --- the profile's own mistakes


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            {"defaults": {"training": {"steps": 501}}, "limits": {"maxSteps": 500}},
            "defaults.training.steps must not be above limits.maxSteps",
        ),
        (
            {"defaults": {"training": {"epochs": 5}}, "limits": {"maxSteps": 500}},
            "set at most one of defaults.training.epochs, limits.maxSteps",
        ),
        (
            {"defaults": {"engine": {"nodes": 3}}, "limits": {"maxNodes": 2}},
            "defaults.engine.nodes must not be above limits.maxNodes",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_profile_that_breaks_its_own_limits_is_invalid(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FineTuneProfileSpec.model_validate(spec)
    refused = accepted(Misfit({}, spec, ""))
    assert isinstance(refused, Refused)
    assert refused.reason == "InvalidProfile"
    assert says in refused.message


# --- the image


@pytest.mark.parametrize(
    ("job", "profile", "image"),
    [
        ("mine:1", {"image": "trainer:1", "limits": {"allowedImages": ["mine:1"]}}, "mine:1"),
        ("mine:1", {"limits": {"allowedImages": ["mine:1"]}}, "mine:1"),
        (None, {"image": "trainer:1", "limits": {"allowedImages": ["mine:1"]}}, "trainer:1"),
        (None, {}, "operator:1"),
    ],
)
def test_the_image_is_the_jobs_then_the_profiles_then_the_operators(
    job: str | None, profile: dict[str, Any], image: str
) -> None:
    made = accepted(Misfit({"image": job} if job else {}, profile, ""))
    assert isinstance(made, Snapshot)
    assert made.profile.image == image


# --- values that nobody wrote down are the ones that resolve() chooses

LENGTHS = st.fixed_dictionaries(
    {},
    optional={
        "length": st.one_of(
            st.integers(1, 5000).map(lambda n: {"steps": n}), st.integers(1, 9).map(lambda n: {"epochs": n})
        ),
        "warmup": st.integers(0, 5000),
    },
)
METHODS = {"lora": {"prompt": "x"}, "dreamBooth": {"prompt": "x"}}


def training(length: dict[str, Any]) -> dict[str, Any]:
    warmup = {"scheduler": {"warmupSteps": length["warmup"]}} if "warmup" in length else {}
    return {**length.get("length", {}), **warmup}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(METHODS)), LENGTHS, LENGTHS)
def test_steps_and_warmup_are_judged_as_they_are_resolved(
    method: str, job: dict[str, Any], profile: dict[str, Any]
) -> None:
    spec = {**GOOD["spec"], "method": {method: METHODS[method]}, "training": training(job)}
    profile_spec = {"defaults": {"training": training(profile)}}
    whole = Asked(spec, profile_spec, PROFILE, NAMESPACE)
    try:
        parsed = FineTuneJobSpec.model_validate(spec), FineTuneProfileSpec.model_validate(profile_spec)
    except ValidationError:
        return  # one of them is refused alone
    try:
        run = resolve(*parsed, IDENTITY)
    except ValidationError:
        assert refusals(whole), "what cannot be resolved is named by a limit, in words"
        return
    assert not refusals(whole)
    assert run.training.steps == STEPS.read(whole)
    assert run.training.scheduler.warmup_steps == (WARMUP.read(whole) or 0)


def test_every_technique_has_its_steps() -> None:
    assert set(TECHNIQUES) == {
        to_camel(name)
        for name in FineTuneJob.model_fields["spec"].annotation.model_fields["method"].annotation.model_fields
    }


def test_the_documentation_says_who_refuses_what() -> None:
    """Every reason for which the operator does not accept a job stands in the table of docs/profiles.md."""
    source = inspect.getsource(acceptance)
    reasons = set(re.findall(r'Refused\(\s*"(\w+)"', source))
    assert reasons >= {"InvalidSpec", "NoImage"}
    text = (Path(__file__).parents[2] / "docs/profiles.md").read_text()
    assert {reason for reason in reasons if f"`Accepted=False`, {reason} |" not in text} == set()
    assert {limit.limit for limit in LIMITS if isinstance(limit, OfLimits) and f"`{limit.limit}`" not in text} == set()
