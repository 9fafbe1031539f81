"""Collectives and memory traffic of a compiled program, read from its HLO."""

import math
import re
from typing import NamedTuple

_COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?P<op>all-reduce|all-gather|all-to-all|ragged-all-to-all"
    r"|reduce-scatter|collective-permute|collective-broadcast)(?P<start>-start)?\("
)
# A TPU repeats an asynchronous collective in the fusions that continue and end it.
_REPEATED = re.compile(r'"async_collective_fusion_config":{"flag_start":"\d')
_LAYOUT = re.compile(r"{.*?}")
_SHAPE = re.compile(r"(\w+)\[(.*?)\]")
_PART = re.compile(r"\(.*?\)|\w+\[.*?\]")

_INSTRUCTION = re.compile(
    r"\s*(?:ROOT )?%(?P<name>\S+) = (?P<shape>\(.*?\)|\S+) (?P<op>[\w-]+)\((?P<rest>.*)"
)
_ARRAY = re.compile(r"(?P<dtype>\w+)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?")
# These move no data, and neither does the end of an asynchronous copy.
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}


class Collective(NamedTuple):
    """One collective, with the size of its result on one device."""

    op: str  # "all-reduce", "all-gather", ...
    elements: int
    bytes: int


def collectives(hlo: str) -> list[Collective]:
    """Lists the collectives of a program, in the order of its text.

    A collective inside the body of a loop, such as a scan over layers, counts once. An
    asynchronous collective counts once.

    Args:
      hlo: `jax.jit(...).lower(...).compile().as_text()`, of a CPU, GPU or TPU.
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
        if "all-reduce-scatter" in computation:  # a TPU's fusion of the two steps
            op, result = "reduce-scatter", computation.rpartition("->")[2]
        shapes = [
            (dtype, math.prod(map(int, re.findall(r"\d+", dimensions))))
            for dtype, dimensions in _SHAPE.findall(result)
        ]
        n_bytes = sum(math.ceil(n * _bits(dtype) / 8) for dtype, n in shapes)
        found.append(Collective(op, sum(n for _, n in shapes), n_bytes))
    return found


def bytes_accessed(hlo: str) -> int:
    """Adds up what the instructions of a program read from memory and write to it.

    XLA's own count includes copies into the on-chip memory of a TPU, and XLA:GPU has
    none. The bodies of loops are not counted.

    Args:
      hlo: `jax.jit(...).lower(...).compile().as_text()`, of a GPU or TPU.
    """
    entry = hlo[hlo.index("\nENTRY ") :].partition("\n}")[0]
    sizes: dict[str, int] = {}
    total = 0
    for line in entry.splitlines():
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        op, arrays = match["op"], list(_ARRAY.finditer(match["shape"]))
        # The start of an asynchronous copy names its source as well: copies have it
        # last, slices first.
        if op == "copy-start":
            arrays = arrays[:1]
        elif op == "slice-start":
            arrays = arrays[1:2]
        written = sum(map(_bytes_in_memory, arrays))
        sizes[match["name"]] = written
        if op in _FREE or op.endswith("-done"):
            continue
        total += written
        if op in ("slice", "slice-start", "dynamic-slice"):  # reads only its result
            total += sum(map(_bytes, arrays))
        else:
            operands = re.findall(r"%([\w.-]+)", match["rest"].partition("), ")[0])
            total += sum(sizes[operand] for operand in operands)
    return total


def _bytes_in_memory(array: re.Match[str]) -> int:
    """Bytes of an array in the memory of a device: none for S(1), on the chip."""
    return 0 if "S(1)" in (array["layout"] or "") else _bytes(array)


def _bytes(array: re.Match[str]) -> int:
    n = math.prod(int(size) for size in array["sizes"].split(",") if size)
    return math.ceil(n * _bits(array["dtype"]) / 8)


def _bits(dtype: str) -> int:
    """Bits of f32, bf16, s4, f8e4m3fn; pred has no number; a token has no size."""
    if dtype == "token":
        return 0
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) if bits else 8
