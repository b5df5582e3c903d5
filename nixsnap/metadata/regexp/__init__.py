"""Go's regular expressions, as far as a filter needs them: does a text contain a match?

Go's engine takes time linear in the text. Python's `re` is no stand-in: its syntax and classes differ, and it
backtracks, holding the interpreter all the while, so that `(a|a)*c` over a key of forty letters would stop the daemon
for hours. Since only a yes or no is asked, without captures, a small automaton does.
"""

from nixsnap.metadata.regexp.automaton import Automaton, RegexpLimitError
from nixsnap.metadata.regexp.parser import RegexpSyntaxError, parse

__all__ = ["Automaton", "RegexpLimitError", "RegexpSyntaxError", "compile_regexp"]


def compile_regexp(pattern: str) -> Automaton:
    """Compile a Go regular expression.

    Raises:
        RegexpSyntaxError: It is none; Go refuses it too.
        RegexpLimitError: It is more than this engine takes, though Go may.
    """
    return Automaton(parse(pattern))
