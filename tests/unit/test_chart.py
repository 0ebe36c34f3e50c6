"""The chart renders what its values say, and its pods keep to the restricted Pod Security Standard."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from finetune_api.profile import FineTuneProfile
from finetune_operator.scope import Scope
from finetune_operator.settings import Settings
from support.need import missing
from support.prometheus import DASHBOARD, dashboard_queries

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/finetune-operator"
DOCS = ROOT / "docs/operator.md"
EVERYTHING = ("--set", "podMonitor.enabled=true,serviceMonitor.enabled=true")
Manifest = dict


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("helm") is None:
        missing("helm is not on the PATH")
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)


@cache
def render(*arguments: str, release: str = "finetune-operator", namespace: str = "finetune-system") -> list[Manifest]:
    where = ("--namespace", namespace, "--kube-version", "1.34.0")
    done = helm("template", release, str(CHART), *where, *arguments)
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
        ("operatorClass=Blue", "operatorClass"),
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


@pytest.mark.parametrize("values", ["replicas=1", "watchNamespace=team-a", "kueue.enabled=true,progress=apiProxy"])
def test_no_rule_has_a_wildcard_or_reads_secrets(values: str) -> None:
    found = list(rules(render("--set", values)))
    assert found
    for _, rule in found:
        assert "*" not in "".join([*rule["apiGroups"], *rule["resources"], *rule["verbs"]])
        assert not any("secrets" in resource for resource in rule["resources"])
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])


RIGHTS = {
    "finetune.dev/finetuneprofiles": "get list watch",
    "finetune.dev/finetunejobs": "get list watch delete",
    "finetune.dev/finetunejobs/status": "patch",
    "finetune.dev/finetunejobs/finalizers": "update",
    "batch/jobs": "get list watch create patch delete",
    "core/pods": "get list watch delete",
    "core/pods/status": "patch",
    "core/services": "get create",
    "core/configmaps": "get create delete",
    "core/events": "list watch",
    "events.k8s.io/events": "create",
}


def granted(manifests: list[Manifest], *kinds: str) -> dict[str, str]:
    return {
        f"{group or 'core'}/{resource}": " ".join(rule["verbs"])
        for kind, rule in rules([m for m in manifests if not m["metadata"]["name"].endswith("-lease")])
        if kind in kinds
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ("kueue.enabled=false", {}),
        ("kueue.enabled=true", {"kueue.x-k8s.io/workloads": "list"}),
        ("progress=apiProxy", {"core/pods/proxy": "get"}),
    ],
)
def test_the_operator_may_do_what_it_does_and_no_more(values: str, more: dict[str, str]) -> None:
    """That it needs all of it, and nothing else, is shown on a real API server (test_operator_rights)."""
    assert granted(render("--set", values), "ClusterRole") == {**RIGHTS, **more}


def test_one_namespace_needs_no_right_beyond_it() -> None:
    manifests = render("--set", "watchNamespace=team-a")
    assert granted(manifests, "ClusterRole") == {"finetune.dev/finetuneprofiles": "get list watch"}
    assert {**granted(manifests, "Role"), **granted(manifests, "ClusterRole")} == RIGHTS
    roles = of_kind(manifests, "Role")
    assert {role["metadata"]["namespace"] for role in roles} == {"team-a", "finetune-system"}
    assert {"name": "FINETUNE_OPERATOR_NAMESPACE", "value": "team-a"} in environment(manifests)


def test_the_documents_table_of_rights_is_the_charts() -> None:
    section = DOCS.read_text().split("## What it may do")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    written = set()
    for name, verbs in (row[:2] for row in rows):
        resource, _, sub = name.partition("/")
        plural, _, group = resource.partition(".")
        written |= {(group, f"{plural}/{sub}" if sub else plural, verb) for verb in verbs.split(", ")}
    given = {
        (group, resource, verb)
        for _, rule in rules(render("--set", "kueue.enabled=true,progress=apiProxy"))
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert written == given


def test_every_setting_is_in_the_document() -> None:
    section = DOCS.read_text().split("## Settings")[1].split("\n## ")[0]
    table = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")][2:]
    assert {name.strip() for cell in table for name in cell.split(",")} == settings()


def settings() -> set[str]:
    return {name.upper() for name in Settings.model_fields} - {"OPERATOR_CLASS"} | {"CLASS"}


def environment(manifests: list[Manifest]) -> list[dict]:
    (deployment,) = of_kind(manifests, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container["env"]


def test_the_lease_has_the_name_that_the_role_allows() -> None:
    for release in ("finetune-operator", "blue"):
        manifests = render(release=release)
        (role,) = (m for m in of_kind(manifests, "Role") if m["metadata"]["name"].endswith("-lease"))
        (names,) = [rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule]
        (lease,) = [e["value"] for e in environment(manifests) if e["name"] == "FINETUNE_OPERATOR_LEASE_NAME"]
        assert names == [lease]


def test_settings_of_the_deployment_are_settings_of_the_operator() -> None:
    """A name that the operator does not know would be passed over in silence."""
    everything = render("--set", "kueue.enabled=true,operatorClass=gpu,progress=off")
    given = {entry["name"].removeprefix("FINETUNE_OPERATOR_") for entry in environment(everything)}
    assert given <= settings()


def test_a_class_reaches_the_operator_and_its_pod_monitor() -> None:
    manifests = render("--set", "operatorClass=gpu,podMonitor.enabled=true")
    assert {"name": "FINETUNE_OPERATOR_CLASS", "value": "gpu"} in environment(manifests)
    (monitor,) = of_kind(manifests, "PodMonitor")
    label = Scope(operator_class="gpu").mark({"metadata": {}})["metadata"]["labels"]
    ((key, value),) = label.items()
    assert monitor["spec"]["selector"]["matchExpressions"] == [{"key": key, "operator": "In", "values": [value]}]
    assert Settings(FINETUNE_OPERATOR_CLASS="gpu").operator_class == "gpu"


@pytest.mark.parametrize(
    ("release", "namespace"), [("blue", "finetune-system"), ("finetune-operator", "another"), ("blue", "another")]
)
def test_releases_of_two_classes_have_nothing_in_common(release: str, namespace: str) -> None:
    second = ("--set", "operatorClass=blue,crds.install=false,profiles.cpuTiny.enabled=false")
    watching_the_same = ("--set", "watchNamespace=team-a,podMonitor.enabled=true")
    for more in ((), watching_the_same):
        first = {name_of(m) for m in render(*more)}
        assert not first & {name_of(m) for m in render(*more, *second, release=release, namespace=namespace)}


def name_of(manifest: Manifest) -> tuple[str, str, str]:
    """As two releases may collide: what belongs to no namespace names none."""
    meta = manifest["metadata"]
    return manifest["kind"], meta.get("namespace", ""), meta["name"]


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
