"""A TrainingRun on one's own machine: from a job and a profile in files, as the operator makes one in a cluster."""

from __future__ import annotations

import uuid
from pathlib import Path
from urllib.parse import quote

from finetune_api import Asked, FineTuneJob, FineTuneProfile, RunIdentity, TrainingRun, resolve
from finetune_api.job import FineTuneJobSpec
from finetune_api.limits import refusals
from finetune_api.metadata import NAME_MESSAGE, is_name

from finetune_trainer.credentials import Role
from finetune_trainer.documents import Document, DocumentError, read_documents
from finetune_trainer.paths import local_path
from finetune_trainer.problems import MISSING, Problem

NAMESPACE = "local"
FREE_TEXT = ("prompt", "prompts", "classPrompt", "negativePrompt", "initializer")


def load_run(file: Path, profile_file: Path | None = None) -> TrainingRun:
    """The TrainingRun that `file` stands for.

    `file` holds a TrainingRun, or a FineTuneJob and perhaps a FineTuneProfile as a second document.

    Raises:
        DocumentError: with every problem, one a line.
    """
    documents = read_documents(file)
    if profile_file is not None:
        documents += read_documents(profile_file)
    jobs = [d for d in documents if d.kind == "FineTuneJob"]
    profiles = [d for d in documents if d.kind == "FineTuneProfile"]
    runs = [d for d in documents if d.kind == "TrainingRun"]
    if len(runs) == 1 and len(documents) == 1:
        return runs[0].parsed(TrainingRun)
    if len(jobs) != 1 or len(profiles) > 1 or runs:
        raise DocumentError([f"{file}: name one FineTuneJob and at most one FineTuneProfile, or one TrainingRun alone"])
    return _resolved(jobs[0], profiles[0] if profiles else None)


def load_runs(file: Path) -> list[TrainingRun]:
    """The TrainingRuns of all FineTuneJobs in `file`, one a document, in their order.

    Raises:
        DocumentError: with every problem of the first job that has any, or there is no job.
    """
    documents = read_documents(file)
    jobs = [d for d in documents if d.kind == "FineTuneJob"]
    profiles = [d for d in documents if d.kind == "FineTuneProfile"]
    if not jobs or len(profiles) > 1 or len(jobs) + len(profiles) != len(documents):
        raise DocumentError([f"{file}: name FineTuneJobs, one a document, and at most one FineTuneProfile"])
    return [_resolved(job, profiles[0] if profiles else None) for job in jobs]


def _resolved(document: Document, profile_document: Document | None) -> TrainingRun:
    job = document.parsed(FineTuneJob)
    profile = profile_document.parsed(FineTuneProfile) if profile_document is not None else None
    found = list(_local_problems(job, profile))
    if found:
        raise document.error(*found)
    spec = _on_this_machine(job.spec)
    misfits = refusals(_asked(job, spec, profile))
    if misfits:
        raise DocumentError([f"{document.file}: {words}" for words in misfits])
    uid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{spec.output.uri}#{job.metadata.name}"))
    identity = RunIdentity(name=job.metadata.name, namespace=NAMESPACE, uid=uid)
    return resolve(spec, profile.spec if profile is not None else None, identity)


def _asked(job: FineTuneJob, here: FineTuneJobSpec, profile: FineTuneProfile | None) -> Asked:
    """What the cluster would hold against the profile; without one at hand, what means something here."""
    if profile is None:
        return Asked(here.wire(), {})
    return Asked(job.spec.wire(), profile.spec.wire(), profile.metadata.name, job.metadata.namespace)


def _local_problems(job: FineTuneJob, profile: FineTuneProfile | None) -> list[Problem]:
    """What only matters outside a cluster."""
    found = []
    name = job.metadata.name
    if not name:
        found.append(Problem(("metadata", "name"), MISSING, "missing; add it"))
    elif not is_name(name):
        found.append(Problem(("metadata", "name"), name, NAME_MESSAGE.removeprefix("metadata.name ")))
    wanted = job.spec.profile_name
    if wanted is not None and (profile is None or profile.metadata.name != wanted):
        remedy = "there is no cluster here to look it up; give its YAML with --profile FILE, or remove the field"
        found.append(Problem(("spec", "profileName"), wanted, remedy))
    for section, uri in (("baseModel", job.spec.base_model.uri), ("dataset", job.spec.dataset.uri)):
        if uri.startswith("pvc://"):
            remedy = "a volume of a cluster cannot be reached from here; use file:// or s3://"
            found.append(Problem(("spec", section, "uri"), uri, remedy))
    return found


def _on_this_machine(spec: FineTuneJobSpec) -> FineTuneJobSpec:
    """`spec` with absolute file:// URIs, and without service account and image, which mean nothing here."""
    here = {key: value for key, value in spec.wire().items() if key not in ("serviceAccountName", "image")}
    return FineTuneJobSpec.model_validate(_absolute(here))


def _absolute(value: object) -> object:
    """`value` with every file:// URI in it made absolute."""
    if isinstance(value, dict):
        return {key: _absolute(inner) if key not in FREE_TEXT else inner for key, inner in value.items()}
    if isinstance(value, list):
        return [_absolute(inner) for inner in value]
    if not isinstance(value, str) or not value.startswith("file://"):
        return value
    path = local_path(value, Role.OUTPUT)
    assert path is not None, "every file:// URI is a path"
    return f"file://{quote(str(path))}"
