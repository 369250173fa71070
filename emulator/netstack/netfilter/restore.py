"""Load a rule file, one table at a time, each all or nothing.

kube-proxy rewrites thousands of rules that mostly say what they said before, so the specs of rule
lines are remembered by their text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from emulator.errors import UsageError
from emulator.netstack.netfilter.command import CommandParser, check_chain_name
from emulator.netstack.netfilter.edit import (
    NO_CHAIN,
    RefusalError,
    TableEdit,
    TransactionError,
    apply_command,
)
from emulator.netstack.netfilter.extension import ParameterError
from emulator.netstack.netfilter.lexer import tokenize
from emulator.netstack.netfilter.rules import TABLES

if TYPE_CHECKING:
    from emulator.netstack.netfilter.netfilter import Netfilter

# Rule texts remembered: those of some 2,000 services; then the memory starts afresh.
MAX_REMEMBERED: Final = 16384
# A line of a rule file (iptables-restore reads into a buffer of this many bytes).
MAX_LINE: Final = 10240

_COUNTERS: Final = re.compile(r"\[(\d+):(\d+)\]")
_PLAIN_COUNTER_OPTION: Final = re.compile(r"(?:^|\s)(?:-c|--set-counters)\b")


class RestoreError(UsageError):
    """A rule file that was refused; tables committed before it stay.

    ``line`` counts from 1, ``cause`` is the error itself, ``bare`` means that iptables-restore
    prints no line number.
    """

    def __init__(self, line: int, cause: UsageError, exit_code: int, *, bare: bool = False) -> None:
        super().__init__(f"line {line}: {str(cause).strip()}")
        self.line = line
        self.cause = cause
        self.exit_code = exit_code
        self.bare = bare


def restore(
    netfilter: Netfilter,
    text: str,
    *,
    noflush: bool = True,
    counters: bool = False,
    test: bool = False,
    only: str = "",
) -> None:
    """Take a rule file in iptables-save's format; raises RestoreError.

    ``noflush`` keeps the chains the file does not name; ``counters`` takes the counters it gives;
    ``test`` checks and changes nothing; ``only`` names one table to take from the file.
    """
    reader = _Reader(netfilter, noflush=noflush, counters=counters, test=test, only=only)
    for number, line in enumerate(text.split("\n"), 1):
        reader.line_number = number
        try:
            reader.take(line)
        except ParameterError as error:
            raise RestoreError(number, error, 2) from error
        except TransactionError as error:
            raise RestoreError(reader.blame(error), error, 4) from error
        except RefusalError as error:
            raise RestoreError(number, error, 1) from error
    reader.end()


class _Reader:
    """The state of reading one file."""

    def __init__(
        self, netfilter: Netfilter, *, noflush: bool, counters: bool, test: bool, only: str
    ) -> None:
        self._netfilter = netfilter
        self._noflush = noflush
        self._counters = counters
        self._test = test
        self._only = only
        self._edit: TableEdit | None = None
        self._skipping = False
        self._lines: dict[str, int] = {}
        self.line_number = 0

    def take(self, line: str) -> None:
        """Take one line."""
        if not line or line[0] == "#" or line.isspace():
            return
        if len(line) > MAX_LINE:
            raise ParameterError(f"line longer than {MAX_LINE} characters")
        if self._skipping:
            self._skipping = line.strip() != "COMMIT"
        elif self._edit is None:
            self._begin(line)
        elif line.strip() == "COMMIT":
            self._commit(self._edit)
        elif line[0] == ":":
            self._declare(self._edit, line)
        else:
            self._command(self._edit, line)

    def end(self) -> None:
        """The file is over: a table without COMMIT changes nothing."""
        if self._edit is not None:
            line = self.line_number
            raise RestoreError(line, RefusalError(f"COMMIT expected at line {line}"), 1, bare=True)

    def blame(self, error: TransactionError) -> int:
        """Return the line whose rule the kernel refused."""
        chain = str(error).rpartition(" ")[2]
        return self._lines.get(chain, self.line_number)

    def _begin(self, line: str) -> None:
        if line[0] != "*":
            raise RefusalError("")
        name = line[1:].strip()
        if self._only and name != self._only:
            self._skipping = True
            return
        if name not in TABLES:
            shown = f"'{name}' " if name else ""
            raise ParameterError(
                f"iptables-restore: line {self.line_number} table name {shown}invalid"
            )
        self._edit = TableEdit(self._netfilter.table(name), self._netfilter.sets)
        self._lines = {}
        if not self._noflush:
            self._edit.reset()

    def _commit(self, edit: TableEdit) -> None:
        self._edit = None
        if self._test:
            edit.validate("RULE_APPEND")
            return
        edit.commit("RULE_APPEND", self._netfilter.rules_changed)

    def _declare(self, edit: TableEdit, line: str) -> None:
        words = line[1:].split()
        if len(words) < 2:
            raise ParameterError(f"iptables-restore: line {self.line_number} policy invalid")
        name, policy = words[0], words[1]
        counters: tuple[int, int] | None = None
        if self._counters and len(words) > 2 and policy != "-":
            found = _COUNTERS.fullmatch(words[2])
            if found is None:
                raise ParameterError(f"invalid policy counters for chain '{name}'")
            counters = int(found[1]), int(found[2])
        if name in edit.table.builtins:
            if policy not in ("-", "ACCEPT", "DROP"):
                raise RefusalError("Bad policy name.")
        else:
            check_chain_name(name)
        edit.declare(name, policy, counters)

    def _command(self, edit: TableEdit, line: str) -> None:
        counters = (0, 0)
        if line[0] == "[":
            found = _COUNTERS.match(line)
            if found is None:
                raise ParameterError(f"Bad line {self.line_number}: need ]")
            if self._counters:
                counters = int(found[1]), int(found[2])
            line = line[found.end() :].lstrip()
        if line.startswith("-A "):
            chain, _, rest = line[3:].lstrip().partition(" ")
            self._lines[chain] = self.line_number
            remembered = self._netfilter.remembered_rules
            specs = remembered.get(rest)
            if specs is not None:
                edit.append(chain, specs, counters)
                return
            command = CommandParser(tokenize(line), in_restore=True).parse()
            if not _PLAIN_COUNTER_OPTION.search(rest):
                if len(remembered) >= MAX_REMEMBERED:
                    remembered.clear()
                remembered[rest] = command.specs
            if command.counters != (0, 0):
                if counters != (0, 0):
                    raise ParameterError("multiple -c flags not allowed")
                counters = command.counters
            edit.append(command.chain, command.specs, counters)
            return
        command = CommandParser(tokenize(line), in_restore=True).parse()
        if command.letter in "LSVhC":
            raise RefusalError(NO_CHAIN)
        self._lines[command.chain] = self.line_number
        command.counters = counters if command.counters == (0, 0) else command.counters
        apply_command(edit, command)
