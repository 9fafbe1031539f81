"""What a compiled program communicates, read from its HLO."""

import math
import re
from typing import NamedTuple

_COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?P<op>all-reduce|all-gather|all-to-all|ragged-all-to-all"
    r"|reduce-scatter|collective-permute|collective-broadcast)(?P<start>-start)?\("
)
# A TPU repeats an asynchronous collective in the fusions that carry it on and end it.
_REPEATED = re.compile(r'"async_collective_fusion_config":{"flag_start":"\d')
_LAYOUT = re.compile(r"{.*?}")
_SHAPE = re.compile(r"(\w+)\[(.*?)\]")
_PART = re.compile(r"\(.*?\)|\w+\[.*?\]")


class Collective(NamedTuple):
    """One collective, with the size of its result on one device."""

    op: str  # "all-reduce", "all-gather", ...
    elements: int
    bytes: int


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a program, in the order of its text.

    One inside the body of a loop, such as a scan over layers, appears once in the text
    and so once here, however often it runs. An asynchronous collective counts once.

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
        elements = sum(n for _, n in shapes)
        found.append(Collective(op, elements, sum(_bytes(*s) for s in shapes)))
    return found


def _bytes(dtype: str, elements: int) -> int:
    bits = re.search(r"\d+", dtype)  # f32, bf16, s4, f8e4m3fn; pred has none
    return math.ceil(elements * (int(bits[0]) if bits else 8) / 8)
