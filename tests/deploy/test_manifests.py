"""The Kubernetes manifests: the API knows their fields, and the service what they ask of it."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from crossforge.runtime.serving import health, server
from crossforge.runtime.serving.auth import OPEN_PATHS
from crossforge.runtime.serving.models import ModelSpec
from support.deploy import IMAGES, KUBERNETES, parse_serve, read_documents
from support.serving import fake_service

VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest that docs/deploy.md promises, the first with ``preStop.sleep`` on by default; and the newest that is known."""
WITHOUT_SCHEMA = {"ServiceMonitor"}
"""Of the Prometheus operator, not of Kubernetes."""
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
METRIC = "crossforge_queue_tokens"

BASE = {
    document["kind"]: document
    for path in sorted((KUBERNETES / "base").glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in read_documents(path)
}
POD = BASE["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
SERVED = parse_serve(CONTAINER["args"])
PROBES = {name: CONTAINER[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}


def kustomize(folder: Path, components: Sequence[str], tmp_path: Path) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would send: a folder of the manifests with some components."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl, which holds kustomize")
    copied = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copied)
    chosen = copied / "chosen"
    chosen.mkdir()
    (chosen / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [f"../{folder.name}"],
                "components": [f"../components/{name}" for name in components],
            }
        ),
        encoding="utf-8",
    )
    done = subprocess.run([kubectl, "kustomize", chosen], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def check_fields(documents: Iterable[dict[str, Any]]) -> None:
    """Raise ``ValidationError`` unless the Kubernetes API knows every field, and takes its value."""
    for document in documents:
        if document["kind"] not in WITHOUT_SCHEMA:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)


def test_kubernetes_knows_every_field() -> None:
    check_fields(BASE.values())


@pytest.mark.parametrize(
    ("field", "value"), [("terminationGracePeriodSecond", 60), ("terminationGracePeriodSeconds", "a minute")]
)
def test_the_check_sees_a_misspelt_field_and_a_wrong_type(field: str, value: object) -> None:
    broken = copy.deepcopy(BASE["Deployment"])
    broken["spec"]["template"]["spec"][field] = value

    with pytest.raises(kubernetes_validate.ValidationError):
        check_fields([broken])


@pytest.mark.parametrize("folder", ["base", "gpu"])
@pytest.mark.parametrize("components", [[], *([name] for name in COMPONENTS), COMPONENTS], ids="+".join)
def test_what_kustomize_makes_is_right_and_starts_a_service(folder: str, components: list[str], tmp_path: Path) -> None:
    documents = kustomize(KUBERNETES / folder, components, tmp_path)
    check_fields(documents)
    made = {document["kind"]: document for document in documents}
    pod = made["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    served = parse_serve(container["args"])
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}

    assert container["image"].endswith("-gpu" if folder == "gpu" else "-cpu")
    assert (served["provider"], served["strict"]) == (("cuda", True) if folder == "gpu" else ("auto", False))
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (folder == "gpu")
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert ("PersistentVolumeClaim" in made) == ("model-image" not in components)
    assert (served["api_key_file"] is not None) == ("api-keys" in components)
    if "api-keys" in components:
        assert served["api_key_file"].parent == mounts["api-keys"]
    assert ("ServiceMonitor" in made) == ("monitoring" in components)


def test_the_model_is_copied_to_where_it_is_served_from_also_a_second_time(tmp_path: Path) -> None:
    (document,) = read_documents(KUBERNETES / "components" / "model-image" / "kustomization.yaml")
    (init,) = re.findall(r"command: \[(.*)\]", document["patches"][1]["patch"])
    shell, option, script = yaml.safe_load(f"[{init}]")
    target = Path(ModelSpec.parse(SERVED["bundle"][0]).bundle)
    assert str(target) in script
    (tmp_path / "bundle" / "onnx").mkdir(parents=True)
    (tmp_path / "bundle" / "onnx" / "fp32.onnx").write_text("weights")
    (tmp_path / "bundle" / "onnx" / "fp32.onnx").chmod(0o444)
    script = script.replace(" /", f" {tmp_path}/")

    for _ in range(2):
        subprocess.run([shell, option, script], check=True)
        copied = tmp_path / target.relative_to("/")
        assert [path.relative_to(copied).as_posix() for path in copied.rglob("*.onnx")] == ["onnx/fp32.onnx"]


def test_every_selector_finds_the_pods_and_no_others() -> None:
    labels = POD["metadata"]["labels"]
    selectors = [
        BASE["Service"]["spec"]["selector"],
        BASE["Deployment"]["spec"]["selector"]["matchLabels"],
        BASE["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        BASE["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in POD["spec"]["topologySpreadConstraints"]),
    ]

    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    (monitor,) = read_documents(KUBERNETES / "components" / "monitoring" / "service-monitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= BASE["Service"]["metadata"]["labels"].items()


def test_ports_lead_to_the_service() -> None:
    (port,) = CONTAINER["ports"]
    (exposed,) = BASE["Service"]["spec"]["ports"]
    ((allowed,),) = (rule["ports"] for rule in BASE["NetworkPolicy"]["spec"]["ingress"])
    (monitor,) = read_documents(KUBERNETES / "components" / "monitoring" / "service-monitor.yaml")

    assert (SERVED["host"], SERVED["port"]) == ("0.0.0.0", port["containerPort"])
    assert exposed["targetPort"] == allowed["port"] == port["name"]
    assert {probe["httpGet"]["port"] for probe in PROBES.values()} == {port["name"]}
    assert monitor["spec"]["endpoints"][0]["port"] == exposed["name"]


def test_probes_and_prometheus_ask_paths_that_the_service_answers() -> None:
    (monitor,) = read_documents(KUBERNETES / "components" / "monitoring" / "service-monitor.yaml")
    paths = {name: probe["httpGet"]["path"] for name, probe in PROBES.items()}
    with fake_service() as service:
        answers = [service.get(path).status_code for path in (*paths.values(), monitor["spec"]["endpoints"][0]["path"])]

    assert paths == {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}
    assert set(answers) == {200}
    assert set(paths.values()) <= set(OPEN_PATHS), "a probe brings no key"


def test_the_liveness_probe_outlasts_the_services_own() -> None:
    assert PROBES["livenessProbe"]["timeoutSeconds"] > health.PROBE_TIMEOUT_S


def test_a_pod_is_given_the_time_to_drain() -> None:
    asleep_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert POD["spec"]["terminationGracePeriodSeconds"] > asleep_s + SERVED["drain_timeout"] + server._LAST_S


def test_threads_and_cores_are_as_many() -> None:
    resources = CONTAINER["resources"]

    assert resources["limits"] == resources["requests"]
    assert resources["limits"]["cpu"].isdigit(), "a fraction of a core would be rounded up to a thread"


def test_the_autoscaler_follows_a_metric_that_the_service_exports_and_the_adapter_passes_on() -> None:
    (metric,) = BASE["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (values,) = read_documents(KUBERNETES / "prometheus-adapter-values.yaml")
    (rule,) = values["rules"]["custom"]
    with fake_service() as service:
        exported = service.get("/metrics").text

    assert metric["pods"]["metric"]["name"] == rule["name"]["as"] == METRIC
    assert rule["seriesQuery"].startswith(f"{METRIC}{{")
    assert re.fullmatch(rule["name"]["matches"], METRIC)
    assert f'{METRIC}{{model="tiny"}} ' in exported
    assert int(metric["pods"]["target"]["averageValue"]) < SERVED["max_queue_tokens"], (
        "pods come before requests are refused"
    )


def test_the_autoscaler_alone_counts_the_replicas() -> None:
    target = BASE["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]

    assert (target["kind"], target["name"]) == ("Deployment", BASE["Deployment"]["metadata"]["name"])
    assert "replicas" not in BASE["Deployment"]["spec"]


def test_the_model_lies_in_a_volume_that_nobody_writes_to() -> None:
    (mount,) = CONTAINER["volumeMounts"]
    (volume,) = POD["spec"]["volumes"]

    assert Path(mount["mountPath"]) in ModelSpec.parse(SERVED["bundle"][0]).bundle.parents
    assert mount["name"] == volume["name"]
    assert mount["readOnly"] is volume["persistentVolumeClaim"]["readOnly"] is True
    assert volume["persistentVolumeClaim"]["claimName"] == BASE["PersistentVolumeClaim"]["metadata"]["name"]


def test_the_pod_meets_the_restricted_security_standard() -> None:
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]

    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {image.last("USER") for image in IMAGES.values()} == {f"{pod['runAsUser']}:{pod['runAsGroup']}"}
    assert POD["spec"]["automountServiceAccountToken"] is False


def test_nothing_leaves_the_pod() -> None:
    policy = BASE["NetworkPolicy"]["spec"]

    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
