"""The folder for an outside auditor: verified by its README's own commands without Axon, and by `--offline`."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from flows import audit as command
from tasks.errors import UserError
from tasks.lineage import envelope
from tasks.lineage.audit import examination, export
from tasks.lineage.store import StatementStore


@pytest.fixture(scope="module")
def exported(audited, tmp_path_factory):
    folder = tmp_path_factory.mktemp("auditor") / "bundle"
    export.write(examination.of_checkout(audited), folder)
    return folder


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy that a test may alter."""
    shutil.copytree(exported, tmp_path / "bundle")
    return tmp_path / "bundle"


def offline(folder, anchor=None):
    return examination.of_folder(folder, anchor=anchor).report


def places(report):
    return [finding.place for finding in report.findings]


def blocks(folder: Path) -> list[str]:
    """The commands of the README, as they stand there."""
    return re.findall(r"^```bash\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def run_readme(folder: Path, scratch: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the commands in the folder, with the libraries of this environment and without Axon."""
    tools = scratch / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    # -S leaves out the .pth files of the environment, through one of which an editable Axon is found.
    for name, arguments in {"python3": "", "model_signing": "-m model_signing "}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} -S {arguments}"$@"\n')
        (tools / name).chmod(0o755)
    paths = [sysconfig.get_path("purelib"), *(path for path in os.environ.get("PYTHONPATH", "").split(":") if path)]
    known = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "PYTHONPATH": ":".join(path for path in paths if not (Path(path) / "tasks").exists()),
        "HOME": str(scratch),
        **variables,
    }
    script = "python3 -c 'import tasks' 2>/dev/null && exit 99\n" + "\n".join(blocks(folder))
    return subprocess.run(["bash", "-c", script], cwd=folder, env=known, capture_output=True, text=True)


def test_the_commands_of_the_readme_verify_it_without_axon(audited, bundle, tmp_path):
    done = run_readme(bundle, tmp_path / "tools", ARTIFACTS=str(audited.root))
    assert done.returncode == 0, done.stderr
    assert "10 statements, the newest is" in done.stdout
    assert "Verified OK" in done.stdout  # openssl
    assert done.stdout.count("keeps to CycloneDX 1.6") == 2
    assert done.stdout.count("Verification succeeded") == 2, done.stdout  # model_signing
    assert "000010-register.json speaks for registered/axon-chat-2" in done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lineage/statements/000003-ppo.json", "SHA256SUMS"),
        ("registered/axon-chat-2/model.safetensors", "SHA256SUMS"),
    ],
)
def test_the_commands_of_the_readme_see_a_damaged_file(bundle, tmp_path, name, words):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    done = run_readme(bundle, tmp_path / "tools")
    assert done.returncode not in (0, 99)
    assert name in done.stdout + done.stderr


@pytest.mark.parametrize("alter", ["statement", "signature", "order", "model", "head", "bom"])
def test_the_commands_see_what_the_sums_were_made_to_fit(bundle, tmp_path, alter):
    """Whoever alters the folder can write SHA256SUMS anew, and nothing else of this."""
    statements = bundle / "lineage" / "statements"
    path = statements / "000003-ppo.json"
    if alter in ("statement", "signature"):
        tree = json.loads(path.read_text())
        if alter == "statement":
            payload = envelope.payload_of(tree).replace(b'"seed":7', b'"seed":8')
            assert payload != envelope.payload_of(tree)
            tree["payload"] = base64.b64encode(payload).decode()
        else:
            other = json.loads((statements / "000002-sft.json").read_text())
            tree["signatures"] = other["signatures"]
        path.write_bytes(envelope.to_bytes(tree))
    elif alter == "order":
        path.unlink()
    elif alter == "model":
        (bundle / "registered" / "axon-chat-2" / "config.json").write_text("{}")
    elif alter == "head":
        (statements / "000010-register.json").unlink()
    else:
        bom = bundle / "lineage" / "models" / "axon-chat-1" / "bom.cdx.json"
        bom.write_text(bom.read_text().replace('"CycloneDX"', '"CycloneDY"'))
    from tasks.lineage.audit import bundle as bundles

    (bundle / "SHA256SUMS").write_text(bundles.sums(bundle))
    done = run_readme(bundle, tmp_path / "tools")
    assert done.returncode not in (0, 99), done.stdout


def test_offline_needs_nothing_but_the_folder(bundle, anchor):
    report = offline(bundle, anchor)
    assert report.findings == []
    assert report.exit_code == 0
    assert report.checked["chain"]["statements"] == 10
    assert report.checked["registered"]["signatures"] == 2
    assert not report.not_reachable["registered"]


def test_offline_without_an_anchor_says_so(bundle):
    report = offline(bundle)
    assert report.exit_code == 3
    assert "anchor.json proves nothing" in " ".join(report.notes)


def test_offline_finds_one_flipped_bit_in_any_file(bundle, anchor):
    chance = random.Random(5)
    for path in sorted(p for p in bundle.rglob("*") if p.is_file() and p.name != "SHA256SUMS"):
        content = path.read_bytes()
        at = chance.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :])
        assert path.relative_to(bundle).as_posix() in places(offline(bundle, anchor)), path
        path.write_bytes(content)


def test_offline_sees_what_the_sums_were_made_to_fit(bundle, anchor):
    from tasks.lineage.audit import bundle as bundles

    for name in ("artifacts.sha256", "dvc.lock", "params.yaml", "registered/axon-chat-1/config.json"):
        content = (bundle / name).read_bytes()
        (bundle / name).write_bytes(content.replace(b"a", b"b", 1))
        (bundle / "SHA256SUMS").write_text(bundles.sums(bundle))
        found = places(offline(bundle, anchor))
        assert any(place.startswith(name) for place in found), found
        (bundle / name).write_bytes(content)


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder that `axon audit --export` wrote"):
        offline(tmp_path)


def test_an_export_replaces_an_earlier_one_and_nothing_else(audited, bundle, tmp_path):
    scene = examination.of_checkout(audited)
    (bundle / "more").write_text("")
    assert "exported 10 statements and 2 registered models" in export.write(scene, bundle)
    assert not (bundle / "more").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="it is there already"):
        export.write(scene, tmp_path / "mine")
    with pytest.raises(UserError, match="it is there already"):
        command.audit(audited, None, keys=[], head=None, policy=None, to=tmp_path / "mine", form="text")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_private_key_stays(exported):
    assert not any(b"PRIVATE" in path.read_bytes() for path in exported.rglob("*.pem"))
    assert not list(exported.rglob("signing.pem"))


def test_the_command_exports_and_audits_offline(audited, tmp_path, capsys, anchor):
    folder = tmp_path / "out"
    assert command.audit(audited, None, keys=[], head=None, policy=None, to=folder, form="text") == 0
    assert "exported 10 statements" in capsys.readouterr().out
    assert command.audit_offline(folder, keys=list(anchor.keys), head=anchor.head, form="text") == 0
    assert command.audit_offline(folder, keys=[], head=None, form="text") == 3
    assert "nothing anchors it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.pop("_type"),
        lambda s: s["subject"].clear(),
        lambda s: s["subject"][0].pop("digest"),
        lambda s: s["subject"][0]["digest"].update(sha256="xyz"),
        lambda s: s["predicate"].pop("runDetails"),
        lambda s: s["predicate"]["buildDefinition"].pop("buildType"),
        lambda s: s["predicate"]["runDetails"]["builder"].pop("id"),
        lambda s: s["predicate"]["runDetails"]["metadata"].update(startedOn="yesterday"),
        lambda s: s["predicate"]["buildDefinition"]["resolvedDependencies"][0].pop("digest"),
        lambda s: s.update(predicateType="https://slsa.dev/provenance/v0.2"),
    ],
)
def test_the_schemas_written_here_refuse_what_the_specification_forbids(audited, exported, spoil):
    registry = Registry()
    for path in (exported / "schemas").glob("*v1.schema.json"):
        schema = json.loads(path.read_text())
        registry = registry.with_resource(schema["$id"], Resource.from_contents(schema))
    schema = json.loads((exported / "schemas" / "slsa-provenance-v1.schema.json").read_text())
    validator = Draft202012Validator(schema, registry=registry)
    body = json.loads(StatementStore.of(audited).all()[1].statement.payload)
    assert validator.is_valid(body)
    spoil(body)
    assert not validator.is_valid(body)


def test_the_command_line_takes_what_goes_together(bundle, anchor):
    from typer.testing import CliRunner

    from flows.cli import app

    def run(*arguments):
        return CliRunner().invoke(app, ["audit", *arguments])

    assert run("--offline", str(bundle)).exit_code == 3
    given = [option for key in anchor.keys for option in ("--key", key)]
    done = run("--offline", str(bundle), *given, "--head", anchor.head, "--format", "json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["findings"] == []
    for wrong, words in {
        ("--offline", str(bundle), "models/ppo"): "--offline goes with",
        ("--reproduce", "--export", "x"): "--reproduce goes with",
        ("--offline", str(bundle), "--key", anchor.keys[0]): "give both",
        ("--offline", str(bundle), "--format", "xml"): "allowed are text and json",
        ("a", "b"): "one target at a time",
    }.items():
        done = run(*wrong)
        assert isinstance(done.exception, UserError)
        assert words in str(done.exception)
