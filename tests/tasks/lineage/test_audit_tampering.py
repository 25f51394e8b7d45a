"""Whatever is altered is found, and the finding names the place; what is not altered raises no alarm."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tasks.lineage import envelope, keys
from tasks.lineage.audit import anchoring, examination, snapshot
from tasks.lineage.audit.findings import Report
from tasks.lineage.store import StatementStore
from tests.tasks.lineage import audited_run

SEED = 20260
N_FLIPS = 360
N_UNTOUCHED = 100


@pytest.fixture(scope="module")
def checkout(audited):
    return audited


@pytest.fixture(scope="module")
def anchor(checkout):
    """The anchor as an outside auditor was given it."""
    head = StatementStore.of(checkout).head()
    return anchoring.given([head.key], head.digest)


@pytest.fixture
def still_store(checkout, monkeypatch):
    """MLflow's store is read once: for tests that alter files and no row of it."""
    scene = examination.of_checkout(checkout)
    assert not scene.report.findings
    known = snapshot.load(scene)
    monkeypatch.setattr(snapshot, "load", lambda _: known)


@contextmanager
def altered(path: Path, content: bytes | None) -> Iterator[None]:
    """The file with other content, or gone."""
    before, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o600)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)


def names(report: Report, *parts: str) -> bool:
    return any(all(part in finding.place for part in parts) for finding in report.findings)


def told(report: Report) -> str:
    return "\n".join(f"{finding.place}: {finding.found}" for finding in report.findings) or "no finding"


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


def flipped(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


@pytest.mark.usefixtures("still_store")
def test_one_flipped_bit_in_any_covered_file_is_found(checkout):
    chance = random.Random(SEED)
    files = covered_files(checkout.root)
    assert len(files) > 50
    every = sorted(files)
    for path in every + chance.choices(every, k=N_FLIPS - len(every)):
        content = flipped(path.read_bytes(), chance)
        with altered(path, content):
            report = examination.of_checkout(checkout).report
        assert report.exit_code == 1, path
        assert names(report, *files[path]), f"{path}\n{told(report)}"


@pytest.mark.usefixtures("still_store")
def test_a_missing_file_is_found(checkout):
    files = covered_files(checkout.root)
    statements = sorted(path.name for path in (checkout.root / "lineage" / "statements").iterdir())
    left_out = (".axon/keys/signing.pem", ".axon/lineage-head.json")  # neither is needed where a chain is verified
    for path, parts in files.items():
        name = path.relative_to(checkout.root).as_posix()
        if name in left_out or name.startswith(".dvc/"):
            continue
        with altered(path, None):
            report = examination.of_checkout(checkout).report
        if name.startswith(("data/", "metrics/")):  # a whole output that DVC's cache has is not lost
            assert report.not_reachable["artifacts"] == {"outputs that are in DVC's cache alone": 1}
            assert not report.findings
            continue
        assert report.exit_code == 1, path
        if name.startswith("lineage/statements/"):
            parts = (".axon/lineage-head.json",) if path.name == statements[-1] else (name[:25],)
        assert names(report, *parts), f"{path}\n{told(report)}"


@pytest.mark.usefixtures("still_store")
def test_an_output_that_is_nowhere_is_found(checkout):
    path = checkout.root / "metrics" / "evaluate.json"
    name = audited_run.cache(checkout.root, path)
    with altered(path, None), altered(checkout.root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:], None):
        report = examination.of_checkout(checkout).report
    assert [finding.place for finding in report.findings] == ["metrics/evaluate.json"]


def test_untouched_audits_raise_no_alarm(checkout, anchor):
    for number in range(N_UNTOUCHED):
        given = anchor if number % 2 else None
        report = examination.of_checkout(checkout, anchor=given).report
        assert report.exit_code == 0, told(report)


# Each: a name, SQL that alters covered rows, and what the place of the finding must hold. {ppo} is the newest PPO run.
ROWS = [
    ("UPDATE runs SET name = 'sft' WHERE run_uuid = '{ppo}'", "run ppo", "name"),
    ("UPDATE runs SET status = 'FAILED' WHERE run_uuid = '{ppo}'", "run ppo", "status"),
    ("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = '{ppo}'", "run ppo", "status"),
    ("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = '{ppo}'", "run ppo", "lifecycle_stage"),
    ("UPDATE runs SET artifact_uri = artifact_uri || 'x' WHERE run_uuid = '{ppo}'", "run ppo", "artifact_uri"),
    ("UPDATE params SET value = '0.05' WHERE key = 'ppo.kl_coef' AND run_uuid = '{ppo}'", "run ppo", "ppo.kl_coef"),
    ("UPDATE params SET key = 'ppo.x' WHERE key = 'ppo.kl_coef' AND run_uuid = '{ppo}'", "run ppo", "ppo.kl_coef"),
    ("DELETE FROM params WHERE key = 'seed' AND run_uuid = '{ppo}'", "run ppo", "seed"),
    ("INSERT INTO params (key, value, run_uuid) VALUES ('extra', '1', '{ppo}')", "run ppo", "extra"),
    ("UPDATE tags SET value = '0' WHERE key = 'input.models/sft' AND run_uuid = '{ppo}'", "ppo", "input.models/sft"),
    ("UPDATE tags SET value = '0' WHERE key = 'output.models/ppo' AND run_uuid = '{ppo}'", "ppo", "output.models/ppo"),
    ("DELETE FROM tags WHERE key = 'axon.statement' AND run_uuid = '{ppo}'", "run ppo", "axon.statement"),
    ("UPDATE tags SET value = '{zeros}' WHERE key = 'axon.statement' AND run_uuid = '{ppo}'", "ppo", "axon.statement"),
    ("UPDATE tags SET value = 'pipeline' WHERE key = 'axon.kind' AND run_uuid = '{ppo}'", "run ppo", "axon.kind"),
    ("UPDATE tags SET value = 'x' WHERE key = 'mlflow.runName' AND run_uuid = '{ppo}'", "run ppo", "runName"),
    ("UPDATE tags SET value = '{ppo}' WHERE key = 'mlflow.parentRunId' AND run_uuid = '{ppo}'", "run ppo", "parent"),
    ("DELETE FROM tags WHERE key = 'mlflow.parentRunId' AND run_uuid = '{ppo}'", "run ppo", "parent"),
    ("UPDATE tags SET value = 'other' WHERE key = 'axon.execution' AND run_uuid = '{ppo}'", "MLflow run ppo"),
    ("INSERT INTO tags (key, value, run_uuid) VALUES ('input.more', '0', '{ppo}')", "run ppo", "input.more"),
    ("UPDATE params SET value = '8' WHERE key = 'seed' AND run_uuid = '{pipeline}'", "run pipeline", "seed"),
    ("UPDATE tags SET value = 'x' WHERE key = 'axon.statement' AND run_uuid = '{pipeline}'", "pipeline", "statement"),
    ("UPDATE params SET value = '8' WHERE key = 'seed' AND run_uuid = '{old_ppo}'", "run ppo", "seed"),
    ("DELETE FROM datasets WHERE name = 'models/sft'", "data set", "models/sft"),
    ("UPDATE datasets SET digest = '0' WHERE name = 'models/sft'", "data set", "models/sft"),
    ("UPDATE datasets SET name = 'models/sfu' WHERE name = 'models/sft'", "data set", "models/sft"),
    ("UPDATE datasets SET dataset_source = '{{}}' WHERE name = 'models/sft'", "data set", "models/sft"),
    ("DELETE FROM inputs WHERE destination_type = 'MODEL_OUTPUT' AND source_id = '{ppo}'", "logged model"),
    ("DELETE FROM inputs WHERE destination_id = '{ppo}'", "run ppo", "data set"),
    ("UPDATE logged_models SET name = 'sfu' WHERE name = 'sft'", "logged model", "name"),
    ("UPDATE logged_models SET status = 1 WHERE name = 'sft'", "logged model", "status"),
    ("UPDATE logged_models SET source_run_id = '{ppo}' WHERE name = 'sft'", "logged model", "source_run_id"),
    ("UPDATE logged_models SET artifact_location = artifact_location || '/x'", "logged model", "artifact_location"),
    ("UPDATE logged_models SET lifecycle_stage = 'deleted' WHERE name = 'sft'", "logged model sft"),
    ("UPDATE logged_model_tags SET tag_value = '0'", "logged model", "axon.digest"),
    ("DELETE FROM logged_model_tags", "logged model", "axon.digest"),
    ("UPDATE model_versions SET source = (SELECT source FROM model_versions WHERE version = 1) WHERE version = 2",
     "axon-chat version 2"),
    ("UPDATE model_versions SET source = 'file:///nowhere' WHERE version = 2", "axon-chat version 2", "source"),
    ("UPDATE model_versions SET storage_location = 'file:///nowhere' WHERE version = 2", "version 2", "download"),
    ("UPDATE model_versions SET run_id = '{old_ppo}' WHERE version = 2", "axon-chat version 2", "run_id"),
    ("UPDATE model_versions SET status = 'FAILED_REGISTRATION' WHERE version = 2", "axon-chat version 2", "status"),
    ("UPDATE model_versions SET version = 3 WHERE version = 2", "axon-chat version 2"),
    ("UPDATE model_version_tags SET value = '0' WHERE key = 'axon.digest' AND version = 2", "version 2", "axon.digest"),
    ("UPDATE model_version_tags SET value = 'sft' WHERE key = 'axon.stage' AND version = 1", "version 1", "axon.stage"),
    ("DELETE FROM model_version_tags WHERE version = 1", "axon-chat version 1", "tags"),
    ("UPDATE registered_model_aliases SET version = 2 WHERE alias = 'champion'", "alias champion"),
    ("UPDATE registered_model_aliases SET alias = 'chanpion' WHERE alias = 'champion'", "alias champion"),
    ("DELETE FROM registered_model_aliases WHERE alias = 'challenger'", "alias challenger"),
    ("INSERT INTO registered_model_aliases (alias, version, name, workspace) "
     "VALUES ('best', 1, 'axon-chat', 'default')", "alias best"),
    ("UPDATE experiments SET artifact_location = 'file:///nowhere' WHERE name = 'axon'", "MLflow run", "artifact_uri"),
    ("UPDATE experiments SET name = 'axom' WHERE name = 'axon'", "MLflow run"),
    ("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'axon'", "MLflow experiment"),
]  # fmt: skip


@pytest.fixture(scope="module")
def store(checkout):
    """(SQL → alter the rows while a block runs, the names that SQL may use)."""
    path = checkout.state / "mlflow.db"
    kept = sqlite3.connect(":memory:")
    with closing(sqlite3.connect(path)) as connection:
        connection.backup(kept)

        def run_of(name: str, order: str) -> str:
            query = f"SELECT run_uuid FROM runs WHERE name = '{name}' ORDER BY start_time {order}"
            return str(connection.execute(query).fetchone()[0])

        ids = {"ppo": run_of("ppo", "DESC"), "old_ppo": run_of("ppo", "ASC"), "pipeline": run_of("pipeline", "DESC")}

    @contextmanager
    def alter(*statements: str) -> Iterator[None]:
        with closing(sqlite3.connect(path)) as connection:
            changed = sum(connection.execute(sql.format(**ids, zeros="0" * 64)).rowcount for sql in statements)
            assert changed > 0, statements
            connection.commit()
        try:
            yield
        finally:
            with closing(sqlite3.connect(path)) as connection:
                kept.backup(connection)

    return alter


@pytest.mark.parametrize(("sql", "parts"), [(row[0], row[1:]) for row in ROWS], ids=range(len(ROWS)))
def test_an_altered_row_of_mlflow_is_found(checkout, store, sql, parts):
    with store(sql):
        report = examination.of_checkout(checkout).report
    assert report.exit_code == 1, sql
    assert names(report, *parts), told(report)


def test_a_run_whose_rows_are_all_gone_is_found(checkout, store):
    tables = ("params", "tags", "metrics", "latest_metrics", "runs")
    with store(*[f"DELETE FROM {table} WHERE run_uuid = '{{old_ppo}}'" for table in tables]):
        report = examination.of_checkout(checkout).report
    assert names(report, "MLflow run ppo"), told(report)


def test_random_alterations_of_parameters_and_tags_are_found(checkout, store):
    chance = random.Random(SEED)
    with closing(sqlite3.connect(checkout.state / "mlflow.db")) as connection:
        rows = [("params", *row) for row in connection.execute("SELECT key, run_uuid, value FROM params")]
        rows += [
            ("tags", *row)
            for row in connection.execute("SELECT key, run_uuid, value FROM tags")
            if row[0].startswith(("axon.", "input.", "output."))
        ]
    for table, key, run, value in chance.sample(rows, 30):
        other = (
            flipped(value.encode(), chance).decode("latin-1").replace("'", "''").replace("{", "{{").replace("}", "}}")
        )
        with store(f"UPDATE {table} SET value = '{other}' WHERE key = '{key}' AND run_uuid = '{run}'"):
            report = examination.of_checkout(checkout).report
        assert names(report, "MLflow", key if key != "axon.execution" else ""), f"{key}\n{told(report)}"


# Alterations of the whole chain, each with what the place of the finding must hold.


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
def test_a_rearranged_chain_is_found(checkout, anchor, alter: Callable[[Path, random.Random], str], tmp_path):
    chance = random.Random(SEED)
    lineage, head = checkout.root / "lineage", checkout.state / "lineage-head.json"
    shutil.copytree(lineage, tmp_path / "lineage")
    kept = head.read_bytes()
    for _ in range(8):
        try:
            place = alter(lineage / "statements", chance)
            report = examination.of_checkout(checkout, anchor=anchor).report
        finally:
            shutil.rmtree(lineage)
            shutil.copytree(tmp_path / "lineage", lineage)
            head.write_bytes(kept)
        assert report.exit_code == 1
        assert names(report, place), told(report)
