"""Counts of a step on TPUs, in which the compiler counts the body of a loop once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from examples.lm import Config
from examples.lm.program import Program, cross_entropy, make_model


class Repeated(NamedTuple):
    """Body of a loop."""

    more: int  # times that it runs after the first
    compiled: jax.stages.Compiled


def count(
    name: str, compiled: jax.stages.Compiled, repeated: Sequence[Repeated] = ()
) -> float | None:
    """Returns a count of a step with loops, None if the compiler gives no number."""
    parts = [Repeated(1, compiled), *repeated]
    counts = [(part.compiled.cost_analysis() or {}).get(name, 0) for part in parts]
    if min(counts) <= 0:
        return None
    return sum(part.more * n for part, n in zip(parts, counts, strict=True))


def compile_repeated(config: Config, program: Program) -> list[Repeated]:
    """Compiles the loop bodies of a step, forward and backward.

    The program's mesh must be in context.
    """
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(config)), nnx.Param)
    params, sharding = program.state.params, program.tokens.sharding

    def activations(time: int) -> jax.ShapeDtypeStruct:
        shape = config.batch_size, time, config.model.width
        return jax.ShapeDtypeStruct(shape, config.model.dtype, sharding=sharding)

    def compile_body(
        function: Callable[..., jax.Array], name: str, inputs: Any, gradient: Any
    ) -> jax.stages.Compiled:
        def passes(inputs: Any, others: Any, rest: Any, gradient: Any) -> Any:
            def forward(piece: Any, x: jax.Array) -> jax.Array:
                model = nnx.merge(graph, others | {name: piece})
                return function(model, x, *rest)

            return jax.vjp(forward, *inputs)[1](gradient)

        args = inputs[:2], params, inputs[2:], gradient
        shardings = jax.tree.map(lambda x: x.sharding, inputs[:2])
        return jax.jit(passes, out_shardings=shardings).lower(*args).compile()

    repeated = []
    if config.model.scan_layers and config.model.layers > 1:
        one = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(
                (1, *p.shape[1:]), p.dtype, sharding=p.sharding
            ),
            params["layers"],
        )
        x = activations(config.sequence_length)
        body = compile_body(lambda model, x: model.blocks(x), "layers", (one, x), x)
        repeated.append(Repeated(config.model.layers - 1, body))
    if config.loss_chunks > 1:
        head = "lm_head" if "lm_head" in params else "embed"
        x = activations(config.sequence_length // config.loss_chunks)
        targets = jax.ShapeDtypeStruct(x.shape[:2], "int32", sharding=sharding)
        inputs, loss = (params[head], x, targets), jax.ShapeDtypeStruct((), "float32")
        body = compile_body(cross_entropy, head, inputs, loss)
        repeated.append(Repeated(config.loss_chunks - 1, body))
    return repeated
