"""The iptables, iptables-save and iptables-restore commands as pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.errors import UsageError
from emulator.netstack.netfilter.command import BadArgumentError, Command, CommandParser
from emulator.netstack.netfilter.edit import (
    RefusalError,
    TableEdit,
    TransactionError,
    apply_command,
)
from emulator.netstack.netfilter.extension import ParameterError
from emulator.netstack.netfilter.listing import (
    MODERN,
    Style,
    render_list,
    render_rules,
    render_save,
)
from emulator.netstack.netfilter.restore import RestoreError, restore
from emulator.netstack.netfilter.result import CommandResult
from emulator.netstack.netfilter.rules import TABLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.netstack.netfilter.netfilter import Netfilter

_OPERATIONS: Final = {
    "A": "RULE_APPEND",
    "I": "RULE_INSERT",
    "R": "RULE_REPLACE",
    "D": "RULE_DEL",
    "X": "CHAIN_DEL",
}


class TableMissingError(UsageError):
    """-t names no table; exit code 3."""


class MissingChainError(UsageError):
    """-L or -S names no chain; exit code 1."""


def usage(program: str, style: Style) -> str:
    """Return the text of ``iptables -h``, its first part."""
    return (
        f"{program} {style.version}\n\n"
        f"Usage: {program} -[ACD] chain rule-specification [options]\n"
        f"       {program} -I chain [rulenum] rule-specification [options]\n"
        f"       {program} -R chain rulenum rule-specification [options]\n"
        f"       {program} -D chain rulenum [options]\n"
        f"       {program} -[LS] [chain [rulenum]] [options]\n"
        f"       {program} -[FZ] [chain] [options]\n"
        f"       {program} -[NX] chain\n"
        f"       {program} -E old-chain-name new-chain-name\n"
        f"       {program} -P chain target [options]\n"
        f"       {program} -h (print this help information)\n"
    )


def run_iptables(
    netfilter: Netfilter, argv: Sequence[str], *, style: Style = MODERN
) -> CommandResult:
    """Run ``iptables`` with the arguments after the program's name."""
    program = "iptables"
    try:
        command = CommandParser(argv).parse()
        return CommandResult(0, _run(netfilter, command, style), "")
    except BadArgumentError as error:
        return CommandResult(2, "", f"{error}\n{_try(program)}")
    except ParameterError as error:
        return CommandResult(2, "", f"{program} {style.version}: {error}\n{_try(program)}")
    except TableMissingError as error:
        hint = f"Perhaps {program} or your kernel needs to be upgraded."
        return CommandResult(3, "", f"{program} {style.version}: {error}\n{hint}\n")
    except MissingChainError as error:
        return CommandResult(1, "", f"{program} {style.version}: {error}\n")
    except TransactionError as error:
        return CommandResult(4, "", f"{program} {style.version}:  {error}\n")
    except RefusalError as error:
        return CommandResult(1, "", f"{program}: {error}\n")


def _try(program: str) -> str:
    return f"Try `{program} -h' or '{program} --help' for more information.\n"


def _run(netfilter: Netfilter, command: Command, style: Style) -> str:
    letter, chain = command.letter, command.chain
    if letter == "V":
        return f"iptables {style.version}\n"
    if letter == "h":
        return usage("iptables", style)
    if command.table not in TABLES:
        raise TableMissingError(f"table '{command.table}' does not exist")
    if letter in "LS":
        table = netfilter.table(command.table)
        if chain and chain not in table.chains:
            raise MissingChainError(
                f"chain `{chain}' in table `{command.table}' is incompatible, use 'nft' tool."
            )
        if letter == "S":
            return render_rules(table, chain, command.rule_number, verbose=command.verbose)
        return render_list(
            table,
            chain,
            command.rule_number,
            command.listing,
            verbose=command.verbose,
            style=style,
        )
    if letter == "C":
        edit = TableEdit(netfilter.table(command.table), netfilter.sets)
        for spec in command.specs:
            edit.check(chain, spec)
        return ""
    edit = TableEdit(netfilter.table(command.table), netfilter.sets)
    apply_command(edit, command)
    edit.commit(_OPERATIONS.get(letter, "RULE_APPEND"), netfilter.rules_changed)
    return _chatter(command, edit) if command.verbose else ""


def _chatter(command: Command, edit: TableEdit) -> str:
    """What -v adds to commands that change chains."""
    verb = {"F": "Flushing", "Z": "Zeroing", "X": "Deleting"}.get(command.letter)
    if verb is None:
        return ""
    names = [command.chain] if command.chain else [c.name for c in edit.table.ordered()]
    return "".join(f"{verb} chain `{name}'\n" for name in names)


def run_iptables_save(
    netfilter: Netfilter,
    argv: Sequence[str] = (),
    *,
    style: Style = MODERN,
    epoch_s: float | None = None,
) -> CommandResult:
    """Run ``iptables-save [-c] [-t table]``; ``epoch_s`` is the wall clock for its comments."""
    counters = False
    wanted = ""
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("-c", "--counters"):
            counters = True
        elif word in ("-t", "--table") and words:
            wanted = words.pop(0)
        elif word.startswith("--table="):
            wanted = word.partition("=")[2]
        elif word in ("-V", "--version"):
            return CommandResult(0, f"iptables-save {style.version}\n", "")
        elif word.startswith("-"):
            hint = "Look at manual page `iptables-save.8' for more information."
            text = f"iptables-save: unrecognized option '{word}'\n{hint}\n"
            return CommandResult(1, "", text)
        else:
            return CommandResult(1, "", "Unknown arguments found on commandline\n")
    if wanted and wanted not in TABLES:
        return CommandResult(1, "", f"Table `{wanted}' does not exist\n")
    epoch = netfilter.clock() if epoch_s is None else epoch_s
    names = [wanted] if wanted else list(TABLES)
    text = "".join(
        render_save(netfilter.tables[name], counters=counters, style=style, epoch_s=epoch)
        for name in names
        if name in netfilter.tables
    )
    return CommandResult(0, text, "")


def run_iptables_restore(
    netfilter: Netfilter, argv: Sequence[str], stdin: str, *, style: Style = MODERN
) -> CommandResult:
    """Run ``iptables-restore [-n] [-c] [-t] [-w [s]] [-T table]`` on a rule file."""
    program = "iptables-restore"
    noflush = counters = test = False
    only = ""
    words = list(argv)
    while words:
        word = words.pop(0)
        name, _, attached = word.partition("=")
        if name in ("-n", "--noflush"):
            noflush = True
        elif name in ("-c", "--counters"):
            counters = True
        elif name in ("-t", "--test"):
            test = True
        elif name in ("-T", "--table"):
            only = attached or (words.pop(0) if words else "")
        elif name in ("-w", "--wait", "-W", "--wait-interval"):
            if not attached and words and words[0].isdigit():
                words.pop(0)
        elif name in ("-v", "--verbose"):
            continue
        elif name in ("-V", "--version"):
            return CommandResult(0, f"{program} {style.version}\n", "")
        else:
            hint = f"Try `{program} -h' for more information."
            text = f"{program}: unrecognized option '{word}'\n{hint}\n"
            return CommandResult(1, "", text)
    try:
        restore(netfilter, stdin, noflush=noflush, counters=counters, test=test, only=only)
    except RestoreError as error:
        return CommandResult(error.exit_code, "", _restore_text(error, style))
    return CommandResult(0, "", "")


def _restore_text(error: RestoreError, style: Style) -> str:
    program = "iptables-restore"
    cause, line = error.cause, error.line
    if isinstance(cause, BadArgumentError):
        return f"{cause}\nError occurred at line: {line}\n{_try(program)}"
    if isinstance(cause, ParameterError):
        head = f"{program} {style.version}: {cause}"
        return f"{head}\nError occurred at line: {line}\n{_try(program)}"
    if isinstance(cause, TransactionError):
        return f"{program} {style.version}: \nline {line}: {cause}\n"
    if error.bare:
        return f"{program}: {cause}\n"
    tail = f": {cause}" if str(cause) else ""
    return f"{program}: line {line} failed{tail}\n"
