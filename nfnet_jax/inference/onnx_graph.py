"""Converts a JAX function to an ONNX graph.

The function is traced, and every JAX primitive becomes an ONNX operator (`onnx_operators`). The
primitives of this package's networks in evaluation mode are supported; others are refused by name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper

from nfnet_jax.errors import RequestError
from nfnet_jax.inference.onnx_operators import RULES, Graph, Tensor, Value

OPSET, IR_VERSION = 18, 8


def build(
  f: Callable[[jax.Array], jax.Array], shape: Sequence[int], result: str
) -> onnx.ModelProto:
  """Traces a function of a batch of images.

  Args:
    f: maps `[N, H, W, C]` float32 images to an array with N rows.
    shape: `(H, W, C)`.
    result: name of the output. The input is named "images".

  Returns:
    A model for any N.

  Raises:
    RequestError: if the function uses an unsupported primitive.
  """
  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *shape), np.float32)
  closed = jax.make_jaxpr(f)(images)
  (out,) = closed.out_avals
  graph = Graph()
  (value,) = _evaluate(graph, closed.jaxpr, map(np.asarray, closed.consts), [Tensor("images")])
  graph.nodes.append(helper.make_node("Identity", [graph.name(value)], [result]))
  described = [
    [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *sides])]
    for name, sides in (("images", shape), (result, out.shape[1:]))
  ]
  proto = helper.make_graph(graph.nodes, "nfnet_jax", described[0], described[1], graph.weights)
  opset = [helper.make_opsetid("", OPSET)]
  return helper.make_model(
    proto, opset_imports=opset, ir_version=IR_VERSION, producer_name="nfnet_jax"
  )


def _evaluate(graph: Graph, jaxpr: core.Jaxpr, consts: Any, inputs: Sequence[Value]) -> list[Value]:
  values: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
  values |= zip(jaxpr.invars, inputs, strict=True)

  def value_of(variable: Any) -> Value:
    if isinstance(variable, core.Literal):
      return np.asarray(variable.val, variable.aval.dtype)  # type: ignore[attr-defined]
    return values[variable]

  for eqn in jaxpr.eqns:
    results = _apply(graph, eqn, [value_of(each) for each in eqn.invars])
    values |= zip(eqn.outvars, results, strict=True)
  return [value_of(each) for each in jaxpr.outvars]


def _apply(graph: Graph, eqn: core.JaxprEqn, inputs: list[Value]) -> list[Value]:
  name = eqn.primitive.name
  if (inner := _inner(eqn)) is not None:
    inputs = inputs[1:] if name == "cond" else inputs
    return _evaluate(graph, inner.jaxpr, map(np.asarray, inner.consts), inputs)
  if all(isinstance(each, np.ndarray) for each in inputs):
    return [_constant(eqn, inputs)]
  if name not in RULES:
    raise RequestError(
      f"this network uses {name!r}, which the export to ONNX does not support: export it without "
      "--to=onnx."
    )
  return [RULES[name](graph, eqn, *inputs)]


def _inner(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """The function that an equation calls; among implementations for platforms, the default one."""
  if eqn.primitive.name == "cond":
    platforms = eqn.params.get("branches_platforms")
    return eqn.params["branches"][platforms.index(None)] if platforms else None
  return eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")


def _constant(eqn: core.JaxprEqn, inputs: list[Any]) -> np.ndarray:
  """Computes a value that does not depend on the images, for a batch of one."""
  params = dict(eqn.params)
  if eqn.primitive.name == "platform_index":
    return np.zeros((), np.int32)
  if "shape" in params:
    params["shape"] = tuple(side if isinstance(side, int) else 1 for side in params["shape"])
  with jax.ensure_compile_time_eval():
    return np.asarray(eqn.primitive.bind(*inputs, **params))
