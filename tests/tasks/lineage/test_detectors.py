"""What is found and what is not, each checked against numbers that others publish, or counted in another way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.lineage import detectors
from tasks.lineage.detectors import Span, find

FOUND = {
    "email": ["jane.roe@cs.university.edu", "al+tag@inventwithpython.com", "x_1@a-b.co.uk", "o'neil@iki.fi"[2:]],
    "phone": ["+49 30 901820", "+44 20 7946 0958", "+1 (212) 736-5000", "+14155552671", "+33.1.42.34.56.78",
              "212-736-5000", "(212) 736-5000", "415.736.5000"],
    "ipv4": ["93.184.216.34", "17.253.144.10", "200.1.2.3"],
    "credit_card": ["4539 1488 0343 6467", "4539-1488-0343-6467", "4539148803436467", "378282246310013"],
    "iban": ["DE75512108001245126199", "DE75 5121 0800 1245 1261 99", "NO9386011117947", "BE68 5390 0754 7034"],
    "aws_key_id": ["AKIAQYLPMN5HHHFPZAM2", "ASIAQYLPMN5HHHFPZAM2"],
    "private_key": ["-----BEGIN RSA PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----",
                    "-----BEGIN OPENSSH PRIVATE KEY-----", "-----BEGIN PGP PRIVATE KEY BLOCK-----"],
    "access_token": ["ghp_" + "a1B2" * 9, "hf_" + "aB" * 17, "xoxb-" + "1234567890-abcdef", "AIza" + "x" * 35],
}  # fmt: skip
# Reserved, printed as examples by those who define them, or simply not of the kind.
NOT_FOUND = [
    "user@example.com", "a@mail.example.org", "root@localhost", "me@host.test", "x@y.invalid", "me@printer.local",
    "A@B.T(x)", "np.dot(a@b.shape, c)"[:3], "@decorator", "a @ b.T",
    "+2147483647", "+1.22464680e-16j", "+0.70710678", "-2147483648  +2147483392  int32", "+1-212-555-0123",
    "555-0123", "2020-01-01 2020-01-02", "978-0-387-84858-7", "123-456-7890",
    "127.0.0.1", "0.0.0.0", "255.255.255.255", "192.168.1.1", "10.0.0.7", "172.16.0.1", "192.0.2.55", "198.51.100.1",
    "203.0.113.9", "224.0.0.251", "169.254.1.1", "999.1.1.1", "7.4.7.1.", "Section 2.2.24.1", "1.2.3.4",
    "5.10.102.1-microsoft", "v93.184.216.34", "93.184.216.34.5", "93.184.216.34rc1",
    "4111 1111 1111 1111", "4242424242424242", "378282246310005", "4539 1488 0343 6466", "1672531200000000",
    "0.4539148803436467", "4444444444444444", "5555-1234-1234-1234",
    "GB82 WEST 1234 5698 7654 32", "DE75512108001245126198", "XX75512108001245126199", "DE7551210800124512619",
    "AKIAIOSFODNN7EXAMPLE", "AKIAQYLPMN5HHHFPZA", "-----BEGIN PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----",
    "scipy.optimize._highs_to_scipy_status", "ghp_short", "[EMAIL]", "<phone>",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values])
def test_what_is_of_the_kind_is_found_with_its_place(kind, value):
    before, after = "Write to <", ">, please."
    assert find(before + value + after) == [Span(len(before), len(before + value), kind)]
    assert find(value) == [Span(0, len(value), kind)]


def test_every_kind_has_examples():
    assert set(FOUND) == set(detectors.KINDS)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_belongs_to_nobody_or_is_no_such_thing_is_not_found(text):
    assert find(f"See {text} there") == []
    assert find(text) == []


def test_findings_come_in_order_and_none_within_another():
    text = "mail jane.roe@cs.university.edu or ring +1 212-736-5000 from 93.184.216.34"
    assert [text[span.start : span.end] for span in find(text)] == [
        "jane.roe@cs.university.edu", "+1 212-736-5000", "93.184.216.34",
    ]  # fmt: skip


def test_the_check_digit_by_hand():
    """7992739871 has the check digit 3: doubled from the right 2, 14, 8, 6, 7 -> 67, and 67 + 3 = 70."""
    assert [d for d in range(10) if detectors.luhn(f"7992739871{d}")] == [3]


@settings(deadline=None)
@given(st.text("0123456789", min_size=4, max_size=18), st.integers(0, 17), st.integers(1, 9))
def test_luhn_finds_every_single_wrong_digit(body, place, shift):
    """The check digit from the definition with a table of doubled digits, not with the function's own arithmetic."""
    table = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    total = sum(table[int(d)] if i % 2 == 0 else int(d) for i, d in enumerate(reversed(body)))
    whole = body + str(-total % 10)
    assert detectors.luhn(whole)
    place %= len(whole)
    wrong = whole[:place] + str((int(whole[place]) + shift) % 10) + whole[place + 1 :]
    assert not detectors.luhn(wrong)


@settings(deadline=None)
@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=11, max_size=28))
def test_the_iban_checksum_as_the_standard_computes_it(account):
    """98 minus the remainder of the number with 00 for the check digits, by long division in pieces of nine digits."""
    digits = "".join(str(ord(c) - 55) if c.isalpha() else c for c in account + "NO00")
    remainder = 0
    for start in range(0, len(digits), 7):
        remainder = int(f"{remainder}{digits[start : start + 7]}") % 97
    check = 98 - remainder
    assert detectors.mod97(f"NO{check:02d}{account}")
    assert not detectors.mod97(f"NO{check - 1 if check == 98 else check + 1:02d}{account}")


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_can_be_looked_through(text):
    for span in find(text):
        assert 0 <= span.start < span.end <= len(text)
