"""Whether a job can be carried out: its spec, its profile, and both together. Nothing here is terminal: a profile
may appear or be mended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.asked import Asked
from finetune_api.job import FineTuneJobSpec
from finetune_api.limits import LimitError, check_limits
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.resolve import resolve
from finetune_api.training_run import RunIdentity
from pydantic import ValidationError

from finetune_operator.projections import ProfileState
from finetune_operator.specs.configmap import Snapshot, snapshot_of


@dataclass(frozen=True)
class Refused:
    """The job cannot be carried out as things stand."""

    reason: str
    message: str


def accept(
    spec_json: Mapping[str, Any],
    profiles: Mapping[str, ProfileState],
    identity: RunIdentity,
    default_image: str,
) -> Snapshot | Refused:
    """The snapshot of job and profile put together; otherwise, which field stands in the way and what to do."""
    try:
        spec = FineTuneJobSpec.model_validate(spec_json)
    except ValidationError as error:
        return Refused("InvalidSpec", in_words(error, "spec"))
    local = _local_files(spec)
    if local:
        return Refused("InvalidSpec", local)
    chosen = _profile(spec, profiles)
    if isinstance(chosen, Refused):
        return chosen
    name = chosen.name if chosen else None
    try:
        profile = FineTuneProfileSpec.model_validate(chosen.spec if chosen else {})
    except ValidationError as error:
        return Refused("InvalidProfile", f"FineTuneProfile {name}: {in_words(error, 'spec')}")
    try:
        check_limits(Asked(spec.wire(), profile.wire(), name or "", identity.namespace))
    except LimitError as error:
        return Refused("InvalidSpec", str(error))
    image = spec.image or profile.image or default_image
    if not image:
        return Refused(
            "NoImage",
            f"neither spec.image of FineTuneProfile {name} nor the operator names a trainer image; set one of them"
            if name
            else "there is no default FineTuneProfile and the operator names no trainer image; "
            "set spec.profileName, or ask your administrator for a profile with isDefault: true",
        )
    try:
        run = resolve(spec, profile, identity)
    except ValidationError as error:
        return Refused("InvalidSpec", in_words(error, "resolved"))
    return snapshot_of(run, profile.model_copy(update={"image": image}), name or "")


def in_words(error: ValidationError, root: str, most: int = 5) -> str:
    """A pydantic error as people read it: path of the field, what is wrong, the value."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False)[:most]:
        path = ".".join([root, *(str(part) for part in problem["loc"])])
        value = problem["input"]
        got = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
        lines.append(f"{path}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(lines)


def _local_files(spec: FineTuneJobSpec) -> str:
    uris = {
        "spec.baseModel.uri": spec.base_model.uri,
        "spec.dataset.uri": spec.dataset.uri,
        "spec.output.uri": spec.output.uri,
    }
    for field, uri in uris.items():
        if uri.startswith("file://"):
            return f"{field} is {uri}: file:// is for `finetune run` on your own machine; in a cluster use s3://"
    return ""


def _profile(spec: FineTuneJobSpec, profiles: Mapping[str, ProfileState]) -> ProfileState | Refused | None:
    """The profile the job names; if it names none the default one; None where there is none."""
    if spec.profile_name is not None:
        named = profiles.get(spec.profile_name)
        if named is not None:
            return named
        known = ", ".join(sorted(profiles)) or "none"
        return Refused(
            "ProfileNotFound",
            f"spec.profileName {spec.profile_name}: no such FineTuneProfile (there are: {known}); create it, or "
            "delete the job and name another one",
        )
    defaults = sorted(name for name, profile in profiles.items() if profile.is_default)
    if len(defaults) > 1:
        return Refused(
            "AmbiguousProfile",
            f"spec.profileName is not set and {len(defaults)} FineTuneProfiles have isDefault: true "
            f"({', '.join(defaults)}); name one of them, or leave isDefault with one",
        )
    return profiles[defaults[0]] if defaults else None
