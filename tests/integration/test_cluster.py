"""The cluster files: Ray's own schema, AWS as moto plays it, and hosts made of namespaces."""

import copy
import fnmatch
import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.audit import audit
from tests.faults.hosts import Hosts
from tests.integration.harness import TOY, answers, free_port, ray_cluster
from tests.testbed import testbed

CLUSTER = Path(__file__).parents[2] / "cluster"
CLOUDS = ("gpu.yaml", "gpu-gcp.yaml", "gpu-azure.yaml")
FILES = (*CLOUDS, "on_prem.yaml")


def read(name):
    return yaml.safe_load((CLUSTER / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_rays_schema_takes_the_file(name):
    validate_config(prepare_config(copy.deepcopy(read(name))))
    with pytest.raises(Exception, match="cluster_nam"):
        validate_config({**read(name), "cluster_nam": "a misspelt key"})


@pytest.mark.parametrize("name", FILES)
def test_all_of_the_code_is_copied_to_the_nodes(name):
    # rsync takes a pattern without a slash for every folder of that name, `ali/data` for instance.
    code = [path.relative_to(CLUSTER.parent) for path in (CLUSTER.parent / "ali").rglob("*.py")]
    for pattern in read(name)["rsync_exclude"]:
        assert pattern.startswith("/") or not fnmatch.filter(
            {part for path in code for part in path.parts}, pattern
        )


@pytest.mark.parametrize("name", FILES)
def test_token_is_on_and_not_in_the_file_and_the_old_autoscaler_is_asked_for(name):
    config, text = read(name), (CLUSTER / name).read_text()
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "RAY_AUTH_TOKEN=" not in text and "0.0.0.0" not in text
    assert "RAY_enable_autoscaler_v2=0 ray start --head" in config["head_start_ray_commands"][-1]
    assert "RAY_AUTH_MODE=token" in (CLUSTER / "node.sh").read_text()
    managed = re.findall(r"^  # - (MLFLOW_BACKEND_STORE_URI=postgresql\S+ .*)", text, re.M)
    assert [line.partition(" ")[2] for line in managed] == [config["head_start_ray_commands"][0]]


def test_spot_is_asked_for_first_and_on_demand_where_there_is_none():
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
    from ray.autoscaler._private.resource_demand_scheduler import (
        _default_utilization_scorer,
        get_nodes_for,
    )

    for name in CLOUDS:
        kinds = read(name)["available_node_types"]
        workers = {kind: spec for kind, spec in kinds.items() if kind != "head"}
        for kind in workers.values():
            assert kind["resources"]["GPU"] == 1

        def scorer(resources, demands, kind, *, node_availability_summary, _score=None):
            return _default_utilization_scorer(
                resources, demands, kind, node_availability_summary=node_availability_summary
            )

        nodes, left = get_nodes_for(
            workers,
            {},
            "head",
            8,
            [{"CPU": 4, "GPU": 1}] * 2,
            lambda r, d, k: scorer(
                r, d, k, node_availability_summary=NodeAvailabilitySummary(node_availabilities={})
            ),
        )
        assert not left and dict(nodes) == {"gpu_spot": 2}, name


def test_gpu_yaml_makes_nodes_with_tags_on_aws(tmp_path, monkeypatch):
    moto = pytest.importorskip("moto")
    import boto3
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(key, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    # Ray waits 15 s for AWS to know a new role
    monkeypatch.setattr("ray.autoscaler._private.aws.config.time.sleep", lambda seconds: None)
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        ec2 = boto3.client("ec2", "us-east-1")
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        config = read("gpu.yaml")
        for kind in config["available_node_types"].values():
            assert kind["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/")
            kind["node_config"]["ImageId"] = image  # moto resolves no parameters
        config = _bootstrap_config(config, no_config_cache=True)
        provider = _get_node_provider(config["provider"], config["cluster_name"])
        for kind in ("head", "gpu_spot", "gpu_on_demand"):
            tags = {
                TAG_RAY_NODE_KIND: "head" if kind == "head" else "worker",
                TAG_RAY_USER_NODE_TYPE: kind,
            }
            provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
        made = {}
        for reservation in ec2.describe_instances()["Reservations"]:
            for instance in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                assert tags["ray-cluster-name"] == "ali"
                made[tags[TAG_RAY_USER_NODE_TYPE]] = instance
        assert {kind: made[kind]["InstanceType"] for kind in made} == {
            "head": "m6i.large",
            "gpu_spot": "g5.xlarge",
            "gpu_on_demand": "g5.xlarge",
        }
        assert made["gpu_spot"].get("InstanceLifecycle") == "spot"
        assert "InstanceLifecycle" not in made["gpu_on_demand"]
        groups = [g["GroupId"] for g in made["head"]["SecurityGroups"]]
        open_to_all = [
            (rule.get("FromPort"), rule.get("ToPort"))
            for group in ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"]
            for rule in group["IpPermissions"]
            if rule["IpRanges"]
        ]
        assert open_to_all == [(22, 22)]


@pytest.mark.long
def test_a_host_is_another_machine():
    if why := testbed.missing():
        pytest.skip(why)
    with testbed.Testbed(2) as bed:
        folder, outside = bed.folder, os.readlink("/proc/self/ns/net")
        seen = bed.run("hostname; readlink /proc/self/ns/net; pgrep -c .; echo $HOME; ls ~ | cat")
        assert "desk" in seen and outside not in seen and "ali-sweeps" in seen
        reached = bed.run("ssh -o StrictHostKeyChecking=no 10.77.0.10 hostname")
        assert reached.splitlines()[-1] == "head"
        bed.hosts["head"].kill()
        with pytest.raises(RuntimeError, match="exit code 255"):
            bed.run("ssh -o ConnectTimeout=2 -o StrictHostKeyChecking=no 10.77.0.10 hostname")
    assert not folder.exists()
    assert subprocess.run(["pgrep", "-f", str(folder)], capture_output=True).returncode == 1


class Heads(Hosts):
    """Hosts that are made ready, and on which nothing runs."""

    def start_cluster(self):
        pass


@pytest.mark.long
def test_one_head_at_a_time_has_the_database_and_its_mlflow_asks_for_the_token():
    if why := testbed.missing():
        pytest.skip(why)
    mlflow = f"http_proxy=http://10.77.0.99:3128 bash cluster/mlflow.sh {testbed.SHARED}"
    with Heads(2) as bed:
        bed.run_on("head", mlflow)
        bed.run_on("head", mlflow)  # does nothing
        uri = f"http://{bed.hosts['head'].address}:5000"
        files = json.dumps({"name": "of root", "artifact_location": "file:///root"})
        create = f"{uri}/api/2.0/mlflow/experiments/create -H 'Content-Type: application/json'"
        code = f"curl -s -o /dev/null -w '%{{http_code}}' {create} -d '{files}'"
        assert bed.run_on("worker-1", code) == "401"
        client = "python -c \"import mlflow; client = mlflow.MlflowClient('{}')\n{}\""
        bed.run_on("worker-1", client.format(uri, "client.create_experiment('kept')"))
        with pytest.raises(RuntimeError, match=r"is being run by process .* on head: wait"):
            bed.run_on("worker-1", mlflow)
        bed.hosts["head"].kill()
        bed.run_on("worker-1", mlflow)
        uri = f"http://{bed.hosts['worker-1'].address}:5000"
        found = "print([e.name for e in client.search_experiments()])"
        assert "'kept'" in bed.run_on("worker-1", client.format(uri, found))


@pytest.fixture
def cluster():
    """A head of its own, its dashboard's address, and the environment of commands for it."""
    port = free_port()
    with ray_cluster(2, options=[f"--dashboard-port={port}"]) as env:
        answers(f"http://127.0.0.1:{port}", Path(env["RAY_TMPDIR"]) / "node-0.log")
        env.pop("RAY_ADDRESS")  # a job has its own
        yield f"http://127.0.0.1:{port}", env


@pytest.mark.long
def test_a_sweep_as_a_ray_job(cluster, toy):
    address, env = cluster
    submit = ["ray", "job", "submit", "--address", address, "--working-dir", str(CLUSTER.parent)]
    script = ["python", str(TOY.relative_to(CLUSTER.parent)), "--name", toy.name]
    log = f"TOY_LOG={toy.folder / 'toy.log'}"

    def job(*options):
        command = [*submit, "--", "env", log, *script, "--num-trials", "3", *options]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        return done.returncode, done.stdout + done.stderr

    # What a job writes beside its code is deleted with it: a night's work would be.
    code, out = job()
    assert code and "error: --output-dir runs lies in the copy of --working-dir" in out
    assert not toy.epochs()
    code, out = job("--output-dir", str(toy.runs))
    assert code == 0, out
    audit(toy, 3)


def test_kuberay_takes_the_file():
    schema = os.environ.get("ALI_KUBERAY_CRD")
    if not schema:
        pytest.skip("ALI_KUBERAY_CRD does not name KubeRay's ray.io_rayjobs.yaml")
    job = read("kuberay.yaml")
    versions = yaml.safe_load(Path(schema).read_text())["spec"]["versions"]
    (version,) = [v for v in versions if f"ray.io/{v['name']}" == job["apiVersion"]]
    schema = closed(version["schema"]["openAPIV3Schema"])
    jsonschema.validate(job["spec"], schema["properties"]["spec"])
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["templat"] = "a misspelt key"
    with pytest.raises(jsonschema.ValidationError, match="templat"):
        jsonschema.validate(job["spec"], schema["properties"]["spec"])


def closed(schema):
    """An OpenAPI schema that takes no fields but those it names, as kubectl's strict validation."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(part) for key, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        made.setdefault("additionalProperties", False)
    return made
