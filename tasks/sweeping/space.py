"""Over what a sweep searches: `KEY=DISTRIBUTION(…)` read, held against the parameters, and sampled by Ray Tune."""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tasks import parameters, yaml_text
from tasks.errors import UserError

# What stands in the brackets of each.
DISTRIBUTIONS = {
    "choice": "values, one of which is taken",
    "uniform": "LOW, HIGH",
    "loguniform": "LOW, HIGH: every factor alike",
    "randint": "LOW, HIGH: whole numbers below HIGH",
    "lograndint": "LOW, HIGH: whole numbers below HIGH, every factor alike",
}
_EXAMPLE = "for example --over 'pretrain.learning_rate=loguniform(1e-4, 1e-2)'"
_WHOLE = ("randint", "lograndint")
_DIGITS = 4  # of a sampled number: a command that is typed again must give the same one
_DRAWS_PER_TRIAL = 50  # of few values most draws are repetitions
_N_SHOWN = 5

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """One `--over`: the dotted `key`, the distribution of Ray Tune, and what stood in its brackets."""

    key: str
    distribution: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.key}={self.distribution}({', '.join(json.dumps(a) for a in self.arguments)})"

    @property
    def is_continuous(self) -> bool:
        return self.distribution in ("uniform", "loguniform")

    def domain(self) -> Any:
        """What Ray Tune samples from."""
        from ray import tune

        if self.distribution == "choice":
            return tune.choice(list(self.arguments))
        return getattr(tune, self.distribution)(*self.arguments)

    def examples(self) -> tuple[Any, ...]:
        """Values that stand for all that can be sampled: every one of a choice, the ends of a range and one between."""
        if self.distribution == "choice":
            return self.arguments
        low, high = self.arguments
        if self.is_continuous:
            return (float(low), float(high), float(low) + (high - low) / math.pi)
        return (low, high - 1)

    def settled(self, sampled: Any) -> Any:
        """The sampled value as it is used: a plain Python value, of few digits, within the range."""
        if self.distribution == "choice":
            return sampled
        if self.distribution in _WHOLE:
            return int(sampled)
        low, high = self.arguments
        return min(max(float(f"{float(sampled):.{_DIGITS}g}"), float(low)), float(high))


def parse(text: str) -> Swept:
    """Read one `--over`. Raises `UserError` with one sentence."""
    found = re.fullmatch(r"\s*([^=\s]+)\s*=\s*(\w+)\s*\((.*)\)\s*", text, re.DOTALL)
    if not found:
        raise UserError(f"--over {text!r} must be KEY=DISTRIBUTION(…), {_EXAMPLE}")
    key, distribution, inside = found.groups()
    if distribution not in DISTRIBUTIONS:
        known = ", ".join(DISTRIBUTIONS)
        raise UserError(f"--over {text!r}: {distribution} is not a distribution; {_close(distribution, DISTRIBUTIONS)}"
                        f"known: {known}")  # fmt: skip
    try:
        arguments = yaml_text.parse(f"[{inside}]")
    except yaml.YAMLError:
        raise UserError(f"--over {text!r}: what stands in the brackets must be YAML values, {_EXAMPLE}") from None
    swept = Swept(key=key, distribution=distribution, arguments=tuple(arguments))
    fault = _fault(swept)
    if fault:
        raise UserError(f"--over {text!r}: {fault}")
    return swept


def _fault(swept: Swept) -> str:
    """What is wrong with the arguments of a distribution; empty if nothing is."""
    name, arguments = swept.distribution, swept.arguments
    if name == "choice":
        return "" if arguments else "choice() needs at least one value"
    wanted = int if name in _WHOLE else (int, float)
    numbers = [a for a in arguments if isinstance(a, wanted) and not isinstance(a, bool) and math.isfinite(a)]
    if len(arguments) != 2 or len(numbers) != 2:
        kind = "two whole numbers" if name in _WHOLE else "two numbers"
        return f"{name} takes {kind}: {DISTRIBUTIONS[name]}"
    low, high = numbers
    if low >= high:
        return f"{name} needs its first number below its second, but {low} is not below {high}"
    if name.startswith("log") and low <= 0:
        return f"{name} needs numbers above 0, but the first is {low}"
    return ""


def _close(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {found[0]}? " if found else ""


def check(space: Sequence[Swept], tree: Mapping[str, Any]) -> None:
    """Hold every swept key and its range against the parameters. Raises one `UserError` that lists every mistake."""
    keys = list(_leaves(tree))
    wrong = []
    for number, swept in enumerate(space):
        if any(swept.key == other.key for other in space[:number]):
            wrong.append(f"{swept.key} is given twice")
        elif swept.key not in keys:
            wrong.append(_unknown(swept.key, keys))
        else:
            wrong += _refused(swept, tree)
    if wrong:
        listed = "\n".join(f"  - {one}" for one in wrong)
        raise UserError(f"--over: {len(wrong)} mistake(s); nothing was started:\n{listed}")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _unknown(key: str, keys: Sequence[str]) -> str:
    below = [known for known in keys if known.startswith(f"{key}.")]
    if below:
        return f"{key} is a section of params.yaml; name one of {', '.join(below)}"
    beside = [known for known in keys if known.startswith(f"{key.rpartition('.')[0]}.")]
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(beside)}" if beside else "see the keys there"
    return f"{key} is not a parameter of params.yaml; {hint}"


def _refused(swept: Swept, tree: Mapping[str, Any]) -> list[str]:
    """What the schema says of the values that a range can give, whatever the other keys are."""
    found = [m for value in swept.examples() for m in _of_fields(with_values(tree, {swept.key: value}))]
    if found and swept.is_continuous and all("valid integer" in mistake for mistake in found):
        low, high = (math.ceil(a) for a in swept.arguments)
        return [f"{swept}: {swept.key} takes whole numbers; use randint({low}, {high + 1}), lograndint or choice"]
    return [f"{swept}: {mistake}" for mistake in dict.fromkeys(found)]


def _of_fields(tree: Values) -> list[str]:
    return parameters.mistakes(tree, between_keys=False)


def with_values(tree: Mapping[str, Any], values: Mapping[str, Any]) -> Values:
    """A copy of the nested parameters with dotted keys replaced."""
    changed: Values = copy.deepcopy(dict(tree))
    for key, value in values.items():
        *path, last = key.split(".")
        section = changed
        for part in path:
            section = section[part]
        section[last] = value
    return changed


def sample(space: Sequence[Swept], n: int, *, seed: int) -> list[Values]:
    """The values of up to `n` different trials, by Ray Tune's variant generator: a function of `space` and `seed`.

    The first of more trials are those of fewer. There are less than `n` where the ranges hold no more.
    """
    import numpy as np
    from ray.tune.search.variant_generator import generate_variants

    random_state = np.random.RandomState(seed)
    spec = {"config": {swept.key: swept.domain() for swept in space}}
    found: dict[str, Values] = {}
    for _ in range(n * _DRAWS_PER_TRIAL):
        ((_resolved, drawn),) = generate_variants(spec, random_state=random_state)
        values = {swept.key: swept.settled(drawn["config"][swept.key]) for swept in space}
        found.setdefault(json.dumps(values, sort_keys=True), values)
        if len(found) == n:
            break
    return list(found.values())


def check_trials(trials: Sequence[Values], tree: Mapping[str, Any]) -> list[parameters.Parameters]:
    """The parameters of every trial. Raises one `UserError` for trials that break a rule between keys."""
    wrong = []
    for number, values in enumerate(trials, 1):
        wrong += [f"trial {number} ({shown(values)}): {m}" for m in parameters.mistakes(with_values(tree, values))]
    if wrong:
        listed = "\n".join(f"  - {one}" for one in wrong[:_N_SHOWN])
        more = f"\n  … and {len(wrong) - _N_SHOWN} more" if len(wrong) > _N_SHOWN else ""
        raise UserError(
            f"--over gives parameters that are not allowed together; nothing was started:\n{listed}{more}\n"
            "Narrow the ranges, or use choice(…) with values that fit."
        )
    return [parameters.check(with_values(tree, values)) for values in trials]


def shown(values: Mapping[str, Any]) -> str:
    """`pretrain.learning_rate=0.003, pretrain.batch_size=8`."""
    return ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())
