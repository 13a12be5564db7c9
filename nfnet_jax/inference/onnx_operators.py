"""ONNX operators for JAX's primitives, and the graph that holds them.

ONNX convolves images as `[N, C, H, W]`, but this package as `[N, H, W, C]`. A `Tensor` records its
layout, so that images are transposed only once, at the input.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


class Tensor(NamedTuple):
  """A value that depends on the images.

  Attributes:
    name: its name in the graph.
    channels_first: whether JAX's `[N, H, W, C]` array is stored as `[N, C, H, W]`.
  """

  name: str
  channels_first: bool = False


Value = Tensor | np.ndarray  # An array does not depend on the images.


class Graph:
  """The nodes and weights of a graph under construction."""

  def __init__(self) -> None:
    self.nodes: list[onnx.NodeProto] = []
    self.weights: list[onnx.TensorProto] = []
    self._numbers = itertools.count()

  def add(self, operator: str, *names: str, channels_first: bool = False, **how: Any) -> Tensor:
    """Adds a node and returns its result."""
    result = f"{operator}_{next(self._numbers)}"
    self.nodes.append(helper.make_node(operator, names, [result], name=result, **how))
    return Tensor(result, channels_first)

  def weight(self, array: np.ndarray) -> str:
    """Adds a constant and returns its name."""
    name = f"weight_{next(self._numbers)}"
    self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name

  def name(self, value: Value, channels_first: bool = False) -> str:
    """The name of a value in the given layout; adds a transposition if needed."""
    if isinstance(value, np.ndarray):
      is_image = channels_first and value.ndim == 4
      return self.weight(value.transpose(_TO_CHANNELS_FIRST) if is_image else value)
    if value.channels_first == channels_first:
      return value.name
    axes = _TO_CHANNELS_FIRST if channels_first else _TO_CHANNELS_LAST
    return self.add("Transpose", value.name, perm=axes).name


def _elementwise(operator: str) -> Callable[..., Tensor]:
  def rule(graph: Graph, eqn: core.JaxprEqn, *inputs: Value) -> Tensor:
    first = any(isinstance(each, Tensor) and each.channels_first for each in inputs)
    names = [graph.name(each, first) for each in inputs]
    return graph.add(operator, *names, channels_first=first)

  return rule


def _integer_pow(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> Tensor:
  exponent = graph.weight(np.asarray(eqn.params["y"], np.float32))
  return graph.add("Pow", x.name, exponent, channels_first=x.channels_first)


def _rsqrt(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> Tensor:
  root = graph.add("Sqrt", x.name)
  return graph.add("Reciprocal", root.name, channels_first=x.channels_first)


def _erfc(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> Tensor:
  one, erf = graph.weight(np.asarray(1, np.float32)), graph.add("Erf", x.name)
  return graph.add("Sub", one, erf.name, channels_first=x.channels_first)


def _expm1(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> Tensor:
  one, exp = graph.weight(np.asarray(1, np.float32)), graph.add("Exp", x.name)
  return graph.add("Sub", exp.name, one, channels_first=x.channels_first)


def _select(graph: Graph, eqn: core.JaxprEqn, which: Value, no: Value, yes: Value) -> Tensor:
  return _elementwise("Where")(graph, eqn, which, yes, no)


def _square(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> Tensor:
  return graph.add("Mul", x.name, x.name, channels_first=x.channels_first)


def _same_convolution(graph: Graph, eqn: core.JaxprEqn, x: Value, w: np.ndarray) -> Tensor:
  """`nf_conv`, whose padding has a name."""
  strides, groups = (eqn.params["stride"],) * 2, eqn.params["groups"]
  size = _shape(eqn.invars[0])[1:3]
  padding = jax.lax.padtype_to_pads(size, w.shape[:2], strides, eqn.params["padding"])
  return _convolution(graph, x, w, strides, padding, groups)


def _general_convolution(graph: Graph, eqn: core.JaxprEqn, x: Value, w: np.ndarray) -> Tensor:
  params = eqn.params
  spec = params["dimension_numbers"]
  assert (spec.lhs_spec, spec.rhs_spec) == ((0, 3, 1, 2), (3, 2, 0, 1)), spec
  assert set(params["lhs_dilation"] + params["rhs_dilation"]) == {1}
  strides, groups = params["window_strides"], params["feature_group_count"]
  return _convolution(graph, x, w, strides, params["padding"], groups)


def _convolution(
  graph: Graph,
  x: Value,
  w: np.ndarray,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  groups: int,
) -> Tensor:
  kernel = graph.weight(w.transpose(3, 2, 0, 1))
  return graph.add(
    "Conv",
    graph.name(x, channels_first=True),
    kernel,
    channels_first=True,
    strides=strides,
    pads=_pads(padding),
    group=groups,
    kernel_shape=w.shape[:2],
  )


def _shape(variable: Any) -> tuple[Any, ...]:
  return variable.aval.shape


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
  """Padding in ONNX's order: all beginnings, then all ends."""
  return [low for low, _ in padding] + [high for _, high in padding]


def _pool(operator: str, **how: Any) -> Callable[..., Tensor]:
  def rule(graph: Graph, eqn: core.JaxprEqn, x: Value) -> Tensor:
    params = eqn.params
    assert params["window_dimensions"][::3] == params["window_strides"][::3] == (1, 1)
    return graph.add(
      operator,
      graph.name(x, channels_first=True),
      channels_first=True,
      kernel_shape=params["window_dimensions"][1:3],
      strides=params["window_strides"][1:3],
      pads=_pads(params["padding"][1:3]),
      **how,
    )

  return rule


def _window_sum(graph: Graph, eqn: core.JaxprEqn, x: Value) -> Tensor:
  """An average over windows, padding included, times their area."""
  mean = _pool("AveragePool", count_include_pad=1)(graph, eqn, x)
  area = np.asarray(np.prod(eqn.params["window_dimensions"]), np.float32)
  return graph.add("Mul", mean.name, graph.weight(area), channels_first=True)


def _reduce(operator: str) -> Callable[..., Tensor]:
  def rule(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> Tensor:
    axes = eqn.params["axes"]
    if x.channels_first:
      axes = [_TO_CHANNELS_FIRST.index(axis) for axis in axes]
      assert len(axes) == 2, "what is left must have one order in both layouts"
    return graph.add(operator, x.name, graph.weight(np.asarray(axes, np.int64)), keepdims=0)

  return rule


def _broadcast(graph: Graph, eqn: core.JaxprEqn, x: Tensor, *sides: Value) -> Tensor:
  """Adds axes of size 1, over which ONNX's operators broadcast."""
  kept, shape = eqn.params["broadcast_dimensions"], _shape(eqn.outvars[0])
  new = [axis for axis in range(len(shape)) if axis not in kept]
  assert all(shape[axis] == 1 for axis in new), shape
  assert [shape[axis] for axis in kept] == list(_shape(eqn.invars[0]))
  becomes_image = kept == (0, 3)
  axes = graph.weight(np.asarray([2, 3] if becomes_image else new, np.int64))
  return graph.add("Unsqueeze", graph.name(x), axes, channels_first=becomes_image)


def _squeeze(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> Tensor:
  axes = graph.weight(np.asarray(eqn.params["dimensions"], np.int64))
  return graph.add("Squeeze", graph.name(x), axes)


def _product(graph: Graph, eqn: core.JaxprEqn, x: Value, w: Value) -> Tensor:
  assert eqn.params["dimension_numbers"] == (((1,), (0,)), ((), ())), eqn
  return graph.add("MatMul", graph.name(x), graph.name(w))


def _pad(graph: Graph, eqn: core.JaxprEqn, x: Tensor, value: np.ndarray) -> Tensor:
  low, high, inner = zip(*eqn.params["padding_config"], strict=True)
  assert not any(inner)
  pads = graph.weight(np.asarray(low + high, np.int64))
  return graph.add("Pad", graph.name(x), pads, graph.weight(value))


def _slice(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> Tensor:
  params = eqn.params
  # The number of images is not known.
  axes = [axis for axis, side in enumerate(_shape(eqn.invars[0])) if isinstance(side, int)]
  limits = [[params[name][axis] for axis in axes] for name in ("start_indices", "limit_indices")]
  steps = [params["strides"][axis] if params["strides"] else 1 for axis in axes]
  ranges = [graph.weight(np.asarray(each, np.int64)) for each in (*limits, axes, steps)]
  return graph.add("Slice", graph.name(x), *ranges)


def _cast(graph: Graph, eqn: core.JaxprEqn, x: Tensor) -> Tensor:
  to = helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"]))
  return graph.add("Cast", x.name, channels_first=x.channels_first, to=to)


_OPERATORS = {
  "abs": "Abs",
  "add": "Add",
  "copy": "Identity",
  "div": "Div",
  "erf": "Erf",
  "exp": "Exp",
  "gt": "Greater",
  "logistic": "Sigmoid",
  "max": "Max",
  "min": "Min",
  "mul": "Mul",
  "neg": "Neg",
  "pow": "Pow",
  "sqrt": "Sqrt",
  "sub": "Sub",
  "tanh": "Tanh",
}
RULES: dict[str, Callable[..., Tensor]] = {
  **{name: _elementwise(operator) for name, operator in _OPERATORS.items()},
  "broadcast_in_dim": _broadcast,
  "conv_general_dilated": _general_convolution,
  "convert_element_type": _cast,
  "dot_general": _product,
  "erfc": _erfc,
  "expm1": _expm1,
  "integer_pow": _integer_pow,
  "nf_conv": _same_convolution,
  "pad": _pad,
  "reduce_max": _reduce("ReduceMax"),
  "reduce_sum": _reduce("ReduceSum"),
  "reduce_window_max": _pool("MaxPool"),
  "reduce_window_sum": _window_sum,
  "rsqrt": _rsqrt,
  "select_n": _select,
  "slice": _slice,
  "square": _square,
  "squeeze": _squeeze,
}
