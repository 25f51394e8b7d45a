"""The graph of statements written by hand is the one a person would draw from them."""

from __future__ import annotations

from tasks.lineage.graph import Artifact, Graph, Reading, made_by, model_of, size_of, version_name
from tests.tasks.lineage.chain_by_hand import Chain, md5, small


def stages(statements):
    return [statement.stage or statement.kind for statement in statements]


def test_three_statements_are_joined_by_what_they_name():
    chain = small()
    data, sft, evaluate, run, version = chain.statements
    graph = Graph(chain.statements)
    sources, texts = Artifact("sources", md5("raw")), Artifact("data/text.parquet", md5("texts"))
    weights = Artifact("models/sft", md5("weights"))
    assert graph.readings(data) == (Reading(sources, None),)
    assert graph.readings(sft) == (Reading(texts, data),)
    assert set(graph.readings(evaluate)) == {Reading(weights, sft), Reading(texts, data)}
    assert graph.readings(version) == (Reading(weights, sft),)
    assert graph.makers[weights] == [sft]
    assert sources not in graph.makers
    assert graph.readers[texts] == [sft, evaluate]
    assert graph.readers[weights] == [evaluate, version]
    assert graph.readers[sources] == [data]
    assert Artifact("data/manifest.json", md5("{}")) not in graph.readers
    assert graph.versions == {"axon-chat@1": version}
    assert graph.judged_by(version) == [evaluate]
    assert graph.stages_of(run) == {"data": data, "sft": sft, "evaluate": evaluate}
    assert graph.stages == {"data": [data], "sft": [sft], "evaluate": [evaluate]}
    assert (version_name(version), model_of(version)) == ("axon-chat@1", weights)


def test_what_is_behind_and_what_comes_of_it():
    chain = small()
    data, sft, evaluate, _, version = chain.statements
    graph = Graph(chain.statements)
    assert graph.ancestors([version]) == [data, sft, version]
    assert graph.ancestors([evaluate]) == [data, sft, evaluate]
    assert graph.descendants([Artifact("data/text.parquet", md5("texts"))]) == [sft, evaluate, version]
    assert graph.descendants(made_by(evaluate)) == []
    executions = {s.stage or s.kind: graph.executions_behind[s.digest] for s in (data, sft, evaluate, version)}
    assert executions == {
        "data": {"d1" * 16},
        "sft": {"d1" * 16, "5f" * 16},
        "evaluate": {"d1" * 16, "5f" * 16, "e7" * 16},
        "register": {"d1" * 16, "5f" * 16},
    }


def test_code_and_environment_have_users_and_are_no_data():
    chain = small()
    data, sft, evaluate, *_ = chain.statements
    graph = Graph(chain.statements)
    assert graph.users(Artifact("tasks/steps/sft.py", md5("def step(): ..."))) == [sft]
    assert graph.users(Artifact("tasks/steps/sft.py", md5("other code"))) == []
    assert graph.users(Artifact("constraints.txt", md5("torch==2.13.0"))) == [data, sft, evaluate]


def test_a_part_of_an_output_is_that_output():
    chain = Chain()
    tokenizer = chain.stage("tokenizer", "a1", reads={}, makes={"tokens": "one file stands for the folder"})
    # `tokens/train.bin` is a file of the output `tokens`: its statement lists it among the subjects.
    body = dict(tokenizer.body)
    body["subject"] = [
        {"name": "tokens/train.bin", "digest": {"sha256": "7" * 64}, "annotations": {"size": 3}},
        {"name": "tokens/test.bin", "digest": {"sha256": "8" * 64}, "annotations": {"size": 3}},
    ]
    chain.statements.clear()
    tokenizer = chain._add(body)
    reader = chain.stage("sft", "b2", reads={"tokens/train.bin": "x"}, makes={"models/sft": "w"}, behind=[tokenizer])
    inputs = reader.body["predicate"]["buildDefinition"]["resolvedDependencies"]
    next(entry for entry in inputs if entry["name"] == "tokens/train.bin")["digest"]["sha256"] = "7" * 64
    graph = Graph([tokenizer, reader])
    tokens = Artifact("tokens", tokenizer.outputs["tokens"])
    assert graph.readings(reader) == (Reading(tokens, tokenizer),)
    assert graph.descendants([tokens]) == [reader]


def test_a_folder_of_several_outputs_is_all_of_them():
    chain = Chain()
    one = chain.stage("one", "a1", reads={}, makes={"models/one": "1"})
    two = chain.stage("two", "b2", reads={}, makes={"models/two": "2", "metrics/two.json": "[]"})
    reader = chain.stage("report", "c3", reads={"models": "both"}, makes={"report": "r"}, behind=[one, two])
    graph = Graph(chain.statements)
    assert set(graph.readings(reader)) == {
        Reading(Artifact("models/one", md5("1")), one),
        Reading(Artifact("models/two", md5("2")), two),
    }


def test_upwards_follows_the_statement_named_and_downwards_the_content():
    chain = Chain()
    first = chain.stage("data", "a1", reads={"sources": "raw"}, makes={"data/text.parquet": "same"})
    reader = chain.stage("sft", "b2", reads={"data/text.parquet": "same"}, makes={"models/sft": "w"}, behind=[first])
    again = chain.stage("data", "c3", reads={"sources": "raw"}, makes={"data/text.parquet": "same"})
    other = chain.stage("data", "d4", reads={"sources": "raw2"}, makes={"data/text.parquet": "other"})
    graph = Graph(chain.statements)
    assert graph.readings(reader) == (Reading(Artifact("data/text.parquet", md5("same")), first),)
    assert graph.makers[Artifact("data/text.parquet", md5("same"))] == [first, again]
    assert graph.ancestors([reader]) == [first, reader]
    assert graph.descendants(made_by(again)) == [reader]
    assert graph.descendants(made_by(other)) == []


def test_of_two_statements_behind_that_made_a_path_the_one_with_these_bytes_counts():
    chain = Chain()
    old = chain.stage("data", "a1", reads={}, makes={"data/text.parquet": "old", "data/manifest.json": "{}"})
    new = chain.stage("data", "b2", reads={}, makes={"data/text.parquet": "new", "data/manifest.json": "{}"})
    reads = {"data/text.parquet": "new", "data/rejects.parquet": "by hand"}
    reader = chain.stage("sft", "c3", reads=reads, makes={"models/sft": "w"}, behind=[old, new])
    assert Graph(chain.statements).readings(reader) == (
        Reading(Artifact("data/text.parquet", md5("new")), new),
        Reading(Artifact("data/rejects.parquet", md5("by hand")), None),
    )


def test_a_version_registered_again_is_one_version():
    chain = small()
    _, sft, evaluate, _, first = chain.statements
    again = chain.register("1", "models/sft", "weights", [sft, evaluate])
    graph = Graph(chain.statements)
    assert graph.versions == {"axon-chat@1": again}
    assert graph.descendants([Artifact("models/sft", md5("weights"))]) == [evaluate, again]
    assert graph.readings(first) == graph.readings(again)


def test_an_input_is_not_explained_by_a_statement_that_is_not_named():
    chain = Chain()
    chain.stage("data", "a1", reads={}, makes={"data/text.parquet": "same"})
    reader = chain.stage("sft", "b2", reads={"data/text.parquet": "same"}, makes={"models/sft": "w"})
    assert Graph(chain.statements).readings(reader) == (Reading(Artifact("data/text.parquet", md5("same")), None),)


def test_a_statement_that_is_gone_is_said_to_be_missing():
    chain = small()
    data, sft, *_ = chain.statements
    graph = Graph([statement for statement in chain.statements if statement is not data])
    assert graph.missing(sft) == [data.digest]
    assert graph.readings(sft) == (Reading(Artifact("data/text.parquet", md5("texts")), None),)
    assert stages(graph.ancestors([sft])) == ["sft"]


def test_the_size_of_an_output_is_that_of_these_bytes():
    sft = small().statements[1]
    assert size_of(sft, Artifact("models/sft", md5("weights"))) == (7, 1)
    assert size_of(sft, Artifact("models/sft", md5("other"))) is None
    assert size_of(sft, Artifact("models/dpo", md5("weights"))) is None
