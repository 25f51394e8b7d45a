"""Whatever is altered is found, and the finding names the place; what is not altered raises no alarm."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tasks.lineage import envelope, keys
from tasks.lineage.audit import examination
from tests.tasks.lineage import audited_run
from tests.tasks.lineage.auditing import altered, flipped, names, told

SEED = 20260


N_FLIPS = 340


N_UNTOUCHED = 100


def covered_files(root: Path) -> dict[Path, tuple[str, ...]]:
    """Every file that an audit covers, and what the place of a finding about it must hold."""
    plain = [
        "dvc.lock",
        "dvc.yaml",
        "params.yaml",
        "constraints.txt",
        ".axon/lineage-head.json",
        ".axon/keys/signing.pem",
    ]
    trees = ["lineage", "sources", "data", "models", "metrics"]
    found = {root / name: (name,) for name in plain}
    for tree in trees:
        found.update({p: (p.relative_to(root).as_posix(),) for p in (root / tree).rglob("*") if p.is_file()})
    for path in (root / ".dvc" / "cache" / "files" / "md5").rglob("*"):
        if path.is_file():
            found[path] = (path.relative_to(root).as_posix(),)
    store = root / ".axon" / "mlflow-artifacts"
    for path in store.rglob("*"):
        if path.is_file():
            owner = path.relative_to(store).parts
            found[path] = ("MLflow", owner[1] if owner[0] == "models" else "MLflow run", path.name)
    return found


@pytest.mark.usefixtures("still_store")
def test_one_flipped_bit_in_any_covered_file_is_found(audited):
    chance = random.Random(SEED)
    files = covered_files(audited.root)
    assert len(files) > 50
    every = sorted(files)
    for path in every + chance.choices(every, k=N_FLIPS - len(every)):
        content = flipped(path.read_bytes(), chance)
        with altered(path, content):
            report = examination.of_checkout(audited).report
        assert report.exit_code == 1, path
        assert names(report, *files[path]), f"{path}\n{told(report)}"


@pytest.mark.usefixtures("still_store")
def test_a_missing_file_is_found(audited):
    files = covered_files(audited.root)
    statements = sorted(path.name for path in (audited.root / "lineage" / "statements").iterdir())
    left_out = (".axon/keys/signing.pem", ".axon/lineage-head.json")  # neither is needed where a chain is verified
    for path, parts in files.items():
        name = path.relative_to(audited.root).as_posix()
        if name in left_out or name.startswith(".dvc/"):
            continue
        with altered(path, None):
            report = examination.of_checkout(audited).report
        if name.startswith(("data/", "metrics/")):  # a whole output that DVC's cache has is not lost
            assert report.not_reachable["artifacts"] == {"outputs that are in DVC's cache alone": 1}
            assert not report.findings
            continue
        assert report.exit_code == 1, path
        if name.startswith("lineage/statements/"):
            parts = (".axon/lineage-head.json",) if path.name == statements[-1] else (name[:25],)
        assert names(report, *parts), f"{path}\n{told(report)}"


@pytest.mark.usefixtures("still_store")
def test_an_output_that_is_nowhere_is_found(audited):
    path = audited.root / "metrics" / "evaluate.json"
    name = audited_run.cache(audited.root, path)
    with altered(path, None), altered(audited.root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:], None):
        report = examination.of_checkout(audited).report
    assert [finding.place for finding in report.findings] == ["metrics/evaluate.json"]


def test_untouched_audits_raise_no_alarm(audited, anchor):
    for number in range(N_UNTOUCHED):
        given = anchor if number % 2 else None
        report = examination.of_checkout(audited, anchor=given).report
        assert report.exit_code == 0, told(report)


def swap(folder: Path, chance: random.Random) -> str:
    one, other = chance.sample(sorted(folder.iterdir()), 2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return one.name


def swap_names(folder: Path, chance: random.Random) -> str:
    """The same, with names that fit what is in the files, but for the number."""
    one, other = chance.sample(sorted(folder.iterdir()), 2)
    targets = [folder / (a.name[:6] + b.name[6:]) for a, b in ((one, other), (other, one))]
    content = {targets[0]: other.read_bytes(), targets[1]: one.read_bytes()}
    one.unlink(), other.unlink()
    for path, text in content.items():
        path.write_bytes(text)
    return targets[0].name


def drop_one(folder: Path, chance: random.Random) -> str:
    path = chance.choice(sorted(folder.iterdir())[:-1])
    path.unlink()
    return path.name[:6]


def drop_last(folder: Path, chance: random.Random) -> str:
    for path in sorted(folder.iterdir())[-chance.randint(1, 9) :]:
        path.unlink()
    return "lineage/statements"


def sign_anew(folder: Path, chance: random.Random) -> str:
    """Another key signs a statement as it is, and puts its public half beside the others."""
    key = keys.Key(ec.generate_private_key(ec.SECP256R1()))
    (folder.parent / "keys" / f"{key.fingerprint}.pem").write_bytes(key.public_pem)
    path = chance.choice(sorted(folder.iterdir()))
    payload = envelope.payload_of(envelope.from_bytes(path.read_bytes()))
    path.write_bytes(envelope.to_bytes(envelope.sign(payload, key)))
    return path.name


def sign_all_anew(folder: Path, chance: random.Random) -> str:
    key = keys.Key(ec.generate_private_key(ec.SECP256R1()))
    (folder.parent / "keys" / f"{key.fingerprint}.pem").write_bytes(key.public_pem)
    for path in folder.iterdir():
        payload = envelope.payload_of(envelope.from_bytes(path.read_bytes()))
        path.write_bytes(envelope.to_bytes(envelope.sign(payload, key)))
    head = folder.parents[1] / ".axon" / "lineage-head.json"
    head.write_text(head.read_text().replace(_key_in(head), key.fingerprint))
    return f"{chance.randint(1, 10):06d}-"


def _key_in(head: Path) -> str:
    return head.read_text().partition('"key": "')[2][:64]


def replay(folder: Path, chance: random.Random) -> str:
    """Chain and head as they were earlier, all of it signed by the true key."""
    kept = chance.randint(1, 9)
    paths = sorted(folder.iterdir())
    for path in paths[kept:]:
        path.unlink()
    body = envelope.payload_of(envelope.from_bytes(paths[kept - 1].read_bytes()))
    from tasks.files import write_json
    from tasks.lineage import statement

    head = folder.parents[1] / ".axon" / "lineage-head.json"
    write_json(head, {"sequence": kept, "digest": statement.parse(body).digest, "key": _key_in(head)})
    return "lineage/statements"


def set_head_back(folder: Path, chance: random.Random) -> str:
    """The head alone as it was earlier."""
    saved = {path: path.read_bytes() for path in folder.iterdir()}
    replay(folder, chance)
    for path, content in saved.items():
        path.write_bytes(content)
    return ".axon/lineage-head.json"


def repeat(folder: Path, chance: random.Random) -> str:
    """An earlier statement under a number of its own at the end."""
    path = chance.choice(sorted(folder.iterdir()))
    shutil.copy(path, folder / f"000011{path.name[6:]}")
    return f"000011{path.name[6:]}"


CHAIN = [swap, swap_names, drop_one, drop_last, sign_anew, sign_all_anew, replay, set_head_back, repeat]


@pytest.mark.usefixtures("still_store")
@pytest.mark.parametrize("alter", CHAIN)
def test_a_rearranged_chain_is_found(audited, anchor, alter: Callable[[Path, random.Random], str], tmp_path):
    chance = random.Random(SEED)
    lineage, head = audited.root / "lineage", audited.state / "lineage-head.json"
    shutil.copytree(lineage, tmp_path / "lineage")
    kept = head.read_bytes()
    for _ in range(8):
        try:
            place = alter(lineage / "statements", chance)
            report = examination.of_checkout(audited, anchor=anchor).report
        finally:
            shutil.rmtree(lineage)
            shutil.copytree(tmp_path / "lineage", lineage)
            head.write_bytes(kept)
        assert report.exit_code == 1
        assert names(report, place), told(report)
