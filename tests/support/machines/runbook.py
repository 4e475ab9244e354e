"""Runbooks as programs: which commands they have, where each is typed, and what it must print.

The form (docs/runbooks/README.md tells it to authors):

* A ``sh`` block is typed at the operator's machine, or on the host that the line before it names
  ("On the relay's host:").
* A block of `SETTINGS` names variables with examples; a test gives its own values to just these.
* A block that stands under a ``###`` heading belongs to that case; the others to every case.
* A ``text`` block right after it is what must appear, line by line in this order; ``…`` stands for
  anything, and runs of blanks and the borders of tables do not count.
* A command may fail only in `CONFIRM`, which looks at a broken system.
"""

import re
from dataclasses import dataclass

from support.paths import REPOSITORY

RUNBOOKS = REPOSITORY / "docs" / "runbooks"
SETTINGS = "Set these first"
CONFIRM = "Confirm"
SECTIONS = (
    "Symptom and alert",
    SETTINGS,
    CONFIRM,
    "Stop the blast radius",
    "Restore session setup",
    "Verify",
    "Follow up",
)
OPERATOR = "operator"
_PLACE = re.compile(r"\bOn the ((?:new )?(?:gateway|master|relay))'s host\b", re.IGNORECASE)
_FENCE = re.compile(r"^```(\w*)$")
_EXPORT = re.compile(r"^export ([A-Z_]+)=\S+(?: +#.*)?$")
_BORDERS = str.maketrans(dict.fromkeys("│┃", " "))


@dataclass(frozen=True)
class Block:
    """Commands that are typed at once.

    Attributes:
        where: file and line, for messages.
        section: ``##`` heading.
        case: ``###`` heading, or "".
        place: `OPERATOR`, ``gateway``, ``master``, ``relay``, ``new relay`` …
        commands: as they stand there.
        expected: lines that must appear.
    """

    where: str
    section: str
    case: str
    place: str
    commands: str
    expected: tuple[str, ...]

    @property
    def may_fail(self) -> bool:
        return self.section == CONFIRM


@dataclass(frozen=True)
class Runbook:
    """One page.

    Attributes:
        name: file name.
        text: of the whole page.
        sections: ``##`` headings in their order.
        cases: ``###`` headings.
        settings: variables that are set first.
        blocks: all others, in their order.
    """

    name: str
    text: str
    sections: tuple[str, ...]
    cases: frozenset[str]
    settings: frozenset[str]
    blocks: tuple[Block, ...]

    def of_case(self, case: str) -> list[Block]:
        """What an operator types whose case this is."""
        assert case == "" or case in self.cases, f"{self.name} has no case {case!r}"
        return [block for block in self.blocks if block.case in ("", case)]


def read_runbook(name: str) -> Runbook:
    """A page of docs/runbooks."""
    return parse_runbook(name, (RUNBOOKS / name).read_text())


def parse_runbook(name: str, text: str) -> Runbook:
    sections: list[str] = []
    cases: set[str] = set()
    settings: set[str] = set()
    blocks: list[Block] = []
    section = case = before = ""
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if line.startswith("## "):
            section, case = line.removeprefix("## "), ""
            sections.append(section)
        elif line.startswith("### "):
            case = line.removeprefix("### ")
            cases.add(case)
        elif fence := _FENCE.match(line):
            body = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            where = f"{name}:{number}"
            if fence[1] == "text":
                assert blocks, f"{where}: output of no command"
                last = blocks[-1]
                assert not last.expected, f"{where}: a second output of one block"
                assert before == "```", f"{where}: the output does not follow its block"
                expected = tuple(one for one in body if one.strip())
                blocks[-1] = Block(
                    last.where, last.section, last.case, last.place, last.commands, expected
                )
            elif fence[1] == "sh" and section == SETTINGS:
                for one in body:
                    found = _EXPORT.match(one)
                    assert found, f"{where}: {one!r} is not export NAME=example"
                    settings.add(found[1])
            else:
                assert fence[1] == "sh", f"{where}: a block is sh or text"
                place = _PLACE.search(before)
                blocks.append(
                    Block(where, section, case, place[1].lower() if place else OPERATOR,
                          "\n".join(body), ())
                )  # fmt: skip
            before = "```"
            continue
        if line.strip():
            before = line
    return Runbook(
        name, text, tuple(sections), frozenset(cases), frozenset(settings), tuple(blocks)
    )


def missing_lines(expected: tuple[str, ...], output: str) -> list[str]:
    """The expected lines from the first on that does not appear in its order; [] if all do."""
    lines = [_plain(line) for line in output.splitlines()]
    at = 0
    for number, wanted in enumerate(expected):
        parts = [re.escape(_plain(part)) for part in wanted.split("…")]
        pattern = re.compile(".*".join(parts))
        found = next((i for i in range(at, len(lines)) if pattern.search(lines[i])), None)
        if found is None:
            return list(expected[number:])
        at = found + 1
    return []


def _plain(text: str) -> str:
    return " ".join(text.translate(_BORDERS).split())
