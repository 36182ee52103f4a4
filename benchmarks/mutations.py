"""The small changes that make mutants of a line: what a tired programmer might have written instead."""

import io
import re
import tokenize
from collections.abc import Iterator
from typing import Final

_SHARED: Final = (
    (r"<=", "<"),
    (r"(?<![<])>=", ">"),
    (r"(?<![<>=-])<(?![>=<])", "<="),
    (r"(?<![<>=-])>(?![>=])", ">="),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \+= ", " -= "),
    (r"\btrue\b", "false"),
    (r"\bfalse\b", "true"),
    (r"(?<!strict=)(?<!repr=)\bTrue\b", "False"),
    (r"(?<!repr=)\bFalse\b", "True"),
    (r"\bgreatest\(", "least("),
    (r"\bmax\(", "min("),
)
_NUMBER: Final = r"(?<![\w.$%{'])\d+(?![\w.])"
_SQL: Final = (
    (r"<>", "="),
    (r"(?<![:<>!=])=(?!=)", "<>"),
    (r"\bAND\b", "OR"),
    (r"\bOR\b", "AND"),
    (r"\bNOT EXISTS\b", "EXISTS"),
    (r"(?<!NOT )\bEXISTS\b", "NOT EXISTS"),
    (r"\bIS NULL\b", "IS NOT NULL"),
    (r"\bIS NOT NULL\b", "IS NULL"),
    (r"\bIS NOT DISTINCT FROM\b", "IS DISTINCT FROM"),
    (r"\bNOT BETWEEN\b", "BETWEEN"),
    (r"\bIF NOT FOUND\b", "IF FOUND"),
    (r"\bNOT IN\b", "IN"),
    (r"(?<!NOT )\bIN\b(?! \d)", "NOT IN"),
    (r"\bFOR NO KEY UPDATE\b", ""),
    (r"\bORDER BY [\w.]+", ""),
    (r" (?:WHEN|IF) NOT ", " WHEN "),
    (r"\bEXIT\b.*;", "NULL;"),
    (r"\bCONTINUE;", "NULL;"),
    (r"'posted'", "'hold'"),
    (r"'reversal'", "'posted'"),
    (r"'hold'", "'extend'"),
    (r"'extend'", "'hold'"),
    (r"'capture'", "'extend'"),
    (r"'release'", "'expire'"),
    (r"'expire'", "'release'"),
    (r"'credit'", "'debit'"),
    (r"'debit'", "'credit'"),
    (r"\bposts\b", "pends"),
    (r"\bpends\b", "posts"),
    (r"\b(\w*)debits_posted\b", r"\1credits_posted"),
    (r"\b(\w*)credits_posted\b", r"\1debits_posted"),
    (r"\b(\w*)debits_pending\b", r"\1debits_posted"),
    (r"\b(\w*)credits_pending\b", r"\1credits_posted"),
    (r"\b(a_|d_|c_|r_|h_|t_|u\.|x\.|first\.)?debit\b(?!_)", r"\1credit"),
    (r"\b(a_|d_|c_|r_|h_|t_|u\.|x\.|first\.)?credit\b(?!_)", r"\1debit"),
    (r"\b([acd]_)dp\b", r"\1cp"),
    (r"\b([acd]_)cp\b", r"\1dp"),
    (r"\b([acd]_)dn\b", r"\1cn"),
    (r"\b([acd]_)cn\b", r"\1dn"),
    (r"\bh_held\b", "h_captured"),
    (r"\bh_captured\b", "h_freed"),
    (r"\[d\]", "[c]"),
    (r"\[c\]", "[d]"),
)
_PYTHON: Final = (
    (r"==", "!="),
    (r"!=", "=="),
    (r"\band\b", "or"),
    (r"\bor\b", "and"),
    (r"\bif not\b", "if"),
    (r"\bif (?!not\b)", "if not "),
    (r"\bis not None\b", "is None"),
    (r"\bis None\b", "is not None"),
    (r"\bnot in\b", "in"),
    (r"^(\s+)raise\b.*\)$", r"\1pass"),
    (r"\bdebits_posted\b", "credits_posted"),
    (r"\bcredits_posted\b", "debits_posted"),
    (r"\bdebits_pending\b", "debits_posted"),
    (r"\bcredits_pending\b", "credits_posted"),
    (r"\bdebit=([\w.]+), credit=([\w.]+)", r"debit=\2, credit=\1"),
)


def changes(source: str, *, sql: bool) -> Iterator[tuple[int, str]]:
    """Line numbers and lines with one thing changed, for each thing that can be; prose stays as it is."""
    code = _sql(source) if sql else _python(source)
    for number, (line, bare) in enumerate(zip(source.splitlines(), code.splitlines(), strict=True), start=1):
        if not bare.lstrip().startswith(("@", "import ", "from ")):
            seen = {line}
            for changed in _changed(line, bare, sql=sql):
                if changed not in seen:
                    seen.add(changed)
                    yield number, changed


def _changed(line: str, code: str, *, sql: bool) -> Iterator[str]:
    for pattern, replacement in (*_SHARED, *(_SQL if sql else _PYTHON)):
        for found in re.finditer(pattern, code):
            yield line[: found.start()] + found.expand(replacement) + line[found.end() :]
    for found in re.finditer(_NUMBER, code):
        yield line[: found.start()] + str(int(found[0]) + 1) + line[found.end() :]
    if sql:
        for found in re.finditer(r"[\w\[\]]+ := [^;]+;", code):
            yield line[: found.start()] + "NULL;" + line[found.end() :]


def _sql(source: str) -> str:
    """The source with its comments blanked out, so that positions stay."""
    return re.sub(r"--.*", lambda found: " " * len(found[0]), source)


def _python(source: str) -> str:
    """The source with strings and comments blanked out, so that positions stay."""
    lines = [list(line) for line in source.splitlines()]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.STRING, tokenize.COMMENT}:
            (first, start), (last, end) = token.start, token.end
            for number in range(first, last + 1):
                line = lines[number - 1]
                left = start if number == first else 0
                right = end if number == last else len(line)
                line[left:right] = " " * (right - left)
    return "\n".join("".join(line) for line in lines)
