"""Jobs that do not fit their profile, each with the words a person needs. Asked of three judges: Python (tests/unit),
the API server (tests/contract) and `finetune validate`."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from bad_specs import GOOD

NAMESPACE = "default"
PROFILE = "limited"


@dataclass(frozen=True)
class Misfit:
    spec: dict[str, Any]
    """What the job says beyond GOOD; a section is merged with GOOD's."""
    profile: dict[str, Any]
    says: str
    also: tuple[str, ...] = field(default=())
    """What else is wrong with it."""

    @property
    def id(self) -> str:
        return self.says[:60]

    def job(self, profile: str = PROFILE) -> dict[str, Any]:
        """The FineTuneJob, with the name of its profile."""
        thing = copy.deepcopy(GOOD)
        thing["metadata"]["namespace"] = NAMESPACE
        thing["spec"]["profileName"] = profile
        for name, value in self.spec.items():
            old = thing["spec"].get(name)
            thing["spec"][name] = {**old, **value} if isinstance(old, dict) and name != "method" else value
        return thing


def profile_document(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A FineTuneProfile."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": name},
        "spec": spec,
    }


def limits(**values: object) -> dict[str, Any]:
    return {"limits": values}


DREAM_BOOTH = {"dreamBooth": {"prompt": "a photo of sks circle"}}
EVIL = {"storage": {"endpoint": "http://evil"}}
ONLY_S3 = "FineTuneProfile limited allows only http://s3 (limits.allowedEndpoints); use one of them"
NO_WARMUP_END = "the learning rate would never arrive; use fewer warm-up steps"
MANY = tuple(f"team-{i:03}" for i in range(256))

MISFITS = (
    # --- numbers
    Misfit(
        {"training": {"steps": 900}},
        limits(maxSteps=500),
        "spec.training.steps is 900, FineTuneProfile limited allows at most 500 (limits.maxSteps); use 500 or less",
    ),
    Misfit(
        {},
        limits(maxSteps=499),
        "spec.training.steps is 500 by default, FineTuneProfile limited allows at most 499",
    ),
    Misfit({"method": DREAM_BOOTH}, limits(maxSteps=399), "spec.training.steps is 400 by default"),
    Misfit(
        {"training": {"epochs": 9}},
        limits(maxSteps=500),
        "spec.training.epochs is 9, but FineTuneProfile limited has limits.maxSteps and how many steps an epoch has is "
        "known only later; use spec.training.steps",
    ),
    Misfit(
        {"engine": {"nodes": 3}},
        limits(maxNodes=2),
        "spec.engine.nodes is 3, FineTuneProfile limited allows at most 2 (limits.maxNodes); use 2 or less",
    ),
    Misfit(
        {"runPolicy": {"activeDeadlineSeconds": 3601}},
        limits(maxActiveDeadlineSeconds=3600),
        "spec.runPolicy.activeDeadlineSeconds is 3601, FineTuneProfile limited allows at most 3600 "
        "(limits.maxActiveDeadlineSeconds); use 3600 or less",
    ),
    # --- lists
    Misfit(
        {},
        limits(allowedNamespaces=["team-a", "team-b"]),
        "metadata.namespace is default, FineTuneProfile limited allows only team-a, team-b "
        "(limits.allowedNamespaces); use one of them, or another spec.profileName",
    ),
    Misfit({}, limits(allowedNamespaces=list(MANY)), "team-039, … (limits.allowedNamespaces)"),
    Misfit(
        {"image": "evil:1"},
        {},
        "spec.image is evil:1, FineTuneProfile limited allows none (limits.allowedImages); use one of them or remove",
    ),
    Misfit(
        {"image": "trainer:12"}, limits(allowedImages=["trainer:1"]), "allows only trainer:1 (limits.allowedImages)"
    ),
    Misfit({"image": "trainer"}, limits(allowedImages=["trainer:1"]), "spec.image is trainer, "),
    Misfit(
        {"serviceAccountName": "admin"},
        {},
        "spec.serviceAccountName is admin, FineTuneProfile limited allows none (limits.allowedServiceAccounts)",
    ),
    Misfit({"serviceAccountName": "admin"}, limits(allowedServiceAccounts=["irsa"]), "allows only irsa ("),
    Misfit(
        {"baseModel": {"secretRef": {"name": "root"}}},
        limits(allowedSecretNames=["s3"]),
        "spec.baseModel.secretRef.name is root, FineTuneProfile limited allows only s3 (limits.allowedSecretNames)",
    ),
    Misfit({"dataset": {"secretRef": {"name": "root"}}}, limits(allowedSecretNames=["s3"]), "spec.dataset.secretRef"),
    Misfit({"output": {"secretRef": {"name": "root"}}}, limits(allowedSecretNames=["s3"]), "spec.output.secretRef"),
    # --- where data goes
    *(
        Misfit(
            {section: EVIL},
            {**limits(allowedEndpoints=["http://s3"]), "defaults": {"storage": {"endpoint": "http://s3"}}},
            f"spec.{section}.storage.endpoint is http://evil, {ONLY_S3}",
        )
        for section in ("baseModel", "dataset", "output")
    ),
    Misfit(
        {"dataset": {"storage": {"endpoint": "http://s3"}}},
        limits(allowedEndpoints=["http://s3"]),
        f"spec.output.storage.endpoint is AWS S3 by default, {ONLY_S3}",
    ),
    Misfit(
        {"output": {"storage": {"region": "eu-1"}}, "dataset": {"storage": {"endpoint": "http://s3"}}},
        limits(allowedEndpoints=["http://s3", "http://b"]),
        "spec.output.storage.endpoint is AWS S3 by default, FineTuneProfile limited allows only http://s3, http://b (",
    ),
    # --- what only the two together decide
    Misfit(
        {"training": {"scheduler": {"warmupSteps": 500}}},
        {},
        f"spec.training.scheduler.warmupSteps is 500 but the training has 500 steps: {NO_WARMUP_END}",
    ),
    Misfit(
        {"training": {"scheduler": {"warmupSteps": 40}}},
        {"defaults": {"training": {"steps": 30}}},
        f"spec.training.scheduler.warmupSteps is 40 but the training has 30 steps: {NO_WARMUP_END}",
    ),
    Misfit(
        {"training": {"steps": 20}},
        {"defaults": {"training": {"scheduler": {"warmupSteps": 20}}}},
        f"spec.training.scheduler.warmupSteps is 20 by default but the training has 20 steps: {NO_WARMUP_END}",
    ),
    Misfit(
        {"engine": {"nodes": 2}},
        {"defaults": {"engine": {"kind": "Eager"}}},
        "spec.engine.nodes is 2 but the engine's kind is Eager, which works in one process; use engine.kind: Auto",
    ),
    Misfit(
        {"engine": {"kind": "Eager"}},
        {"defaults": {"engine": {"processesPerNode": 4}}},
        "spec.engine.processesPerNode is 4 by default but the engine's kind is Eager, which works in one process",
    ),
    # --- an optimizer that the engine cannot work with: both are the job's, or one is the profile's
    Misfit(
        {"engine": {"kind": "Captured"}, "training": {"optimizer": {"name": "Prodigy"}}},
        {},
        "spec.training.optimizer.name is Prodigy but the engine's kind is Captured, which works with AdamW or AdamW8",
    ),
    Misfit(
        {"training": {"optimizer": {"name": "AdamW8bit"}}},
        {"defaults": {"engine": {"kind": "DeepSpeed"}}},
        "spec.training.optimizer.name is AdamW8bit but the engine's kind is DeepSpeed, which works with AdamW; use",
    ),
    Misfit(
        {"engine": {"kind": "Sharded"}},
        {"defaults": {"training": {"optimizer": {"name": "Adafactor"}}}},
        "spec.training.optimizer.name is Adafactor by default but the engine's kind is Sharded, which works with AdamW",
    ),
    # --- all at once
    Misfit(
        {"training": {"steps": 900}, "image": "evil:1", "engine": {"nodes": 8}},
        limits(maxSteps=500, maxNodes=1),
        "spec.training.steps is 900",
        also=("spec.engine.nodes is 8", "spec.image is evil:1"),
    ),
)

FITS = (
    Misfit(
        {"engine": {"kind": "Compiled"}, "training": {"optimizer": {"name": "AdamW8bit"}}},
        {"defaults": {"training": {"optimizer": {"name": "Prodigy"}}}},
        "an optimizer of its own",
    ),
    Misfit({"training": {"optimizer": {"name": "Prodigy"}}}, {}, "any optimizer with Auto"),
    Misfit({"training": {"steps": 500}}, limits(maxSteps=500), "as many steps as allowed"),
    Misfit({"engine": {"nodes": 2}}, limits(maxNodes=2), "as many nodes as allowed"),
    Misfit({"engine": {"kind": "Auto", "nodes": 2}}, {"defaults": {"engine": {"kind": "Eager"}}}, "a kind of its own"),
    Misfit({"engine": {"nodes": 1}}, {"defaults": {"engine": {"kind": "Eager"}}}, "one process of the profile's kind"),
    Misfit({"training": {"epochs": 9}}, {"defaults": {"training": {"steps": 9}}}, "epochs in place of default steps"),
    Misfit({}, limits(allowedNamespaces=["team-a", NAMESPACE]), "an allowed namespace"),
    Misfit({"image": "trainer:1"}, limits(allowedImages=["trainer:0", "trainer:1"]), "an allowed image"),
    Misfit({"serviceAccountName": "irsa"}, limits(allowedServiceAccounts=["irsa"]), "an allowed service account"),
    Misfit({"output": {"secretRef": {"name": "s3"}}}, limits(allowedSecretNames=["s3"]), "an allowed Secret"),
    Misfit({"output": {"secretRef": {"name": "any"}}}, {}, "any Secret"),
    Misfit({"output": EVIL}, {}, "any endpoint"),
    Misfit(
        {},
        {**limits(allowedEndpoints=["http://b"]), "defaults": {"storage": {"endpoint": "http://a"}}},
        "the profile's own endpoint",
    ),
    Misfit({"training": {"scheduler": {"warmupSteps": 499}}}, {}, "the longest warm-up of the built-in steps"),
    Misfit(
        {"training": {"epochs": 1, "scheduler": {"warmupSteps": 600}}}, {}, "a warm-up in a training of unknown length"
    ),
)
