"""The GKE manifests, field by field, against JobSet's and batch/v1's own definitions and our exit codes."""

import re

import pytest
import yaml

from empathax import errors
from tests.launch.dry_runs import ROOT

# kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go
SPEC = {
    "replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator",
    "managedBy", "ttlSecondsAfterFinished", "volumeClaimPolicies",
}  # fmt: skip
RULE = {"name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs"}
ACTIONS = {
    "FailJobSet",
    "RestartJobSet",
    "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob",
    "RestartJobAndIgnoreMaxRestarts",
}
RULE_NAME = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
# kubernetes, pkg/controller/job/pod_failure_policy.go: what a Job that fails by its podFailurePolicy says
EXIT_CODE = (
    "Container train for pod default/empathax-x-0-0-abcde failed with exit code {} matching FailJob rule at index 0"
)
CONDITION = "Pod default/empathax-x-0-0-abcde has condition DisruptionTarget matching FailJob rule at index 1"
HARDWARE = {
    "tpu": {
        "job": "hosts",
        "pods": 4,
        "limits": {"google.com/tpu": 4},
        "selector": {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": "4x4",
        },
        "flags": ["launch/flags_tpu.sh", "v5e"],
    },
    "gpu": {
        "job": "nodes",
        "pods": 2,
        "limits": {"nvidia.com/gpu": 8},
        "selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        "flags": ["launch/flags_gpu.sh", "h100"],
    },
}


@pytest.fixture(params=HARDWARE)
def kind(request):
    return request.param


@pytest.fixture
def manifests(kind):
    claim, jobset = yaml.safe_load_all((ROOT / f"launch/jobset_{kind}.yaml").read_text())
    return claim, jobset


@pytest.fixture
def job(manifests):
    """The one Job's spec."""
    (replicated,) = manifests[1]["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


@pytest.fixture
def pod(job):
    return job["template"]["spec"]


def test_jobset(manifests, kind):
    jobset = manifests[1]
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(jobset["spec"]) <= SPEC
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    annotations = jobset["metadata"].get("annotations", {})
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert annotations == (exclusive if kind == "tpu" else {})


def test_job(job, kind):
    assert set(job) == {"parallelism", "completions", "completionMode", "backoffLimit", "podFailurePolicy", "template"}
    assert job["parallelism"] == job["completions"] == HARDWARE[kind]["pods"]
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0


def test_pod(pod, kind):
    hardware = HARDWARE[kind]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy allows no other
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["nodeSelector"] == hardware["selector"]
    (container,) = pod["containers"]
    assert container["name"] == "train"
    assert container["resources"] == {"limits": hardware["limits"]}
    assert container["command"] == [*hardware["flags"], "--", "python", "-m", "empathax.train", "--multihost"]
    assert (ROOT / hardware["flags"][0]).exists()
    (config,) = [word.removeprefix("--config=") for word in container["args"] if word.startswith("--config=")]
    assert (ROOT / config).exists()


def test_jax_finds_its_processes(manifests, pod, kind):
    """The variables that empathax.parallel.processes reads; the address is pod 0 by JobSet's naming of hosts."""
    name, (replicated,) = manifests[1]["metadata"]["name"], manifests[1]["spec"]["replicatedJobs"]
    variables = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    assert all(isinstance(entry.get("value", ""), str) for entry in variables.values())  # else the API refuses them
    host, _, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].partition(":")
    assert replicated["name"] == HARDWARE[kind]["job"]
    assert host == f"{name}-{replicated['name']}-0-0.{name}"
    assert int(port) in [entry["containerPort"] for entry in pod["containers"][0]["ports"]]
    assert int(variables["JAX_NUM_PROCESSES"]["value"]) == HARDWARE[kind]["pods"]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert variables["JAX_PROCESS_ID"]["valueFrom"] == {"fieldRef": {"fieldPath": index}}
    if kind == "gpu":
        assert variables["JAX_LOCAL_DEVICE_IDS"]["value"] == ",".join(str(number) for number in range(8))


def test_checkpoints_outlive_the_pods(manifests, pod):
    claim = manifests[0]
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert volumes["runs"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    (workdir,) = [word for word in pod["containers"][0]["args"] if word.startswith("--workdir=")]
    assert workdir.startswith(f"--workdir={mounts['runs']}/")


def _pod_fails(job, code=None, evicted=False):
    """(reason, message) of the Job's failure when its pod ends, as the Job controller decides it: the first match."""
    for rule in job["podFailurePolicy"]["rules"]:
        assert rule["action"] == "FailJob"
        assert len({"onExitCodes", "onPodConditions"} & set(rule)) == 1
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", [])
        if codes and code in codes["values"]:
            assert codes["operator"] == "In"
            assert codes["containerName"] == "train"
            return "PodFailurePolicy", EXIT_CODE.format(code)
        if evicted and {"type": "DisruptionTarget", "status": "True"} in conditions:
            return "PodFailurePolicy", CONDITION
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def _action(policy, reason, message):
    """JobSet's: the first rule whose reasons and patterns both match; RestartJobSet without one."""
    for rule in policy["rules"]:
        assert set(rule) <= RULE
        assert rule["action"] in ACTIONS
        assert re.match(RULE_NAME, rule["name"])
        patterns = rule.get("onJobFailureMessagePatterns", [".*"])
        if reason in rule.get("onJobFailureReasons", [reason]) and any(re.fullmatch(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


FINAL = [
    error.exit_code
    for error in (
        errors.ConfigError, errors.DataError, errors.WeightsError, errors.CheckpointError, errors.NonFiniteError,
    )
]  # fmt: skip


@pytest.mark.parametrize(
    ("end", "action"),
    [
        ({"code": errors.Preempted.exit_code}, "RestartJobSetAndIgnoreMaxRestarts"),
        ({"code": 143, "evicted": True}, "RestartJobSetAndIgnoreMaxRestarts"),
        ({"code": 1}, "RestartJobSet"),
        ({"code": 134}, "RestartJobSet"),  # SIGABRT: jax ends the peers of a lost process so
        ({"code": 137}, "RestartJobSet"),  # out of memory
        *[({"code": code}, "FailJobSet") for code in FINAL],
    ],
)
def test_what_follows_the_end_of_a_pod(manifests, job, end, action):
    policy = manifests[1]["spec"]["failurePolicy"]
    assert 1 <= policy["maxRestarts"] <= 100
    assert _action(policy, *_pod_fails(job, **end)) == action
