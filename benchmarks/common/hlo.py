"""Bytes accessed and collectives of a compiled program, read from its HLO.

All functions take `jax.jit(...).lower(...).compile().as_text()`.
"""

import math
import re
from typing import NamedTuple

_INSTRUCTION = re.compile(
    r"\s*(?:ROOT )?%(?P<name>\S+) = (?P<shape>\(.*?\)|\S+) (?P<op>[\w-]+)\((?P<rest>.*)"
)
_ARRAY = re.compile(r"(?P<dtype>\w+)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?")
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}

_COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?P<op>all-reduce|all-gather|all-to-all|ragged-all-to-all"
    r"|reduce-scatter|collective-permute|collective-broadcast)(?P<start>-start)?\("
)
# XLA:TPU repeats an asynchronous collective in the fusions that continue and end it.
_REPEATED = re.compile(r'"async_collective_fusion_config":{"flag_start":"\d')
_LAYOUT = re.compile(r"{.*?}")
_PART = re.compile(r"\(.*?\)|\w+\[.*?\]")


def bytes_accessed(hlo: str) -> int:
    """Returns the bytes that the instructions of a program read and write.

    XLA's own count includes copies into a TPU's on-chip memory, and XLA:GPU has no
    count. The bodies of loops are not counted.
    """
    entry = hlo[hlo.index("\nENTRY ") :].partition("\n}")[0]
    sizes: dict[str, int] = {}
    total = 0
    for line in entry.splitlines():
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        op, arrays = match["op"], list(_ARRAY.finditer(match["shape"]))
        # The result of a -start op contains its source: last for copies, first for
        # slices.
        if op == "copy-start":
            arrays = arrays[:1]
        elif op == "slice-start":
            arrays = arrays[1:2]
        # Arrays in on-chip memory, S(1), do not count.
        written = sum(_size(x) for x in arrays if "S(1)" not in (x["layout"] or ""))
        sizes[match["name"]] = written
        if op in _FREE or op.endswith("-done"):
            continue
        total += written
        if op in ("slice", "slice-start", "dynamic-slice"):  # reads only the slice
            total += sum(map(_size, arrays))
        else:
            operands = re.findall(r"%([\w.-]+)", match["rest"].partition("), ")[0])
            total += sum(sizes[operand] for operand in operands)
    return total


class Collective(NamedTuple):
    """One collective, with the bytes of its result on one device."""

    op: str  # "all-reduce", "all-gather", ...
    bytes: int


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a program, in the order of its text.

    A collective in the body of a loop appears once. An asynchronous one counts once.
    """
    found = []
    computation = ""
    for line in hlo.splitlines():
        if line.endswith("{"):
            computation = line
        match = _COLLECTIVE.search(line)
        if not match or _REPEATED.search(line):
            continue
        op, result = match["op"], _LAYOUT.sub("", match["result"])
        if match["start"] and op != "all-reduce":
            result = _PART.findall(result[1:-1])[1]  # of (operands, results, contexts)
        if "all-reduce-scatter" in computation:  # XLA:TPU fuses the two steps
            op, result = "reduce-scatter", computation.rpartition("->")[2]
        found.append(Collective(op, sum(map(_size, _ARRAY.finditer(result)))))
    return found


def _size(array: re.Match[str]) -> int:
    """Returns the bytes of an array; 0 for tokens and other types without a width."""
    dtype, sizes = array["dtype"], array["sizes"]
    bits = re.search(r"\d+", dtype)  # f32, bf16, s4, f8e4m3fn
    width = int(bits[0]) if bits else 8 * (dtype == "pred")
    return math.prod(map(int, filter(None, sizes.split(",")))) * width // 8
