"""containerd's filter language."""

from __future__ import annotations

import logging

import pytest

from nixsnap.errors import InvalidArgumentError
from nixsnap.metadata import Info, Kind, parse_filters

SNAPSHOTS = {
    "base": Info(name="base", kind=Kind.COMMITTED, labels={"a": "1", "a.b": "2"}),
    "web/1": Info(
        name="web/1", parent="base", kind=Kind.ACTIVE, labels={"containerd.io/gc.root": "x y", "a": "2"}
    ),
    "view": Info(name="view", parent="base", kind=Kind.VIEW),
    "é\x01": Info(name="é\x01", parent="other", kind=Kind.ACTIVE, labels={'q"\\': "/|", "ü": "é"}),
}
ALL = set(SNAPSHOTS)


def matches(*filters):
    parsed = parse_filters(filters)
    return {name for name, info in SNAPSHOTS.items() if parsed.matches(info)}


# Each verdict was compared with that of containerd 2.2.0.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ALL),
        # Presence: a parent is present though empty, a label only if it is there.
        ("name", ALL),
        ("kind", ALL),
        ("parent", ALL),
        ("labels", set()),
        ("labels.a", {"base", "web/1"}),
        ("nothing", set()),
        # Comparisons: what is absent counts as empty for != and ~=, and equals nothing.
        ("name==base", {"base"}),
        ("name!=base", ALL - {"base"}),
        ("kind==active", {"web/1", "é\x01"}),
        ("kind==committed", {"base"}),
        ("kind==view", {"view"}),
        ("kind==Active", set()),
        ('parent==""', {"base"}),
        ("parent!=base", {"base", "é\x01"}),
        ("labels.a==2", {"web/1"}),
        ("labels.a!=2", ALL - {"web/1"}),
        ('labels.a==""', set()),
        ('labels.a!=""', {"base", "web/1"}),
        ("nothing!=x", ALL),
        ('nothing!=""', set()),
        ("labels.a~=^$", {"view", "é\x01"}),
        ("nothing~=^$", ALL),
        # Field paths: what follows a plain field is passed over, label names are joined by dots.
        ("name.x.y==base", {"base"}),
        ("labels.a.b==2", {"base"}),
        ('labels."a.b"==2', {"base"}),
        ('labels."containerd.io/gc.root"', {"web/1"}),
        ('labels."containerd"."io/gc".root', {"web/1"}),
        (r'labels."q\"\\"==x', set()),
        (r'labels."q\"\\"', {"é\x01"}),
        (r'labels."\u00fc"', {"é\x01"}),
        (r'labels."\xc3\xbc"', {"é\x01"}),
        (r'labels."\303\274"', {"é\x01"}),
        (r'"name"=="b\x61s\145"', {"base"}),
        # Values: any visible characters up to a comma, or quoted.
        ("name==web/1", {"web/1"}),
        ('labels."containerd.io/gc.root"=="x y"', {"web/1"}),
        ("name==a=b", set()),
        (r'name=="\xff"', set()),
        (r'name!="\xff"', ALL),
        (r'name=="\ud800"', set()),
        ("name=='base'", set()),
        ('name=="é\\x01"', {"é\x01"}),
        # Regular expressions, plain and in three kinds of quotes.
        ("name~=^(base|view)$", {"base", "view"}),
        ("name~=e", {"base", "web/1", "view"}),
        ("name~=/^w.*1$/", {"web/1"}),
        (r"name~=/b\/1/", {"web/1"}),
        ("name~=|b/1|", {"web/1"}),
        (r"name~=|web\|view|", {"web/1", "view"}),
        ('name~="[a,b]$"', set()),
        ("name~=/[,e]$/", {"base"}),
        (r"name~=\w\d", set()),
        (r"name~=/\\d/", {"web/1"}),
        # All of a comma list; spaces may stand before a field, an operator, a value.
        ("labels.a,kind==active", {"web/1"}),
        ("parent==base,labels.a==9", set()),
        (' name ==\tbase,\n parent == ""', {"base"}),
        ("labels. a", {"base", "web/1"}),
        ("name==\u2003base", {"base"}),
    ],
)  # fmt: skip
def test_single_filter(text, expected):
    """One filter passes these snapshots."""
    assert matches(text) == expected


def test_several_filters_are_alternatives():
    """A snapshot passes if any filter holds, and if there are none; an empty one passes everything."""
    assert matches() == ALL
    assert matches("name==base", "kind==view") == {"base", "view"}
    assert matches("name==nothing", "kind==view,name==base") == set()
    assert matches("name==nothing", "") == ALL


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("name==", 7, "a value"),
        ("name=base", 5, "an operator"),
        ("name===base", 5, "an operator"),
        ("name==!base", 5, "an operator"),
        ("name==,x", 7, "a value"),
        ("name==.x", 7, "a value"),
        ("name==base,", 12, "a field name"),
        (",name", 1, "a field name"),
        ("labels.", 8, "a field name"),
        ("labels..a", 8, "a field name"),
        (".name", 1, "a field name"),
        ("labels.?a", 8, "a field name"),
        (" ", 2, "a field name"),
        ("name ", 6, "an operator"),
        ("labels .a", 8, "an operator"),
        ("labels.a-b", 9, "an operator"),
        ("name==base ", 11, 'expected "," or the end'),
        ('name=="base"x', 13, 'expected "," or the end'),
        ("name==a\u200bb", 8, 'expected "," or the end'),
        ('name=="base', 7, 'a closing "'),
        ("name~=/base", 7, "a closing /"),
        ('name=="ba\nse"', 7, 'a closing "'),
        ("labels.|a|", 8, "a field name"),
        ("labels./a/", 8, "a field name"),
        ("name==/base/", 7, "a value"),
        ("name==|base|", 7, "a value"),
        (r'name=="\d"', 8, "escape"),
        (r'name=="\/"', 8, "escape"),
        (r'name=="\777"', 8, "escape"),
        (r'name=="\12"', 8, "3 digits of base 8"),
        (r'name=="\x4"', 8, "2 digits of base 16"),
        (r'name=="\u12g4"', 8, "4 digits of base 16"),
        (r'name=="\U00110000"', 8, "beyond Unicode"),
        ('name=="\\', 8, "escape"),
        ("name==a\0b", 8, "not allowed"),
        ("name==\ufffd", 7, "not allowed"),
    ],
)  # fmt: skip
def test_malformed(text, position, expected):
    """A malformed filter is refused, and the message tells where and what was expected."""
    with pytest.raises(InvalidArgumentError) as raised:
        parse_filters(["name", text])
    assert raised.value.message.startswith(f"filter {text!r}, character {position}: ")
    assert expected in raised.value.message


def test_regexp_that_does_not_compile(caplog):
    """As in containerd a broken regular expression is no error: it matches nothing, and the log says why."""
    with caplog.at_level(logging.WARNING):
        assert matches("name~=(") == set()
        assert matches("name~=(", "name==base") == {"base"}
    assert "regular expression '('" in caplog.text


def test_regexp_beyond_our_engine():
    """One that Go might take and we do not is refused rather than answered wrongly."""
    with pytest.raises(InvalidArgumentError, match="Greek"):
        parse_filters([r"name~=\p{Greek}"])


def test_unknown_kind():
    """A snapshot of unknown kind has no kind to compare."""
    info = Info(name="a", kind=Kind.UNKNOWN)
    assert not parse_filters(["kind"]).matches(info)
    assert parse_filters(["kind!=active"]).matches(info)
