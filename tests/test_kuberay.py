"""The manifest of examples/kuberay is one that KubeRay takes, and its command one that the job takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_batch.cli import jobs
from llava_batch.job import Job

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "kuberay"

JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata",
    "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "entrypoint",
    "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources", "entrypointNumCpus",
    "entrypointNumGpus", "ttlSecondsAfterFinished", "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
CLUSTER_FIELDS = {
    "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs", "authOptions",
}  # fmt: skip
HEAD_FIELDS = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
GROUP_FIELDS = {
    "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds",
    "rayStartParams", "template", "scaleStrategy", "numOfHosts",
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode",
    "version", "env", "envFrom", "volumeMounts",
}  # fmt: skip
"""The fields of ray.io/v1 in KubeRay's API reference (docs/reference/api.md of ray-project/kuberay). A
field that is none of them is dropped by the API server or refused, by its settings."""


@pytest.fixture(scope="module")
def manifest() -> Any:
    return yaml.safe_load((FOLDER / "rayjob.yaml").read_text(encoding="utf-8"))


def pods(manifest: Any) -> Iterator[Any]:
    spec = manifest["spec"]
    yield spec["submitterPodTemplate"]["spec"]
    yield spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        yield group["template"]["spec"]


def test_every_field_is_one_that_kuberay_knows(manifest: Any) -> None:
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= JOB_FIELDS
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= GROUP_FIELDS


def test_what_nothing_replaces_is_neither_spot_nor_moved(manifest: Any) -> None:
    """The driver's pod and the one that follows its log: a run ends with either."""
    spec = manifest["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    for template in (spec["submitterPodTemplate"], head["template"]):
        assert template["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
        assert template["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}


def test_a_run_that_ends_badly_is_tried_again_and_one_that_ends_frees_its_cards(
    manifest: Any,
) -> None:
    spec = manifest["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] <= 120
    # After a head's hard death the folder is its own for a minute: a new cluster may be faster than that.
    assert spec["backoffLimit"] >= 2
    assert spec["submitterConfig"]["backoffLimit"] > 2


def test_only_who_has_the_token_may_submit(manifest: Any) -> None:
    assert manifest["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_weights_are_written_by_root_and_only_read_by_ray(manifest: Any) -> None:
    """The kubelet makes a hostPath's folder as root, 0755, whatever the pod's fsGroup is."""
    _, *nodes = pods(manifest)
    for pod in nodes:
        (fetch,), (container,) = pod["initContainers"], pod["containers"]
        assert fetch["securityContext"]["runAsUser"] == 0
        assert not any(mount.get("readOnly") for mount in fetch["volumeMounts"])
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts["models"]["readOnly"]
        assert mounts["shm"]["mountPath"] == "/dev/shm"


def test_memory_asked_for_is_memory_allowed(manifest: Any) -> None:
    """A pod that may take more than it asked for is the first that a full node ends; Ray counts limits."""
    for pod in pods(manifest):
        for container in pod["containers"]:
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"]
            assert resources["limits"].get("nvidia.com/gpu") == resources["requests"].get(
                "nvidia.com/gpu"
            )


def test_the_image_leaves_out_what_it_does_not_need() -> None:
    left_out = (FOLDER / "Dockerfile.dockerignore").read_text().split("\n")
    assert {".git", "**/.venv"} <= set(left_out)
    assert not {"schemas", "README.md", "LICENSE", "requirements.txt", "llava_batch"} & set(
        left_out
    )


def test_the_entrypoint_is_a_command_of_ours(
    manifest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Job] = []
    monkeypatch.setattr("llava_batch.cli.terminal.run_and_tell", asked.append)
    program, *arguments = shlex.split(manifest["spec"]["entrypoint"])
    assert jobs.exit_status(jobs.app, arguments, program) == 0
    (job,) = asked
    assert "://" in job.output and all("://" in place for place in job.input)
    assert re.fullmatch("[0-9a-f]{40}", job.revision or "")


def test_every_node_fetches_the_model_that_the_command_names(manifest: Any) -> None:
    program, *words = shlex.split(manifest["spec"]["entrypoint"])
    named = [words[words.index(flag) + 1] for flag in ("--model", "--revision")]
    assert program == "llava-batch"
    _, *nodes = pods(manifest)
    for pod in nodes:
        (fetch,) = pod["initContainers"]
        assert fetch["command"][:5] == ["hf", "download", named[0], "--revision", named[1]]
        (container,) = pod["containers"]
        (home,) = [e["value"] for e in container["env"] if e["name"] == "HF_HOME"]
        assert home in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_all_pods_have_one_image_and_its_ray_is_the_pinned_one(manifest: Any) -> None:
    containers = [c for pod in pods(manifest) for c in pod["containers"]]
    assert len({c["image"] for c in containers}) == 1
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert f"FROM rayproject/ray:{pinned[1]}-" in (FOLDER / "Dockerfile").read_text()
