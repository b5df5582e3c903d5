"""Go's regular expressions, by our own engine."""

from __future__ import annotations

import itertools
import random
import re
import time

import pytest

from nixsnap.metadata.regexp import RegexpLimitError, RegexpSyntaxError, compile_regexp
from nixsnap.metadata.regexp.automaton import MAX_STEPS
from nixsnap.metadata.regexp.parser import MAX_NESTING, MAX_PATTERN_CHARACTERS


def found(pattern, *texts):
    automaton = compile_regexp(pattern)
    return [text for text in texts if automaton.search(text)]


# What tells Go's dialect from Python's; each verdict was compared with Go's.
@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("", ["", "a"], []),
        ("b", ["b", "abc"], ["", "B"]),
        ("^b$", ["b"], ["b\n", "\nb", "ab"]),
        ("(?m)^b$", ["b", "b\n", "a\nb\nc"], ["ab"]),
        ("b\\z", ["b", "ab"], ["b\n"]),
        ("\\Ab", ["b"], ["a\nb"]),
        ("(?m)\\Ab", ["b"], ["a\nb"]),
        ("a.b", ["axb", "aéb"], ["a\nb", "ab"]),
        ("(?s)a.b", ["a\nb"], ["ab"]),
        ("(?i)straße", ["STRAẞE", "straße"], ["strasse"]),
        ("(?i)k", ["K", "\N{KELVIN SIGN}"], []),
        ("(?i:a)b", ["Ab", "ab"], ["AB"]),
        ("a(?i)b|c", ["aB", "C"], ["AB"]),
        ("((?i)a)b", ["Ab"], ["AB"]),
        ("(?i)a(?-i)b", ["Ab"], ["AB"]),
        ("(?i)[^a]", ["b"], ["a", "A"]),
        ("(?i)[k-l]", ["K", "\N{KELVIN SIGN}", "L"], ["m"]),
        ("\\d", ["7"], ["\N{ARABIC-INDIC DIGIT THREE}"]),
        ("\\w", ["_"], ["é"]),
        ("\\s", ["\f"], ["\v", "\xa0"]),
        ("\\bé\\b", [], ["é", "é"]),
        ("\\Bé\\B", ["é"], ["aé"]),
        ("\\ba", ["a", "-a"], ["ba"]),
        ("[[:space:]]", ["\v"], ["\xa0"]),
        ("[[:^alpha:]]", ["1", "é"], ["a"]),
        ("[[:alpha]", [":", "["], ["b"]),
        ("[]a]", ["]", "a"], ["["]),
        ("[^]a]", ["b"], ["]", "a"]),
        ("[a-]", ["-"], ["b"]),
        ("[\\d-z]", ["-", "z", "5"], ["a"]),
        ("[\\pL]", ["é"], ["1"]),
        ("\\p{Lu}", ["É"], ["é"]),
        ("\\P{Lu}", ["é"], ["É"]),
        ("\\p{^Lu}", ["é"], ["É"]),
        ("\\x41\\x{e9}\\101\\07", ["AéA\a"], []),
        ("\\Qa.b\\E+", ["a.b", "a.bb"], ["axb"]),
        ("\\Qa.b", ["a.b"], ["axb"]),
        ("a{2}", ["aa"], ["a"]),
        ("^a{2,3}$", ["aa", "aaa"], ["a", "aaaa"]),
        ("a{,2}", ["a{,2}"], ["aa"]),
        ("a{01}", ["a{01}"], ["a"]),
        ("{", ["{"], ["a"]),
        ("^(a|bc)*$", ["", "abca"], ["b"]),
        ("^(a*)*$", ["", "aaa"], ["b"]),
        ("(?P<name>a)(?<other>b)", ["ab"], ["a"]),
        ("a(?i)*", ["", "a"], []),
        ("(a{1000}){0}b", ["b"], ["a"]),
        ("((a{1000}){0}){2}b", ["b"], ["a"]),
        ("(|a)+", ["", "a"], []),
    ],
)
def test_dialect(pattern, matching, other):
    """Go's meaning, where Python's `re` has another or none."""
    assert found(pattern, *matching, *other) == matching


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "a**", "a*{2}", "a++", "(*)", "|*", "a|*", "(?i)*"),
        *(
            "(",
            "a)",
            "(?",
            "(?a",
            "(?=a)",
            "(?!a)",
            "(?<=a)",
            "(?>a)",
            "(?#a)",
            "(?P=a)",
            "(?P<>a)",
            "(?i",
            "(?-)",
        ),
        *("[", "[a", "[]", "[^]", "[b-a]", "[a-\\d]", "[[:foo:]]", "[[:alpha][x:]]", "[\\b]"),
        *("\\", "\\1", "\\8", "\\C", "\\y", "\\é", "\\xg1", "\\x{}", "\\x{110000}", "\\p", "\\p{L", "\\p("),
        *("a{1001}", "a{2,1}", "(a{500}){3}", "((a{10}){10}){11}", "\ud800"),
    ],
)
def test_refused_by_go(pattern):
    """A pattern that Go refuses is refused, whatever Python's `re` thinks of it."""
    with pytest.raises(RegexpSyntaxError):
        compile_regexp(pattern)


def test_message_tells_the_place():
    """The message names the pattern, the place and the fault."""
    with pytest.raises(
        RegexpSyntaxError, match=r"'ab\[b-a\]', character 7: a range that ends before it begins"
    ):
        compile_regexp("ab[b-a]")


@pytest.mark.parametrize(
    "pattern",
    [
        "a" * (MAX_PATTERN_CHARACTERS + 1),
        "(" * (MAX_NESTING + 1) + ")" * (MAX_NESTING + 1),
        f"(ab{{{1000}}}){{{1}}}" * (MAX_STEPS // 1000),
        "\\p{Greek}",
        "\\pX",
    ],
)
def test_limits(pattern):
    """A pattern that is too long, too deep, too large or names a script is refused as such."""
    with pytest.raises(RegexpLimitError):
        compile_regexp(pattern)


def test_largest_patterns():
    """The limits leave room: Go's largest repetition, deep nesting, a long pattern."""
    assert found("^a{1000}$", "a" * 999, "a" * 1000) == ["a" * 1000]
    assert found("(" * MAX_NESTING + "a" + ")" * MAX_NESTING, "a") == ["a"]
    assert found("a" * MAX_PATTERN_CHARACTERS, "a" * MAX_PATTERN_CHARACTERS)


@pytest.mark.parametrize(
    "pattern", ["(a|a)*c", "(a*)*c", "(a+)+$", "(a|aa)+$", "a*a*a*a*a*a*a*a*c", "(.*)*x(.*)*y"]
)
def test_no_backtracking(pattern):
    """Time grows with the text, not with the ways to match it (Python's `re` needs hours for most of these)."""
    text = "a" * 10_000 + "!"
    automaton = compile_regexp(pattern)
    before = time.process_time()
    assert not automaton.search(text)
    assert time.process_time() - before < 5


def test_states_are_bounded():
    """A pattern with exponentially many states is matched all the same, and its states are forgotten in time."""
    automaton = compile_regexp("a[ab]{14}c")
    source = random.Random(1)
    text = "".join(source.choices("ab", k=20_000))
    assert not automaton.search(text)
    assert sum(len(steps) for steps, _ in automaton._states) <= 50_000
    assert automaton.search(text + "a" + "b" * 14 + "c")


def test_against_re():
    """On patterns that mean the same to Python, verdicts are those of Python's `re`."""
    source = random.Random(7)
    texts = ["".join(text) for length in range(5) for text in itertools.product("ab-", repeat=length)]

    def pattern(depth):
        match source.randrange(8) if depth else 0:
            case 1 | 2:
                return pattern(depth - 1) + pattern(depth - 1)
            case 3:
                return f"({pattern(depth - 1)}|{pattern(depth - 1)})"
            case 4 | 5:
                return (
                    f"(?:{pattern(depth - 1)}){source.choice(['*', '+', '?', '*?', '{2}', '{1,2}', '{2,}'])}"
                )
            case _:
                return source.choice(["a", "b", "-", ".", "[ab]", "[^a]", "^", r"\A", r"\b", r"\w", r"\W"])

    for _ in range(300):
        tried = pattern(4)
        assert found(tried, *texts) == [text for text in texts if re.search(tried, text, re.ASCII)], tried
