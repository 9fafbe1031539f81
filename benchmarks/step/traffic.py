"""Bytes that a compiled program reads from a device's memory and writes to it."""

import re

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2}
_SIZES |= {"f16": 2, "s64": 8, "u64": 8, "f64": 8}
_INSTRUCTION = re.compile(
    r"\s*(?:ROOT )?%(?P<name>\S+) = (?P<shape>\(.*?\)|\S+) (?P<op>[\w-]+)\((?P<rest>.*)"
)
_ARRAY = re.compile(r"(?P<dtype>\w+)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?")
# They move nothing; nor does the end of what was begun.
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}


def bytes_accessed(hlo: str) -> int:
    """Returns the sizes of what the instructions of a program read and write.

    XLA's own count has also what a TPU copies into on-chip memory to read it there, and
    XLA:GPU has none. The bodies of loops are not counted.

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
        # What is begun names its source as well: copies last, slices first.
        if op == "copy-start":
            arrays = arrays[:1]
        elif op == "slice-start":
            arrays = arrays[1:2]
        written = sum(map(_bytes, arrays))
        sizes[match["name"]] = written
        if op in _FREE or op.endswith("-done"):
            continue
        total += written
        if op in ("slice", "slice-start", "dynamic-slice"):  # reads no more than that
            total += sum(map(_size, arrays))
        else:
            operands = re.findall(r"%([\w.-]+)", match["rest"].partition("), ")[0])
            total += sum(sizes[operand] for operand in operands)
    return total


def _bytes(array: re.Match[str]) -> int:
    """Returns the bytes of an array in the memory of a device, none on the chip."""
    return 0 if "S(1)" in (array["layout"] or "") else _size(array)


def _size(array: re.Match[str]) -> int:
    total = _SIZES.get(array["dtype"], 0)
    for size in filter(None, array["sizes"].split(",")):
        total *= int(size)
    return total
