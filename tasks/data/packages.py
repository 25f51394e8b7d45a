"""Find the Python files of pinned, installed packages without importing them.

Licences are those of the packages' own sources as SPDX names; the metadata of a wheel also lists what is bundled
with it (torch and numpy do), and older metadata has prose.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.errors import UserError

LICENSES = {
    "torch": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "pandas": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "scikit-learn": "BSD-3-Clause",
    "matplotlib": "PSF-2.0",
}
_UNKNOWN_LICENSE = "NOASSERTION"
_SPDX = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")

# Tests, vendored and generated third-party code, whose licence or author is another.
_SKIPPED_PART = re.compile(
    r"_?tests?|_?testing|test_.*|.*_test\.py|conftest\.py|_?externals?|_?extern|_?vendor(ed)?|vendored_.*"
    r"|third_?party|_?array_api_.*|_version\.py"
)


@dataclass(frozen=True, kw_only=True)
class Package:
    """An installed distribution; `files` are its Python files, relative to site-packages, sorted."""

    name: str
    version: str
    license: str
    files: tuple[str, ...]


def canonical_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(constraints: Path) -> dict[str, str]:
    """Canonical name to version of the `name==version` lines of a constraints file."""
    try:
        lines = constraints.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{constraints.name} is missing in {constraints.parent}; restore it with: git checkout {constraints.name}"
        ) from None
    found = (re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line) for line in lines)
    return {canonical_name(m[1]): m[2] for m in found if m}


def _public_version(version: str) -> str:
    """Without the local part: 2.13.0+cpu is the build of 2.13.0 for a CPU."""
    return version.split("+", 1)[0]


def check_installed(names: list[str], pins: dict[str, str]) -> list[str]:
    """What is wrong with the packages of `data.python_docs.packages`, one message each."""
    wrong = []
    for name in names:
        pin = pins.get(canonical_name(name))
        if pin is None:
            wrong.append(
                f"data.python_docs.packages: {name!r} is not pinned in constraints.txt; "
                "add name==version there, or take it out of params.yaml"
            )
            continue
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(
                f"data.python_docs.packages: {name!r} is not installed; "
                f"run: pip install -c constraints.txt {name}=={pin}"
            )
            continue
        if _public_version(installed) != _public_version(pin):
            wrong.append(
                f"data.python_docs.packages: {name} {installed} is installed, but constraints.txt pins {pin}; "
                f"run: pip install {name}=={pin}"
            )
    return wrong


def _license(distribution: importlib.metadata.Distribution, name: str) -> str:
    """An SPDX expression, or NOASSERTION (SPDX's word for unknown) where the metadata has prose."""
    metadata = distribution.metadata
    declared = next((metadata[key] for key in ("License-Expression", "License") if key in metadata), "")
    return LICENSES.get(canonical_name(name)) or (declared if _SPDX.fullmatch(declared) else _UNKNOWN_LICENSE)


def is_own_source(file: PurePosixPath) -> bool:
    return file.suffix == ".py" and not any(_SKIPPED_PART.fullmatch(part) for part in file.parts)


def locate(name: str) -> Package:
    """The package as it is installed. A wheel may install several top-level packages (torch brings functorch and
    torchgen): only the one named like the distribution counts, where there is one."""
    distribution = importlib.metadata.distribution(name)
    files = [PurePosixPath(str(file)) for file in distribution.files or []]
    files = [file for file in files if is_own_source(file) and len(file.parts) > 1 and ".." not in file.parts]
    import_name = canonical_name(name).replace("-", "_")
    named = [file for file in files if file.parts[0] == import_name]
    return Package(
        name=canonical_name(name),
        version=_public_version(distribution.version),
        license=_license(distribution, name),
        files=tuple(sorted(str(file) for file in named or files)),
    )


def path_of(name: str, file: str) -> Path:
    """Where a file of an installed package is on this machine."""
    return Path(str(importlib.metadata.distribution(name).locate_file(file)))
