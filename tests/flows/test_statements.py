"""A run with the real engines leaves a chain of signed statements that answers for every artifact."""

import base64
import hashlib
import json
import re

import pytest
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tasks.runtime import stages
from tests.flows.conftest import FinishedRun

pytestmark = pytest.mark.engines


def payloads(finished: FinishedRun) -> list[bytes]:
    """The payloads in the order of the chain, each verified with the public key."""
    root = finished.workspace.root
    (pem,) = (root / "lineage" / "keys").iterdir()
    public = load_pem_public_key(pem.read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    found = []
    for path in sorted((root / "lineage" / "statements").iterdir()):
        envelope = json.loads(path.read_text())
        payload = base64.b64decode(envelope["payload"])
        kind = envelope["payloadType"].encode()
        pae = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
        public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), pae, ec.ECDSA(hashes.SHA256()))
        found.append(payload)
    return found


def test_every_stage_the_run_and_the_registration_are_in_one_chain(finished: FinishedRun):
    root = finished.workspace.root
    graph = stages.read_stages(root)
    names = [path.stem.partition("-")[2] for path in sorted((root / "lineage" / "statements").iterdir())]
    assert names[: len(graph) + 2] == [*graph, "run", "register"]
    previous = None
    for payload in payloads(finished):
        internal = json.loads(payload)["predicate"]["buildDefinition"]["internalParameters"]
        assert internal["chain"]["previous"] == previous
        previous = hashlib.sha256(payload).hexdigest()
    (pem,) = (root / "lineage" / "keys").iterdir()
    anchors = re.findall(r"anchor: key ([0-9a-f]{64}) head ([0-9a-f]{64})", finished.output)
    digests = [hashlib.sha256(payload).hexdigest() for payload in payloads(finished)]
    assert anchors == [(pem.stem, digests[len(graph) + 1])]


def test_statements_agree_with_dvc_s_lock_and_with_the_files(finished: FinishedRun):
    root = finished.workspace.root
    lock = yaml.safe_load(finished.workspace.lock)["stages"]
    for name, payload in zip(lock, payloads(finished), strict=False):
        body = json.loads(payload)
        definition = body["predicate"]["buildDefinition"]
        assert definition["externalParameters"]["stage"] == name
        outputs = definition["internalParameters"]["outputs"]
        assert outputs == {
            out["path"]: {"md5": out["md5"], "size": out["size"], "n_files": out.get("nfiles", 1)}
            for out in lock[name]["outs"]
        }
        materials = {m["name"]: m["digest"].get("md5") for m in definition["resolvedDependencies"]}
        assert materials.items() >= {dep["path"]: dep["md5"] for dep in lock[name]["deps"]}.items()
        for subject in body["subject"]:
            content = (root / subject["name"]).read_bytes()
            assert subject["digest"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_mlflow_and_openlineage_know_the_statements(finished: FinishedRun):
    from mlflow.tracking import MlflowClient

    root = finished.workspace.root
    client = MlflowClient(f"sqlite:///{root / '.axon' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("axon")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    graph = stages.read_stages(root)
    events = [json.loads(line) for line in (root / ".axon" / "openlineage.jsonl").read_text().splitlines()]
    for place, (name, payload) in enumerate(zip(graph, payloads(finished), strict=False), 1):
        digest = hashlib.sha256(payload).hexdigest()
        assert runs[name].data.tags["axon.statement"] == digest
        (artifact,) = client.list_artifacts(runs[name].info.run_id, "lineage")
        assert artifact.path == f"lineage/{place:06d}-{name}.json"
        told = [event for event in events if event["job"]["name"] == name]
        assert [event["eventType"] for event in told] == ["START", "COMPLETE"]
        assert told[1]["run"]["facets"]["axon_statement"]["digest"] == digest
        assert {dataset["name"] for dataset in told[1]["outputs"]} == set(graph[name].outs)
