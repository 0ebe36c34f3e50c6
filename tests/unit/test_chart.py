"""The chart renders what its values say, and its pods keep to the restricted Pod Security Standard."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from finetune_api.profile import FineTuneProfile
from support.need import missing
from support.prometheus import DASHBOARD, dashboard_queries

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/finetune-operator"
EVERYTHING = ("--set", "podMonitor.enabled=true,serviceMonitor.enabled=true")
Manifest = dict


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("helm") is None:
        missing("helm is not on the PATH")
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)


def render(*arguments: str) -> list[Manifest]:
    where = ("--namespace", "finetune-system", "--kube-version", "1.34.0")
    done = helm("template", "finetune-operator", str(CHART), *where, *arguments)
    assert done.returncode == 0, done.stderr
    return [m for m in yaml.safe_load_all(done.stdout) if m]


def kinds(manifests: list[Manifest]) -> set[str]:
    return {m["kind"] for m in manifests}


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] == kind]


def rules(manifests: list[Manifest]) -> Iterator[tuple[str, dict]]:
    for manifest in manifests:
        for rule in manifest.get("rules", []):
            yield manifest["kind"], rule


@pytest.fixture(scope="module")
def everything() -> list[Manifest]:
    return render(*EVERYTHING)


def test_lint_has_nothing_to_say() -> None:
    done = helm("lint", str(CHART), "--strict", "--values", str(ROOT / "hack/kind/values.yaml"))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("values", "kind", "installed"),
    [
        ("crds.install=true", "CustomResourceDefinition", True),
        ("crds.install=false", "CustomResourceDefinition", False),
        ("profiles.cpuTiny.enabled=true", "FineTuneProfile", True),
        ("profiles.cpuTiny.enabled=false", "FineTuneProfile", False),
        ("podMonitor.enabled=true", "PodMonitor", True),
        ("podMonitor.enabled=false", "PodMonitor", False),
        ("serviceMonitor.enabled=true", "ServiceMonitor", True),
        ("serviceMonitor.enabled=false", "ServiceMonitor", False),
        ("metrics.service.enabled=true", "Service", True),
        ("metrics.service.enabled=false", "Service", False),
        ("dashboard.enabled=true", "ConfigMap", True),
        ("dashboard.enabled=false", "ConfigMap", False),
    ],
)
def test_toggles(values: str, kind: str, installed: bool) -> None:
    assert (kind in kinds(render("--set", values))) is installed


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ("watchNamespaces=a", "watchNamespaces"),
        ("watchNamespace=Not_A_Name", "watchNamespace"),
        ("logFormat=xml", "logFormat"),
        ("image.repository=", "repository"),
        ("podMonitor.interval=often", "interval"),
        ("metrics.service.enabled=false,serviceMonitor.enabled=true", "serviceMonitor.enabled needs metrics.service"),
    ],
)
def test_bad_values_are_refused(values: str, says: str) -> None:
    done = helm("template", "x", str(CHART), "--kube-version", "1.34.0", "--set", values)
    assert done.returncode != 0
    assert says in done.stderr


def test_definitions_and_what_people_made_stay_when_the_release_goes(everything: list[Manifest]) -> None:
    definitions = of_kind(everything, "CustomResourceDefinition")
    assert {d["metadata"]["name"] for d in definitions} == {
        "finetunejobs.finetune.dev",
        "finetuneprofiles.finetune.dev",
    }
    assert all(d["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for d in definitions)


def test_cpu_tiny_is_a_profile() -> None:
    (manifest,) = of_kind(render("--values", str(ROOT / "hack/kind/values.yaml")), "FineTuneProfile")
    profile = FineTuneProfile.model_validate(manifest)
    assert profile.spec.is_default
    assert profile.spec.resources is not None
    assert not any("gpu" in name for name in (profile.spec.resources.limits or {}))


def test_the_operators_pod_is_restricted(everything: list[Manifest]) -> None:
    (deployment,) = of_kind(everything, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all("hostPath" not in volume for volume in pod["volumes"])
    assert container["resources"]["limits"]["memory"]


def test_no_rule_has_a_wildcard_or_reads_secrets(everything: list[Manifest]) -> None:
    found = list(rules(everything))
    assert found
    for _, rule in found:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "secrets" not in rule["resources"]
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])


def test_the_operator_may_do_what_it_does_and_no_more(everything: list[Manifest]) -> None:
    granted = {
        f"{group or 'core'}/{resource}": " ".join(rule["verbs"])
        for kind, rule in rules(everything)
        if kind == "ClusterRole"
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == {
        "finetune.dev/finetuneprofiles": "get list watch",
        "finetune.dev/finetunejobs": "get list watch delete",
        "finetune.dev/finetunejobs/status": "patch",
        "finetune.dev/finetunejobs/finalizers": "update",
        "batch/jobs": "get list watch create patch delete",
        "core/pods": "get list watch",
        "core/services": "get create",
        "core/configmaps": "get create delete",
        "core/events": "list watch",
        "events.k8s.io/events": "create",
    }


def test_one_namespace_needs_no_right_beyond_it() -> None:
    manifests = render("--set", "watchNamespace=team-a")
    cluster_wide = [rule for kind, rule in rules(manifests) if kind == "ClusterRole"]
    assert cluster_wide == [
        {"apiGroups": ["finetune.dev"], "resources": ["finetuneprofiles"], "verbs": ["get", "list", "watch"]}
    ]
    roles = of_kind(manifests, "Role")
    assert {role["metadata"]["namespace"] for role in roles} == {"team-a", "finetune-system"}
    (deployment,) = of_kind(manifests, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "FINETUNE_OPERATOR_NAMESPACE", "value": "team-a"} in container["env"]


def test_every_binding_is_for_the_operators_account(everything: list[Manifest]) -> None:
    (account,) = of_kind(everything, "ServiceAccount")
    for binding in of_kind(everything, "ClusterRoleBinding") + of_kind(everything, "RoleBinding"):
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (account["metadata"]["name"], "finetune-system")
        same_name = [m for m in everything if m["kind"] == binding["roleRef"]["kind"]]
        assert binding["roleRef"]["name"] in {m["metadata"]["name"] for m in same_name}


def test_monitors_find_the_pods_and_keep_their_labels(everything: list[Manifest]) -> None:
    (deployment,) = of_kind(everything, "Deployment")
    (service,) = of_kind(everything, "Service")
    (service_monitor,) = of_kind(everything, "ServiceMonitor")
    (pod_monitor,) = of_kind(everything, "PodMonitor")
    wanted = service_monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert service_monitor["spec"]["endpoints"][0]["port"] in {p["name"] for p in service["spec"]["ports"]}
    assert pod_monitor["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": "finetune-trainer"}
    (endpoint,) = pod_monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["honorLabels"]) == ("metrics", True)


def test_the_dashboard_is_shipped_as_it_is(everything: list[Manifest]) -> None:
    (shipped,) = of_kind(everything, "ConfigMap")
    assert shipped["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(shipped["data"]["finetunejob.json"]) == json.loads(DASHBOARD.read_text())


def test_the_dashboard_shows_what_a_person_asks_about() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [p for p in dashboard["panels"] if p["type"] != "row"]
    assert {"Loss", "Progress", "Images per second", "Memory", "Learning rate", "Gradient norm", "Phases"} <= {
        p["title"] for p in panels
    }
    assert len({p["id"] for p in dashboard["panels"]}) == len(dashboard["panels"])
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["datasource", "namespace", "finetunejob"]
    assert all(t["datasource"]["uid"] == "${datasource}" for p in panels for t in p["targets"])
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24


def test_the_dashboard_asks_only_for_variables_it_has() -> None:
    queries = [query for _, query in dashboard_queries(namespace="team-a", finetunejob="my-dog")]
    assert not [query for query in queries if "$" in query]
    assert sum('finetunejob="my-dog"' in re.sub(r"\s", "", query) for query in queries) >= 15
