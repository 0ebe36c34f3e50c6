"""The children, to the byte: golden files for what the API server gets. `UPDATE_GOLDEN=1` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
import yaml
from finetune_api.engine import EngineSpec
from finetune_api.training_run import TrainingRun
from finetune_operator.projections import child_state, controller_uid
from finetune_operator.specs.configmap import Snapshot, snapshot_config_map, snapshot_in
from finetune_operator.specs.job import training_job
from finetune_operator.specs.service import headless_service
from finetune_operator.specs.volumes import WORK_DIR, claim_of, volumes_of
from finetune_trainer.group.place import place_of
from finetune_trainer.settings import Settings
from pydantic import ValidationError
from support.observations import IDENTITY, UID, profile, snapshot, spec

GOLDEN = Path(__file__).parent / "golden"

PLAIN = snapshot()
FULL = snapshot(
    spec(
        baseModel={"uri": "pvc://models/sd15", "secretRef": {"name": "hub"}},
        method={"dreamBooth": {"prompt": "a photo of sks dog"}},
        dataset={"uri": "pvc://pictures/dog", "secretRef": {"name": "pictures"}},
        serviceAccountName="identity",
    ),
    (
        profile(
            default=True,
            imagePullPolicy="Always",
            imagePullSecrets=["registry"],
            resources={"requests": {"cpu": "4"}, "limits": {"nvidia.com/gpu": "1"}},
            nodeSelector={"gpu": "h200"},
            tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            runtimeClassName="nvidia",
            priorityClassName="batch",
            cache={"claimName": "cache"},
            scratchSizeLimit="100Gi",
            terminationGracePeriodSeconds=300,
            limits={"maxActiveDeadlineSeconds": 7200, "allowedServiceAccounts": ["identity"]},
        ),
    ),
)
GROUP = snapshot(spec(engine={"nodes": 3, "processesPerNode": 2}))


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("operator_job_plain.yaml", training_job(PLAIN, None, backoff_limit=3, retries_before=0)),
        ("operator_job_full.yaml", training_job(FULL, "identity", backoff_limit=1, retries_before=2)),
        ("operator_service.yaml", headless_service(PLAIN.run)),
        ("operator_job_group.yaml", training_job(GROUP, None, backoff_limit=3, retries_before=0)),
        ("operator_service_group.yaml", headless_service(GROUP.run)),
    ],
)
def test_children_are_as_they_were(name: str, built: dict[str, object]) -> None:
    text = yaml.safe_dump(built, sort_keys=False, width=110)
    for made in (PLAIN, FULL, GROUP):  # the run itself is the API's, and tested there
        text = text.replace(made.digest, "DIGEST")
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


def test_nothing_in_the_golden_pods_leads_out_of_the_sandbox() -> None:
    for made in (PLAIN, FULL, GROUP):
        pod = training_job(made, None, 3, 0)["spec"]["template"]["spec"]
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & pod.keys()
        (container,) = pod["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert "envFrom" not in container
        assert not [entry for entry in container["env"] if "secretKeyRef" in entry.get("valueFrom", {})]


def test_the_snapshot_comes_back_as_it_went() -> None:
    body = snapshot_config_map(IDENTITY, FULL)
    assert body["immutable"] is True
    assert body["metadata"]["name"] == f"dog-{UID[:8]}"
    assert controller_uid(body) == UID
    assert snapshot_in(body) == FULL
    assert FULL.run == TrainingRun.from_json(FULL.run_json)
    assert FULL.profile.limits is not None


@pytest.mark.parametrize("data", [None, {}, {"run.json": "{}"}, {"profile.json": "{}"}])
def test_another_config_map_is_never_what_a_job_was_accepted_with(data: dict[str, str] | None) -> None:
    assert snapshot_in({"data": data}).digest != FULL.digest


def test_the_same_job_and_profile_give_the_same_digests() -> None:
    assert snapshot() == PLAIN
    assert snapshot().digest == PLAIN.digest
    assert Snapshot(PLAIN.run_json, "{}").profile_digest != PLAIN.profile_digest


def test_what_a_job_is_told_is_read_back_from_it() -> None:
    body = training_job(FULL, None, backoff_limit=1, retries_before=2)
    body["metadata"] |= {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "12"}
    state = child_state(body)
    assert (state.owner_uid, state.version) == (UID, 12)
    assert (state.backoff_limit, state.retries_before, state.longest_deadline) == (1, 2, 7200)
    assert state.run_digest == FULL.digest
    assert (state.complete, state.failure) == (False, None)


def test_several_processes_in_one_pod_are_no_group_of_pods() -> None:
    """They find each other without a name, and a Job of one pod stays as it was."""
    one = snapshot(spec(engine={"processesPerNode": 4}))
    made = training_job(one, None, 3, 0)
    assert one.run.engine.processes_per_node == 4
    assert yaml.safe_dump(made).replace(one.digest, PLAIN.digest) == yaml.safe_dump(training_job(PLAIN, None, 3, 0))


def test_the_trainer_understands_what_a_pod_of_a_group_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 is where the Job's own host names say, and the port is the one that the pod opens."""
    body = training_job(GROUP, None, 3, 0)
    pod = body["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for entry in container["env"]:
        monkeypatch.setenv(entry["name"], entry.get("value", "2"))
    place = place_of(GROUP.run, GROUP.digest, Settings())
    assert place is not None
    name, _, domain = place.host.partition(".")
    assert name == f"{body['metadata']['name']}-0"
    assert domain == f"{pod['subdomain']}.{body['metadata']['namespace']}.svc"
    assert pod["subdomain"] == headless_service(GROUP.run)["metadata"]["name"]
    assert place.port in [port["containerPort"] for port in container["ports"]]
    assert (place.nodes, place.per_node, place.node) == (3, 2, 2)
    assert [seat.rank for seat in place.seats("g", 1)] == [4, 5]


DISK = {"kind": "DeepSpeed", "zeroStage": 3, "offloadOptimizer": "Nvme"}


def mounts(made: Snapshot) -> dict[str, str]:
    """Path → name of the volume."""
    volumes = volumes_of(made.run, made.profile)
    assert [mount["name"] for mount in volumes.mounts] == [volume["name"] for volume in volumes.volumes]
    return {mount["mountPath"]: mount["name"] for mount in volumes.mounts}


def test_offload_to_a_disk_has_a_volume_of_its_own() -> None:
    """On the node's disk, bounded as the scratch volume is; everything else of a pod can only be read."""
    made = snapshot(
        spec(engine=DISK | {"nvmePath": "/fast/offload"}), (profile(default=True, scratchSizeLimit="90Gi"),)
    )
    pod = training_job(made, None, 3, 0)["spec"]["template"]["spec"]
    assert {"name": "offload", "emptyDir": {"sizeLimit": "90Gi"}} in pod["volumes"]
    assert {"name": "offload", "mountPath": "/fast/offload"} in pod["containers"][0]["volumeMounts"]


def test_offload_within_the_scratch_volume_needs_no_other() -> None:
    for path in (WORK_DIR, f"{WORK_DIR}/offload"):
        assert mounts(snapshot(spec(engine=DISK | {"nvmePath": path}))) == mounts(PLAIN)
    assert mounts(snapshot(spec(engine=DISK | {"nvmePath": f"{WORK_DIR}-2"})))[f"{WORK_DIR}-2"] == "offload"


def test_no_volume_hides_another() -> None:
    """The API refuses a path of which another volume is a part, and one that is a part of another."""
    others = [path for path in mounts(FULL) if path != WORK_DIR]
    assert len(others) >= 5
    for path in (*others, *(parent.as_posix() for each in others for parent in PurePosixPath(each).parents)):
        for offload in (path, f"{path}/offload".replace("//", "/")):
            if any(f"{other}/".startswith(f"{offload}/") or f"{offload}/".startswith(f"{other}/") for other in others):
                with pytest.raises(ValidationError, match="nvmePath must"):
                    EngineSpec.model_validate(DISK | {"nvmePath": offload})


def test_claims() -> None:
    assert claim_of("pvc://models/sd15/unet") == "models"
    assert claim_of("pvc://models") == "models"
    assert claim_of("s3://models/sd15") is None
