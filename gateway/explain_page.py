"""`narswarm explain` for a person: drawn from the JSON."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.text import Text

Answer = Mapping[str, object]
_WORTH = {
    "counts": ("counts", "green"),
    "names": ("trusted, but not for this name", "yellow"),
    "denied": ("denied", "red"),
    "wrong": ("does not hold", "red"),
    "unknown": ("not trusted here", "yellow"),
}
_SAYS = {"yes": ("has it", "green"), "no": ("does not have it", ""), "error": ("failed", "red"),
         "silent": ("no answer", "red")}  # fmt: skip
HASH_CHARS = 19
"""Of a NarHash, where two are only to be told apart."""
SECONDS_SHOWN_MIN = 0.1
"""Faster answers hold nobody up."""


def show(answer: Answer) -> None:
    Console().print(explain_page(answer), soft_wrap=True)


def explain_page(answer: Answer) -> RenderableType:
    contents = _mappings(answer["contents"])
    lines: list[RenderableType] = [_head(answer, contents)]
    lines += _sources(answer, len(contents) > 1)
    for content in contents:
        lines += _content(content, several=len(contents) > 1)
    lines += [Text(f"-> {advice}") for advice in _texts(answer["advice"])]
    return Group(*lines)


def _head(answer: Answer, contents: list[Answer]) -> Text:
    head = Text(f"{answer['store_path']}\n")
    if answer["admitted"]:
        return head.append("Nix gets it", "bold green").append(f" from {contents[0]['comes_from']}")
    return head.append("Nix does not get it", "bold red")


def _sources(answer: Answer, several: bool) -> list[Text]:
    """A line each, uncut: a URL is there to be copied."""
    lines = []
    for source in _mappings(answer["sources"]):
        words, colour = _SAYS[str(source["says"])]
        if source["says"] == "yes" and not source["has_nar"]:
            words, colour = "knows of it", "yellow"
        said = [str(source["detail"])] if source["detail"] else []
        said += [f"signed by {', '.join(_texts(source['signed_by']))}"] * bool(source["signed_by"])
        said += [str(source["nar_hash"])[:HASH_CHARS]] * bool(several and source["nar_hash"])
        seconds = source["seconds"]
        assert isinstance(seconds, float)
        said += [f"{seconds * 1000:.0f} ms"] * (seconds >= SECONDS_SHOWN_MIN)
        line = Text.assemble("  ", (f"{words:18}", colour), str(source["name"]))
        lines.append(line.append(f"  ({'; '.join(said)})" if said else ""))
    return lines


def _content(content: Answer, *, several: bool) -> list[RenderableType]:
    lines = []
    if several:
        lines.append(Text(f"content {str(content['nar_hash'])[:HASH_CHARS]}", "bold"))
    for signer in _mappings(content["signers"]):
        words, colour = _WORTH[str(signer["standing"])]
        if only_for := " or ".join(_texts(signer["only_for"])):
            only = f"for what {only_for} says"
            words = f"counts only {only}" if signer["standing"] == "unknown" else f"{words} {only}"
        lines.append(Text.assemble(f"  signed by {signer['key']}: ", (words, colour)))
    if not content["signers"]:
        lines.append(Text("  signed by nobody"))
    if content["admitted"]:
        lines.append(Text.assemble(("  admitted", "green"), f" by {content['admitted_by']}"))
    for reason in _texts(content["reasons"]):
        lines.append(Text.assemble(("  refused", "red"), f": {reason}"))
    return list(lines)


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _mappings(value: object) -> list[Answer]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
