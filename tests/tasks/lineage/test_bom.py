"""The bill of materials keeps to the published schema, says what is on disk, and is a function of the statements."""

import copy
import hashlib
import json
import subprocess
import sys
from datetime import datetime

import pytest

from tasks.errors import UserError
from tasks.lineage import bom, facts
from tests.helpers import REPOSITORY
from tests.tasks.lineage import small_run


@pytest.fixture
def checkout(tmp_path):
    made = small_run.make(tmp_path)
    small_run.record(made)
    return made


@pytest.fixture
def document(checkout):
    return json.loads(bom.write(checkout, "3", "models/ppo").read_bytes())


def card(document):
    return document["metadata"]["component"]["modelCard"]


def by_ref(document):
    top = document["metadata"]["component"]
    return {entry["bom-ref"]: entry for entry in [top, *top["components"], *document["components"]]}


def named(document, name):
    (entry,) = [entry for entry in document["components"] if entry["name"] == name]
    return entry


def values(entry):
    return {pair["name"]: pair["value"] for pair in entry["properties"]}


def sha256(entry):
    (one,) = entry["hashes"]
    assert one["alg"] == "SHA-256"
    return one["content"]


def test_it_keeps_to_the_schema_that_cyclonedx_publishes(checkout, document):
    path = checkout.root / "lineage" / "models" / "axon-chat-3" / "bom.cdx.json"
    assert bom.validate(path.read_bytes()) == []
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: card(d)["modelParameters"]["approach"].update(type="magic"),
        lambda d: card(d)["quantitativeAnalysis"]["performanceMetrics"][0].update(value=0.5),
        lambda d: card(d).update(unknown=1),
        lambda d: d["formulation"][0]["workflows"][0].pop("uid"),
        lambda d: d["components"][0]["hashes"][0].update(content="00"),
        lambda d: d.update(serialNumber="1"),
    ],
)
def test_validation_sees_what_breaks_the_schema(document, spoil):
    spoiled = copy.deepcopy(document)
    spoil(spoiled)
    assert bom.validate(bom.to_bytes(spoiled)) != []


def test_hashes_are_those_of_the_files(checkout, document):
    top = document["metadata"]["component"]
    folder = checkout.root / "models" / "ppo"
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert {entry["name"]: sha256(entry) for entry in top["components"]} == hashes
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    assert sha256(top) == hashlib.sha256(lines.encode()).hexdigest()
    text = (checkout.root / "data" / "text.parquet").read_bytes()
    assert sha256(named(document, "data/text.parquet")) == hashlib.sha256(text).hexdigest()


def test_the_model_is_named_as_registered(document):
    top = document["metadata"]["component"]
    assert (top["type"], top["name"], top["version"]) == ("machine-learning-model", "axon-chat", "3")
    assert values(top)["axon:made_by"] == "ppo"


def test_the_card_says_architecture_and_approach(document):
    parameters = card(document)["modelParameters"]
    assert parameters["architectureFamily"] == "llama"
    assert parameters["modelArchitecture"] == "LlamaForCausalLM"
    assert parameters["approach"] == {"type": "reinforcement-learning"}


def test_figures_are_those_of_the_evaluation_with_their_intervals(document):
    figures = {(f["type"], f["slice"]): f for f in card(document)["quantitativeAnalysis"]["performanceMetrics"]}
    assert figures["exact_match", "test"]["value"] == "0.5"
    assert figures["exact_match", "test"]["confidenceInterval"] == {"lowerBound": "0.25", "upperBound": "0.75"}
    assert figures["win_rate_vs_sft", "test"]["confidenceInterval"] == {"lowerBound": "0.5", "upperBound": "0.7"}
    assert "confidenceInterval" not in figures["bits_per_byte", "test"]
    assert set(figures) == {
        ("bits_per_byte", "test"), ("exact_match", "test"), ("win_rate_vs_sft", "test"),
        ("exact_match", "test/addition"), ("well_formed", "test/addition"),
    }  # fmt: skip


def test_data_is_told_by_source_with_licence_and_counts(document):
    expected = {
        "maths": ("CC0-1.0", "3"),
        "python_docs/numpy 2.4.6": ("BSD-3-Clause", "3"),
        "python_docs/matplotlib 3.11.2": ("PSF-2.0", "1"),
    }
    for name, (license, n) in expected.items():
        entry = named(document, name)
        assert entry["type"] == "data"
        assert entry["licenses"] == [{"license": {"id": license}}]
        assert values(entry)["axon:records"] == n
    assert values(named(document, "maths"))["axon:records:demonstrations:preference"] == "1"
    assert named(document, "python_docs/numpy 2.4.6")["data"][0]["sensitiveData"] == ["email: 1 found"]
    assert {e["ref"] for e in card(document)["modelParameters"]["datasets"]} == {
        named(document, name)["bom-ref"] for name in expected
    }


def test_a_licence_expression_and_a_licence_without_an_identifier_keep_to_the_schema(checkout):
    own = [
        small_run.text("One.", license="MIT OR Apache-2.0", source="files:a.jsonl", package="", version=""),
        small_run.text("Two.", license="all rights reserved", source="files:b.jsonl", package="", version=""),
    ]
    small_run.write_data(checkout.root, own)
    small_run.record(checkout)
    document = json.loads(bom.write(checkout, "4", "models/ppo").read_bytes())
    assert named(document, "files:a.jsonl")["licenses"] == [{"expression": "MIT OR Apache-2.0"}]
    assert named(document, "files:b.jsonl")["licenses"] == [{"license": {"name": "all rights reserved"}}]


def test_libraries_are_those_of_the_statements(checkout, document):
    made = small_run.record(checkout)["ppo"].environment["libraries"]
    libraries = {e["name"]: e["version"] for e in document["components"] if e["type"] == "library"}
    assert libraries == made
    assert set(libraries) == {"numpy", "pytest"}
    assert named(document, "pytest")["purl"] == f"pkg:pypi/pytest@{libraries['pytest']}"


def depends(document, ref):
    (entry,) = [entry for entry in document["dependencies"] if entry["ref"] == ref]
    return {other.split("@")[0] for other in entry.get("dependsOn", [])}


def test_the_graph_leads_from_the_model_over_data_to_libraries(document):
    assert depends(document, "axon-chat@3") == {"data/demonstrations.parquet", "models/sft", "python"}
    assert depends(document, named(document, "models/sft")["bom-ref"]) == {"data/text.parquet", "python"}
    assert depends(document, named(document, "data/text.parquet")["bom-ref"]) == {
        "python", "records/python_docs/matplotlib 3.11.2", "records/python_docs/numpy 2.4.6", "sources",
    }  # fmt: skip
    assert depends(document, named(document, "data/demonstrations.parquet")["bom-ref"]) == {
        "python", "records/maths", "sources",
    }  # fmt: skip
    assert depends(document, named(document, "python")["bom-ref"]) == {"pkg:pypi/numpy", "pkg:pypi/pytest"}


def test_records_of_a_package_depend_on_the_library_of_their_version(checkout):
    import numpy

    version = numpy.__version__
    texts = [small_run.text("Yes.", version=version), small_run.text("No.", version="0.1")]
    small_run.write_data(checkout.root, texts)
    small_run.record(checkout)
    document = json.loads(bom.write(checkout, "4", "models/ppo").read_bytes())
    assert depends(document, named(document, f"python_docs/numpy {version}")["bom-ref"]) == {"pkg:pypi/numpy"}
    assert depends(document, named(document, "python_docs/numpy 0.1")["bom-ref"]) == set()


def test_every_reference_leads_to_one_component(document):
    refs = by_ref(document)
    assert len(refs) == len(document["components"]) + 1 + len(document["metadata"]["component"]["components"])
    used = {e["ref"] for e in document["dependencies"]} | {
        other for e in document["dependencies"] for other in e.get("dependsOn", [])
    }
    for workflow in document["formulation"][0]["workflows"]:
        used |= {e["resource"]["ref"] for e in [*workflow["inputs"], *workflow["outputs"]]}
    assert used <= set(refs)


def test_the_pedigree_names_the_models_before_it(document):
    pedigree = document["metadata"]["component"]["pedigree"]
    assert [entry["name"] for entry in pedigree["ancestors"]] == ["models/sft"]
    assert sha256(pedigree["ancestors"][0]) == sha256(named(document, "models/sft"))


def test_the_formulation_holds_every_statement(checkout, tmp_path):
    made = small_run.record(checkout)
    document = json.loads(bom.write(checkout, "3", "models/ppo").read_bytes())
    workflows = {workflow["name"]: workflow for workflow in document["formulation"][0]["workflows"]}
    assert {name: workflow["uid"] for name, workflow in workflows.items()} == {
        name: statement.digest for name, statement in made.items()
    }
    assert workflows["ppo"]["outputs"] == [{"type": "artifact", "resource": {"ref": "axon-chat@3"}}]
    assert values(workflows["ppo"])["axon:parameter:ppo.kl_coef"] == "0.05"
    assert values(workflows["ppo"])["axon:determines:seed"] == "7"


def test_serial_number_and_time_are_those_of_the_statements(checkout, document):
    """The last statement used is that of the evaluation: 1,700,000,000 s after 1970, three minutes and half a one."""
    assert datetime.fromisoformat(document["metadata"]["timestamp"]).timestamp() == 1_700_000_210
    again = json.loads(bom.write(checkout, "4", "models/ppo").read_bytes())
    assert again["serialNumber"] != document["serialNumber"]


def test_the_same_statements_give_the_same_bytes_in_another_process(checkout):
    path = bom.write(checkout, "3", "models/ppo")
    first = path.read_bytes()
    path.unlink()
    program = (
        "import sys; from pathlib import Path; from tasks.runtime.checkout import Checkout\n"
        "from tasks.lineage import bom; bom.write(Checkout(Path(sys.argv[1])), '3', 'models/ppo')"
    )
    environment = {"PYTHONHASHSEED": "1", "PATH": "/usr/bin:/bin", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", program, str(checkout.root)], check=True, cwd=REPOSITORY, env=environment)
    assert path.read_bytes() == first


def test_nothing_personal_is_in_it(checkout):
    """Neither what was found in the data nor who ran the stages, nor where."""
    made = small_run.record(checkout)["ppo"]
    content = bom.write(checkout, "3", "models/ppo").read_text()
    assert small_run.EMAIL not in content
    assert str(checkout.root) not in content
    assert made.who["host"] not in content


@pytest.mark.parametrize("path", ["metrics/evaluate.json", "models/ppo/config.json"])
def test_a_file_that_is_not_the_attested_one_is_refused(checkout, path):
    made = small_run.record(checkout)
    known, found = list(made.values()), facts.of_artifact(checkout, "models/ppo")
    (checkout.root / path).write_text("{}")
    with pytest.raises(UserError, match=f"{path} is not the file that the statement"):
        bom.make(checkout.root, known, made["ppo"], "models/ppo", found, name="axon-chat", version="3")


def test_without_a_statement_there_is_no_bill_of_materials(checkout):
    small_run.write_model(checkout.root, "ppo", "weights from elsewhere")
    with pytest.raises(UserError, match="no statement says how models/ppo"):
        bom.write(checkout, "3", "models/ppo")


def test_without_an_evaluation_there_are_no_figures(checkout):
    (checkout.root / "lineage" / "statements" / "000004-evaluate.json").unlink()
    document = json.loads(bom.write(checkout, "3", "models/ppo").read_bytes())
    assert "quantitativeAnalysis" not in card(document)
