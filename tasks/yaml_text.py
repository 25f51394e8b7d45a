"""Read YAML as DVC does. PyYAML follows YAML 1.1, where `3e-05`, as DVC writes it, is a text and not a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

# libyaml's parser, where PyYAML was built with it, takes an eighth of the time.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    pass


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str) -> Any:
    """The content of a YAML text; raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)
