"""Numbers as DVC writes them are numbers."""

import math

import pytest
from dvc.utils.serialize import dumps_yaml, parse_yaml

from tasks import yaml_text


@pytest.mark.parametrize("value", [3e-05, 1e-4, 1e22, -2.5e-07, 1.5, 7, "3e", "e5", "1e", True, None, "text"])
def test_what_dvc_writes_is_read_as_dvc_reads_it(value: object):
    text = dumps_yaml({"key": value})
    assert yaml_text.parse(text) == parse_yaml(text, "it") == {"key": value}
    assert type(yaml_text.parse(text)["key"]) is type(value)


@pytest.mark.parametrize("text", ["3e-5", "3E5", "+1e3", "-1.5e3", "1.e3"])
def test_exponents_need_no_point(text: str):
    assert math.isclose(yaml_text.parse(text), float(text))
