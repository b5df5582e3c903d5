"""A non-deterministic automaton, run by making the deterministic one as texts ask for it.

A character takes a table look-up once the state it leads to is known, and before that at most a look at each step.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from nixsnap.metadata.regexp.characters import WORD, CharacterTest

MAX_STEPS: Final = 3_000
"""The largest automaton; a counted repetition takes the steps of its content that many times."""

# The deterministic states that are kept may hold this many steps in all; when they would hold more, all are forgotten.
_MAX_KEPT_STEPS: Final = 50_000

_MATCH: Final = 0


class RegexpLimitError(ValueError):
    """The pattern is too large for this engine, or uses what only Go knows."""


class Assertion(enum.Enum):
    """A condition on a place between characters, given those before and after ("" where the text ends)."""

    TEXT_BEGIN = enum.auto()
    TEXT_END = enum.auto()
    LINE_BEGIN = enum.auto()
    LINE_END = enum.auto()
    WORD_BOUNDARY = enum.auto()
    NO_WORD_BOUNDARY = enum.auto()


_HOLDS: Final[dict[Assertion, Callable[[str, str], bool]]] = {
    Assertion.TEXT_BEGIN: lambda before, _: not before,
    Assertion.TEXT_END: lambda _, after: not after,
    Assertion.LINE_BEGIN: lambda before, _: before in {"", "\n"},
    Assertion.LINE_END: lambda _, after: after in {"", "\n"},
    Assertion.WORD_BOUNDARY: lambda before, after: (before in WORD) != (after in WORD),
    Assertion.NO_WORD_BOUNDARY: lambda before, after: (before in WORD) == (after in WORD),
}


@attrs.define
class _Step:
    """One step of the automaton: goes on to `then`, over a character, on a condition, or freely."""

    then: tuple[int, ...]
    character: CharacterTest | None = None
    assertion: Assertion | None = None


@attrs.frozen
class Node:
    """A part of a pattern that can be built into an automaton, any number of times."""

    build: Callable[[_Program, int], int]
    """Add the node's steps, which lead on to the step given; returns the first."""

    copies: int = 1
    """How often nested counted repetitions have their innermost content built."""


class _Program:
    """The steps of an automaton in the making."""

    def __init__(self) -> None:
        self.steps: list[_Step] = [_Step(())]

    def add(
        self,
        then: tuple[int, ...],
        *,
        character: CharacterTest | None = None,
        assertion: Assertion | None = None,
    ) -> int:
        if len(self.steps) >= MAX_STEPS:
            raise RegexpLimitError(f"the regular expression needs more than {MAX_STEPS} steps")
        self.steps.append(_Step(then, character, assertion))
        return len(self.steps) - 1


def character(test: CharacterTest) -> Node:
    """One character that passes a test."""
    return Node(lambda program, then: program.add((then,), character=test))


def assertion(condition: Assertion) -> Node:
    """An empty match where a condition holds."""
    return Node(lambda program, then: program.add((then,), assertion=condition))


def sequence(nodes: Sequence[Node]) -> Node:
    """One node after the other; without nodes, an empty match."""

    def build(program: _Program, then: int) -> int:
        for node in reversed(nodes):
            then = node.build(program, then)
        return then

    return Node(build, max((node.copies for node in nodes), default=1))


def choice(nodes: Sequence[Node]) -> Node:
    """Any of several nodes."""
    if len(nodes) == 1:
        return nodes[0]
    return Node(
        lambda program, then: program.add(tuple(node.build(program, then) for node in nodes)),
        max(node.copies for node in nodes),
    )


def repetition(node: Node, least: int, most: int | None) -> Node:
    """A node from `least` to `most` times (None: any number)."""

    def build(program: _Program, then: int) -> int:
        if most is None:
            loop = program.add(())
            program.steps[loop].then = (node.build(program, loop), then)
            then = loop
        else:
            end = then
            for _ in range(most - least):
                then = program.add((node.build(program, then), end))
        for _ in range(least):
            then = node.build(program, then)
        return then

    return Node(build, node.copies * (max(least, 1) if most is None else most))


class _State:
    """A state of the deterministic automaton: steps that may come next, and what kind of character came before."""

    __slots__ = ("before", "following", "steps")

    def __init__(self, steps: frozenset[int], before: str) -> None:
        self.steps = steps
        self.before = before
        self.following: dict[str, _State] = {}


class Automaton:
    """A compiled pattern. Not for use by several threads at a time.

    Args:
        pattern: What to look for.

    Raises:
        RegexpLimitError: It takes more than `MAX_STEPS` steps.
    """

    def __init__(self, pattern: Node) -> None:
        program = _Program()
        self._start = frozenset({pattern.build(program, _MATCH)})
        self._steps = program.steps
        self._states: dict[tuple[frozenset[int], str], _State] = {}
        self._kept_steps = 0
        self._matched = _State(frozenset(), "")

    def search(self, text: str) -> bool:
        """Whether a part of the text, maybe an empty one, matches."""
        state = self._state(self._start, "")
        for following in text:
            state = state.following.get(following) or self._follow(state, following)
            if state is self._matched:
                return True
        return self._follow(state, "") is self._matched

    def _follow(self, state: _State, after: str) -> _State:
        """The state after a character, "" at the end of the text."""
        reached = self._reach(state, after)
        if _MATCH in reached:
            following = self._matched
        else:
            taken = (self._steps[step] for step in reached)
            then = frozenset(
                step.then[0] for step in taken if after and step.character and step.character(after)
            )
            following = self._state(then | self._start, _kind(after))
        state.following[after] = following
        return following

    def _reach(self, state: _State, after: str) -> set[int]:
        """All steps to be had without taking a character."""
        reached = set(state.steps)
        pending = list(reached)
        while pending:
            step = self._steps[pending.pop()]
            if step.character or (step.assertion and not _HOLDS[step.assertion](state.before, after)):
                continue
            fresh = set(step.then) - reached
            reached |= fresh
            pending += fresh
        return reached

    def _state(self, steps: frozenset[int], before: str) -> _State:
        key = (steps, before)
        found = self._states.get(key)
        if found is None:
            self._kept_steps += len(steps)
            if self._kept_steps > _MAX_KEPT_STEPS:
                self._states.clear()
                self._kept_steps = len(steps)
            found = self._states[key] = _State(steps, before)
        return found


def _kind(character: str) -> str:
    """A character of which all assertions hold that hold of this one."""
    if character in {"", "\n"}:
        return character
    return "a" if character in WORD else "."
