"""Collectives in the forms in which compilers write them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from examples.lm.hlo import collectives

# Cut from what compilers wrote; the operands and all that follows them are shortened.
LINES = {
    "ROOT %x = f32[] all-reduce(%a), channel_id=1": ("all-reduce", 1, 4),
    "%x = pred[3]{0} all-reduce(%a), channel_id=1": ("all-reduce", 3, 3),
    "%x = bf16[1,4096,512]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%a), channel_id=6": (
        "all-gather",
        4096 * 512,
        2 * 4096 * 512,
    ),
    "%x = (f32[131072]{0:T(1024)S(1)}, f32[8192]{0:T(1024)}) all-reduce(%a, %b)": (
        "all-reduce",
        139264,
        4 * 139264,
    ),
    "%x = (f32[16]{0}, bf16[8]{0}) all-reduce-start(%a, %b)": ("all-reduce", 24, 80),
    "%x = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%a)": (
        "all-gather",
        64,
        256,
    ),
    "%x = ((f32[2]{0}, s8[2]{0}), (f32[16]{0}, s8[16]{0})) all-gather-start(%a, %b)": (
        "all-gather",
        32,
        80,
    ),
    "%x = (f32[8,8]{1,0:T(8,128)S(1)}, f32[8,8]{1,0:T(8,128)}, u32[]{:S(2)},"
    " u32[]{:S(2)}) collective-permute-start(%a)": ("collective-permute", 64, 256),
    "%x = ((f32[64]{0}), f32[8]{0}, u32[]) reduce-scatter-start(%a)": (
        "reduce-scatter",
        8,
        32,
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_one_collective(line: str) -> None:
    assert collectives(f"ENTRY %main (a: f32[]) -> f32[] {{\n  {line}\n}}") == [
        LINES[line]
    ]


@pytest.mark.parametrize(
    "line",
    [
        "%x = f32[16,4]{1,0} all-gather-done(%all-gather-start)",
        '%x = f32[8]{0} fusion(%a), metadata={op_name="all-reduce"}',
        "%x = f32[8]{0} get-tuple-element(%all-reduce), index=0",
    ],
)
def test_no_collective(line: str) -> None:
    assert collectives(line) == []


def test_parts_of_an_asynchronous_fusion_are_one_collective() -> None:
    config = 'backend_config={"async_collective_fusion_config":{"flag_start":"%d"}}'
    line = "%%all-gather.%d = bf16[16]{0} all-gather(%%a), channel_id=8, "
    hlo = "\n".join(line % i + config % flag for i, flag in enumerate([-1, 2, 2]))
    assert collectives(hlo) == [("all-gather", 16, 32)]


def test_fused_all_reduce_and_slice_is_a_reduce_scatter() -> None:
    hlo = """
%all-reduce-scatter.clone.1 (input.2: bf16[64,512]) -> bf16[8,512] {
  %all-reduce.5 = bf16[64,512]{1,0:T(8,128)(2,1)} all-reduce(%input.2), channel_id=5
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %all-reduce.6 = f32[8]{0} all-reduce(%a), channel_id=4
}
"""
    assert collectives(hlo) == [
        ("reduce-scatter", 4096, 8192),
        ("all-reduce", 8, 32),
    ]


def test_a_collective_in_a_loop_appears_once() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    @jax.shard_map(mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    def five_sums(x: jax.Array) -> jax.Array:
        def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.pcast(jax.lax.psum(carry, "x"), "x", to="varying"), None

        return jax.lax.scan(body, x, length=5)[0]

    hlo = jax.jit(five_sums).lower(jnp.ones((8, 3))).compile().as_text()
    assert collectives(hlo) == [("all-reduce", 3, 12)]
