"""The policy of `policy.yaml`: what the data behind a model may be, and where an artifact's facts break it."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tasks.errors import UserError
from tasks.files import read_json
from tasks.lineage import facts, licenses
from tasks.lineage.detectors import KINDS
from tasks.lineage.facts import Facts, Finding
from tasks.runtime.checkout import Checkout

FILE = "policy.yaml"
ANY_SOURCE = "*"
_SHOWN = 3

Kind = Literal[KINDS]  # type: ignore[valid-type]
Share = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=0)]
License = Annotated[str, AfterValidator(licenses.check_pattern)]


class Section(BaseModel):
    """A frozen part of the policy; unknown keys and wrong types are refused, and every key must be given."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Accepted(Section):
    """A finding that a person has looked at: all of this kind in this record are left out of the count."""

    record: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    kind: Kind
    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Policy(Section):
    """Licences are SPDX identifiers or patterns with `*`; what is forbidden wins over what is allowed."""

    version: Literal[1]
    allowed_licenses: list[License]
    forbidden_licenses: list[License]
    max_findings: dict[Kind, Whole]
    accepted_findings: list[Accepted]
    overlap_words: Annotated[int, Field(ge=5)]
    max_evaluation_overlap: dict[str, Share]
    require_statements: bool


@dataclass(frozen=True)
class Violation:
    """One rule that is broken: `where`, with which `value`, what is `allowed`, and what to do about it."""

    rule: str
    where: str
    value: str
    allowed: str
    what_to_do: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: {self.value}; allowed: {self.allowed}. {self.what_to_do}"


class _NoDuplicates(yaml.SafeLoader):
    """Refuses a key that is given twice: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, n in Counter(map(str, keys)).items():
            if n > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given {n} times", node.start_mark)
        return super().construct_mapping(node, deep)


def load(path: Path) -> Policy:
    """Read and check a policy file, or raise one `UserError` that lists every mistake in it."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoDuplicates)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: restore it with `git checkout {path.name}`, or name another.") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable YAML: {error}") from None
    return check(tree, where=str(path))


def check(tree: Any, *, where: str = FILE) -> Policy:
    """The checked policy in `tree`, or one `UserError` that lists every mistake."""
    if not isinstance(tree, dict):
        raise UserError(f"{where} must hold a mapping of rules, but holds {type(tree).__name__}; see docs/policy.md.")
    try:
        policy = Policy.model_validate(tree)
    except ValidationError as error:
        mistakes = [_describe(e) for e in error.errors(include_url=False)]
    else:
        mistakes = _missing(policy)
        if not mistakes:
            return policy
    listed = "\n".join(f"  - {mistake}" for mistake in mistakes)
    raise UserError(f"{where}: {len(mistakes)} mistake(s):\n{listed}\nEdit {where}; docs/policy.md explains the rules.")


def _missing(policy: Policy) -> list[str]:
    """A kind or a source without a limit would be allowed without bound by forgetting it."""
    wrong = [
        f"max_findings.{kind} is missing; give a whole number" for kind in KINDS if kind not in policy.max_findings
    ]
    if ANY_SOURCE not in policy.max_evaluation_overlap:
        wrong.append('max_evaluation_overlap."*" is missing; give the share for all sources that are not named')
    return wrong


def _describe(error: Mapping[str, Any]) -> str:
    loc = [str(part) for part in error["loc"] if part != "[key]"]
    where = ".".join(loc)
    if error["type"] == "extra_forbidden":
        known = list(Accepted.model_fields if loc[0] == "accepted_findings" else Policy.model_fields)
        close = difflib.get_close_matches(loc[-1], known, n=1)
        return f"{where} is not a rule; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}")
    if error["type"] == "missing":
        return f"{where} is missing; every rule must be given"
    text = error["msg"].removeprefix("Value error, ")
    return f"{where}={error['input']!r}: {text[:1].lower()}{text[1:]}"


def evaluate(policy: Policy, found: Facts) -> list[Violation]:
    """Every rule that the facts break, in a fixed order; empty if they keep to the policy."""
    return [
        *_statements(policy, found),
        *_licenses(policy, found),
        *_findings(policy, found.findings),
        *_overlap(policy, found),
    ]


def _statements(policy: Policy, found: Facts) -> list[Violation]:
    if not policy.require_statements:
        return []
    return [
        Violation(
            rule="require_statements",
            where=missing,
            value="no statement says how it was made",
            allowed="a statement for every ancestor",
            what_to_do="Restore lineage/statements with git, or make it again with statements switched on.",
        )
        for missing in found.unstated
    ]


def _licenses(policy: Policy, found: Facts) -> list[Violation]:
    n_records: Counter[tuple[str, str]] = Counter()
    for count in found.licenses:
        n_records[count.license, count.origin] += count.total
    violations = []
    for (license, origin), n in sorted(n_records.items()):
        why = licenses.why_refused(license, policy.allowed_licenses, policy.forbidden_licenses)
        if why is not None:
            violations.append(
                Violation(
                    rule=why.rule,
                    where=f"{origin}, {n} record(s)",
                    value=f"licence {license!r}{why.detail}",
                    allowed=why.allowed,
                    what_to_do="Take the source out of data in params.yaml and run again, correct its licence there "
                    f"if it is wrong, or change {why.rule} in {FILE}.",
                )
            )
    return violations


def _findings(policy: Policy, findings: Sequence[Finding]) -> list[Violation]:
    accepted = {(entry.record, entry.kind) for entry in policy.accepted_findings}
    left = [finding for finding in findings if (finding.record, finding.kind) not in accepted]
    violations = []
    for kind in KINDS:
        of_kind = [finding for finding in left if finding.kind == kind]
        if len(of_kind) > policy.max_findings[kind]:
            places = [f"record {f.record} ({f.source}, {f.field} {f.start}-{f.end})" for f in of_kind[:_SHOWN]]
            more = f" and {len(of_kind) - _SHOWN} more" if len(of_kind) > _SHOWN else ""
            violations.append(
                Violation(
                    rule=f"max_findings.{kind}",
                    where="; ".join(places) + more,
                    value=f"{len(of_kind)} in {len({f.record for f in of_kind})} record(s)",
                    allowed=f"at most {policy.max_findings[kind]}",
                    what_to_do="Scrub the source, or remove the records with `axon forget --record ID --yes`, and run "
                    f"again; or accept what is harmless under accepted_findings in {FILE}.",
                )
            )
    return violations


def _overlap(policy: Policy, found: Facts) -> list[Violation]:
    limits = policy.max_evaluation_overlap
    violations = []
    for source, n_items in sorted(found.overlap.n_items.items()):
        limit = limits.get(source, limits[ANY_SOURCE])
        shared = [item for item in found.overlap.shared if item.source == source]
        if found.overlap.fraction(source) > limit:
            records = ", ".join(item.record for item in shared[:_SHOWN]) + (", …" if len(shared) > _SHOWN else "")
            violations.append(
                Violation(
                    rule="max_evaluation_overlap",
                    where=f"{source}, records {records}",
                    value=f"{len(shared)} of {n_items} held-out records ({found.overlap.fraction(source):.2%}) share "
                    f"{found.overlap.words} words or their whole text with training text",
                    allowed=f"at most {limit:.2%}",
                    what_to_do="Remove the records from one side with `axon forget --record ID --yes` and run again, "
                    f"or raise the limit of the source in {FILE}.",
                )
            )
    return violations


def check_artifact(checkout: Checkout, artifact: str, policy: Policy, *, fresh: bool = True) -> list[Violation]:
    """Where the ancestors of an output (`models/ppo`) break the policy. `fresh` trusts no facts file."""
    return evaluate(policy, facts.of_artifact(checkout, artifact, words=policy.overlap_words, fresh=fresh))


def check_before_registration(checkout: Checkout, model: str | None = None) -> list[Violation]:
    """Where the model to be registered (default: the one that the evaluation chooses) breaks `policy.yaml`.

    Takes seconds: facts are computed anew from the records, since a version is registered once and for long.
    """
    from tasks import registry  # not above: registration asks this module

    policy = load(checkout.root / FILE)
    if model is None:
        evaluation = checkout.root / "metrics" / "evaluate.json"
        if not evaluation.is_file():
            raise UserError("metrics/evaluate.json is missing: run `axon run` first.", exit_code=1)
        model = registry.choose(read_json(evaluation))
    return check_artifact(checkout, f"models/{model}", policy)
