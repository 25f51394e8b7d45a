"""Statements are in-toto's and SLSA's by their own libraries, and what is malformed is refused with its place."""

import copy
import hashlib
import json

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as InTotoStatement

from tasks.lineage import statement
from tasks.lineage.hashing import FileDigest
from tasks.lineage.statement import BadStatement
from tests.tasks.lineage.workspace import plain_body

HEX = "0123456789abcdef" * 4


def stage_body(**changed):
    arguments = {
        "stage": "ppo",
        "command": "python -m flows.ppo",
        "parameters": {"seed": 7, "ppo": {"learning_rate": 2.5e-05, "name": "ü"}},
        "subjects": {"models/ppo/b": FileDigest(HEX, 5), "models/ppo/a": FileDigest("0" * 64, 0)},
        "outputs": {"models/ppo": {"md5": "a" * 32 + ".dir", "size": 5, "n_files": 2}},
        "determines": {"seed": 7, "threads": None, "precision": None, "device": None, "workers": 1},
        "environment": {
            "python": "3.11.7",
            "libraries": {"torch": "2.13.0"},
            "machine": "x86_64",
            "processor": "some",
            "flags": ["avx"],
            "accelerator": None,
            "system": "Linux 6",
        },
        "materials": [
            statement.material("models/sft", "data", sha256=HEX, md5="b" * 32 + ".dir"),
            statement.material("tasks/training", "code", sha256=HEX, md5="c" * 32 + ".dir"),
            statement.material("constraints.txt", "environment", sha256=HEX, md5="d" * 32),
            statement.material("code", "closure", sha256="f" * 64, commit="e" * 40, dirty=False),
            statement.material("statement/000001-sft", "statement", sha256="9" * 64),
        ],
        "execution": "ab" * 16,
        "pipeline": None,
        "started": 0.0,
        "finished": 1.5,
        "who": {"user": "someone", "host": "here"},
    }
    return statement.build_stage(**{**arguments, **changed})


def payload(body=None, sequence=2, previous=HEX):
    return statement.canonical(statement.chained(body or stage_body(), sequence, previous))


@pytest.mark.parametrize("body", [stage_body(), plain_body("run"), plain_body("forget")])
def test_in_toto_s_and_slsa_s_own_libraries_accept_it(body):
    text = payload(body).decode()
    proto = json_format.Parse(text, statement_pb2.Statement())
    InTotoStatement.copy_from_pb(proto).validate()
    predicate = json.loads(text)["predicate"]
    provenance = json_format.Parse(json.dumps(predicate), provenance_pb2.Provenance())
    assert provenance.build_definition.build_type == predicate["buildDefinition"]["buildType"]
    assert provenance.run_details.metadata.started_on.seconds in (0, 1)
    assert proto.predicate_type == "https://slsa.dev/provenance/v1"


def test_the_views_of_a_statement_say_what_it_was_built_from():
    parsed = statement.parse(payload())
    assert parsed.digest == hashlib.sha256(payload()).hexdigest()
    assert (parsed.kind, parsed.stage, parsed.sequence, parsed.previous) == ("stage", "ppo", 2, HEX)
    assert parsed.subjects == {"models/ppo/a": FileDigest("0" * 64, 0), "models/ppo/b": FileDigest(HEX, 5)}
    assert parsed.outputs == {"models/ppo": "a" * 32 + ".dir"}
    assert parsed.inputs == {
        "models/sft": {"md5": "b" * 32 + ".dir", "sha256": HEX, "kind": "data"},
        "tasks/training": {"md5": "c" * 32 + ".dir", "sha256": HEX, "kind": "code"},
        "constraints.txt": {"md5": "d" * 32, "sha256": HEX, "kind": "environment"},
    }
    assert parsed.statements_behind == ["9" * 64]
    assert (parsed.closure, parsed.commit, parsed.is_dirty) == ("f" * 64, "e" * 40, False)
    assert parsed.parameters == {"seed": 7, "ppo": {"learning_rate": 2.5e-05, "name": "ü"}}
    assert (parsed.execution, parsed.pipeline) == ("ab" * 16, None)
    assert (parsed.started, parsed.finished) == ("1970-01-01T00:00:00.000000Z", "1970-01-01T00:00:01.500000Z")
    assert parsed.determines["workers"] == 1
    assert parsed.environment["libraries"] == {"torch": "2.13.0"}
    assert parsed.who == {"user": "someone", "host": "here"}


@pytest.mark.parametrize("kind", ["run", "register", "forget", "audit"])
def test_other_kinds_have_no_stage_and_no_outputs(kind):
    parsed = statement.parse(payload(plain_body(kind), 1, None))
    assert (parsed.kind, parsed.stage, parsed.outputs, parsed.closure) == (kind, None, {}, None)


def test_canonical_is_sorted_dense_utf_8():
    assert statement.canonical({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        statement.canonical({"a": float("nan")})


@pytest.mark.parametrize(
    "content",
    [
        payload().replace(b'":', b'": ', 1),
        payload()[:-1] + b',"_type":"https://in-toto.io/Statement/v1"}',
        payload() + b"\n",
        json.dumps(json.loads(payload()), sort_keys=True, separators=(",", ":")).encode(),
    ],
    ids=["a space", "a key twice", "a last newline", "escaped letters"],
)
def test_only_the_canonical_bytes_are_a_statement(content):
    with pytest.raises(BadStatement, match="canonical"):
        statement.parse(content)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 100_000])
def test_what_is_not_json_is_said_to_be_so(content):
    with pytest.raises(BadStatement, match="not JSON"):
        statement.parse(content)


def at(body, path):
    for part in path[:-1]:
        body = body[part]
    return body, path[-1]


DEFINITION = ("predicate", "buildDefinition")
INTERNAL = (*DEFINITION, "internalParameters")
MATERIALS = (*DEFINITION, "resolvedDependencies")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("_type",), "https://in-toto.io/Statement/v0.1", r"_type: Input should be 'https://in-toto\.io/Statement/v1'"),
        (("predicateType",), "https://slsa.dev/provenance/v0.2", "predicateType"),
        (("subject",), [], "subject: List should have at least 1 item"),
        (("subject", 0, "digest", "sha256"), "0" * 63, r"subject\.0\.digest\.sha256: .*\(it is '0+'\)"),
        (("subject", 0, "digest", "sha256"), "A" * 64, r"subject\.0\.digest\.sha256"),
        (("subject", 0, "digest", "md5"), "0" * 32, r"subject\.0\.digest\.md5: Extra inputs"),
        (("subject", 0, "name"), "../outside", "below the root"),
        (("subject", 0, "name"), "/etc/passwd", "below the root"),
        (("subject", 0, "name"), "models/ppo/b", "models/ppo/b is there twice"),
        (("subject", 0, "annotations", "size"), -1, r"subject\.0\.annotations\.size"),
        (("subject", 0, "annotations", "size"), 5.0, r"subject\.0\.annotations\.size"),
        (("subject", 0, "annotations", "size"), True, r"subject\.0\.annotations\.size"),
        (("note",), 1, "note: Extra inputs"),
        ((*DEFINITION, "buildType"), "https://axon.invalid/other/v1", "buildType"),
        ((*INTERNAL, "chain", "sequence"), 0, r"chain\.sequence: .* \(it is 0\)"),
        ((*INTERNAL, "chain", "sequence"), 1, "only the statement with sequence 1 has no previous"),
        ((*INTERNAL, "chain", "previous"), None, "only the statement with sequence 1 has no previous"),
        ((*INTERNAL, "outputs"), {}, "outputs"),
        ((*INTERNAL, "outputs", "models/ppo", "md5"), "zz", r"outputs\.models/ppo\.md5"),
        ((*INTERNAL, "environment", "python"), None, r"internalParameters\.environment\.python"),
        ((*DEFINITION, "externalParameters", "stage"), "", r"externalParameters\.stage"),
        ((*MATERIALS, 0, "annotations", "kind"), "weights", r"resolvedDependencies\.0\.annotations\.kind"),
        ((*MATERIALS, 0, "name"), "tasks/training", "tasks/training is there twice"),
        ((*MATERIALS, 3, "digest", "gitCommit"), "HEAD", "gitCommit"),
        (("predicate", "runDetails", "metadata", "startedOn"), "yesterday", "startedOn"),
        (("predicate", "runDetails", "builder", "id"), "https://example.org", "builder.id"),
    ],
)
def test_a_malformed_statement_is_refused_with_its_place(path, value, reason):
    body = json.loads(payload())
    target, last = at(body, path)
    target[last] = value
    with pytest.raises(BadStatement, match=reason):
        statement.parse(statement.canonical(body))


@pytest.mark.parametrize(
    "path", [("subject",), ("predicate",), DEFINITION, (*INTERNAL, "chain"), (*INTERNAL, "outputs")]
)
def test_a_missing_part_is_named(path):
    body = json.loads(payload())
    target, last = at(body, path)
    del target[last]
    with pytest.raises(BadStatement, match=rf"{last}: Field required$"):
        statement.parse(statement.canonical(body))


def test_building_does_not_touch_what_it_is_given():
    body = stage_body()
    before = copy.deepcopy(body)
    statement.chained(body, 1, None)
    assert body == before
