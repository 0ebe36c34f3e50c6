"""The API server itself: every example is accepted, every bad spec refused with words that help.

The first reader of a mistake is the person at `kubectl apply`; these are the messages they see.
"""

import copy
from pathlib import Path

import pytest
import yaml
from bad_specs import BAD_SPECS, GOOD, Bad
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

ROOT = Path(__file__).parents[2]
PLURALS = {"FineTuneJob": "finetunejobs", "FineTuneProfile": "finetuneprofiles"}
# `finetune run` alone takes these: file:// means nothing in a cluster
LOCAL_EXAMPLES = {"compare.yaml", "local.yaml"}


@pytest.fixture(scope="module")
def api(api_server: Path) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(config.new_client_from_config(str(api_server)))


def dry_run(api: client.CustomObjectsApi, thing: dict) -> dict:
    where = {"group": "finetune.dev", "version": "v1alpha1", "plural": PLURALS[thing["kind"]]}
    how = {"dry_run": "All", "field_validation": "Strict"}
    if thing["kind"] == "FineTuneProfile":
        return api.create_cluster_custom_object(body=thing, **where, **how)
    return api.create_namespaced_custom_object(namespace="default", body=thing, **where, **how)


def example_documents() -> list[tuple[str, dict]]:
    files = sorted(p for p in (ROOT / "examples").glob("*.yaml") if p.name not in LOCAL_EXAMPLES)
    return [(p.name, d) for p in files for d in yaml.safe_load_all(p.read_text()) if d["kind"] in PLURALS]


@pytest.mark.parametrize(("name", "document"), example_documents(), ids=lambda v: v if isinstance(v, str) else "")
def test_every_example_is_accepted(api: client.CustomObjectsApi, name: str, document: dict) -> None:
    assert dry_run(api, document)["metadata"]["name"]


def test_the_spec_that_the_table_spoils_is_good(api: client.CustomObjectsApi) -> None:
    assert dry_run(api, GOOD)["spec"] == GOOD["spec"], "nothing is pruned, nothing is added"


def test_the_table_is_long_enough() -> None:
    assert len(BAD_SPECS) >= 40


@pytest.mark.parametrize("bad", BAD_SPECS, ids=lambda b: b.id)
def test_refused_with_the_words_a_person_needs(api: client.CustomObjectsApi, bad: Bad) -> None:
    with pytest.raises(ApiException) as refused:
        dry_run(api, bad.object())
    message = yaml.safe_load(refused.value.body)["message"]
    assert bad.says in message
    last = bad.path.rsplit(".", 1)[-1]
    assert last in message or bad.path.rsplit(".", 2)[-2] in message, "the field is named"


PROFILES = [
    ({"image": ""}, "spec.image"),
    ({"resources": {"limits": {"cpu": "many"}}}, "spec.resources.limits"),
    ({"terminationGracePeriodSeconds": 1}, "should be greater than or equal to 10"),
    ({"nodeLost": "Reboot"}, "spec.nodeLost: Unsupported value"),
    ({"scratchSizeLimit": "plenty"}, "spec.scratchSizeLimit"),
    ({"defaults": {"resolution": 100}}, "resolution must be a multiple of 8"),
    (
        {"defaults": {"training": {"steps": 9}}, "limits": {"maxSteps": 8}},
        "defaults.training.steps must not be above limits.maxSteps",
    ),
    (
        {"defaults": {"training": {"epochs": 9}}, "limits": {"maxSteps": 8}},
        "set at most one of defaults.training.epochs, limits.maxSteps",
    ),
    (
        {"defaults": {"engine": {"nodes": 3}}, "limits": {"maxNodes": 2}},
        "defaults.engine.nodes must not be above limits.maxNodes",
    ),
    ({"defaults": {"training": {"steps": 5, "scheduler": {"warmupSteps": 5}}}}, "warmupSteps must be below steps"),
    ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "value can only be set with operator: Equal"),
    ({"tolerations": [{"key": "a", "tolerationSeconds": 9}]}, "tolerationSeconds can only be set with effect"),
    ({"tolerations": [{"operator": "Equal"}]}, "without key set operator: Exists"),
    ({"hostPath": "/"}, 'unknown field "spec.hostPath"'),
]


@pytest.mark.parametrize(("spec", "says"), PROFILES, ids=lambda v: str(v)[:40])
def test_bad_profile_is_refused(api: client.CustomObjectsApi, spec: dict, says: str) -> None:
    profile = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "p"},
        "spec": spec,
    }
    with pytest.raises(ApiException) as refused:
        dry_run(api, profile)
    assert says in yaml.safe_load(refused.value.body)["message"]


CHANGES = [
    ("method", {"lora": {"prompt": "another"}}, "method cannot be changed after creation"),
    ("output", {"uri": "s3://elsewhere/x/"}, "output cannot be changed after creation"),
    ("training", {"steps": 10}, "training cannot be changed after creation"),
    ("profileName", "other", "profileName cannot be changed after creation"),
    ("operatorClass", "other", "operatorClass cannot be changed after creation"),
    ("suspend", True, None),
    ("runPolicy", {"retries": 9, "ttlSecondsAfterFinished": 1, "activeDeadlineSeconds": 9}, None),
    ("runPolicy", {"startDeadlineSeconds": 60}, None),
    ("runPolicy", {"queueName": "gpus"}, "runPolicy.queueName cannot be changed after creation"),
]


@pytest.mark.parametrize(("field", "value", "says"), CHANGES, ids=lambda v: str(v)[:30])
def test_only_suspend_and_the_run_policy_change_after_creation(
    api: client.CustomObjectsApi, field: str, value: object, says: str | None
) -> None:
    thing = copy.deepcopy(GOOD)
    thing["metadata"]["name"] = "immutable"
    where = {"group": "finetune.dev", "version": "v1alpha1", "namespace": "default", "plural": "finetunejobs"}
    api.create_namespaced_custom_object(body=thing, **where)
    try:
        patch = {"spec": {field: value}}
        if says is None:
            api.patch_namespaced_custom_object(name="immutable", body=patch, **where)
            return
        with pytest.raises(ApiException) as refused:
            api.patch_namespaced_custom_object(name="immutable", body=patch, **where)
        assert says in yaml.safe_load(refused.value.body)["message"]
    finally:
        api.delete_namespaced_custom_object(name="immutable", **where)
