"""Counts a function's multiply-adds, the bytes of its matrix products, and all-reduced bytes.

The counts come from the function's jaxpr, so nothing is computed or compiled. As in the papers, an
operation is one multiply-add; padding counts, and element-wise work does not.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval

# The primitives of `nfnet_jax/ops/conv.py`. For each, which of its two arguments and its result has
# the shape of the convolution's output, and which that of its kernel.
_OUR_CONVS = {
  "nf_conv": (2, 1),
  "nf_conv_input_gradient": (0, 1),
  "nf_conv_kernel_gradient": (1, 2),
}


class Cost(NamedTuple):
  """Cost of one call on one device.

  Attributes:
    multiply_adds: multiply-adds of all convolutions and matrix products.
    matrix_bytes: bytes that these read and write if each operand is read once, each result is
      written once, and all element-wise work is fused.
    reduced_bytes: bytes that are summed over the devices of a mapped axis.
  """

  multiply_adds: int = 0
  matrix_bytes: int = 0
  reduced_bytes: int = 0

  def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]  # a sum, not a chain
    return Cost(*map(sum, zip(self, other, strict=True)))

  def __mul__(self, times: int) -> "Cost":  # type: ignore[override]  # a product, not copies
    return Cost(*(value * times for value in self))


def count(f: Callable, *args: Any, axes: dict[str, int] | None = None) -> Cost:
  """Counts the cost of a function.

  A loop counts as often as it runs, or once if the number of iterations is not fixed. Of several
  branches, the most expensive counts. Operations that do not affect the results do not count.

  >>> import jax.numpy as jnp
  >>> count(jnp.matmul, jax.ShapeDtypeStruct((2, 3), "float32"),
  ...       jax.ShapeDtypeStruct((3, 4), "float32")).multiply_adds
  24

  Args:
    f: any function that JAX can trace.
    *args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
    axes: sizes of mapped axes that the function reduces over, by name.
  """
  jaxpr = jax.make_jaxpr(f, axis_env=list((axes or {}).items()))(*args).jaxpr
  # Unused gradients, such as those of the images, are traced but never computed.
  needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _jaxpr_cost(needed)


def _jaxpr_cost(jaxpr: core.Jaxpr) -> Cost:
  return sum(map(_equation_cost, jaxpr.eqns), Cost())


def _equation_cost(eqn: core.JaxprEqn) -> Cost:
  name = eqn.primitive.name
  if name == "conv_general_dilated":
    return Cost(_conv_multiply_adds(eqn), _bytes(*eqn.invars, *eqn.outvars))
  if name in _OUR_CONVS:
    return Cost(_our_conv_multiply_adds(eqn), _bytes(*eqn.invars, *eqn.outvars))
  if name == "dot_general":
    return Cost(_dot_multiply_adds(eqn), _bytes(*eqn.invars, *eqn.outvars))
  if name.startswith("psum"):
    return Cost(reduced_bytes=_bytes(*eqn.invars))
  inner = [_jaxpr_cost(jaxpr) for jaxpr in _inner_jaxprs(eqn.params)]
  if name == "cond":
    # Among implementations for different backends, the default one is counted.
    platforms = eqn.params.get("branches_platforms")
    return inner[platforms.index(None)] if platforms else max(inner)
  return sum(inner, Cost()) * (eqn.params["length"] if name == "scan" else 1)


def _conv_multiply_adds(eqn: core.JaxprEqn) -> int:
  """Output elements times kernel taps, without the zeros of a dilated input."""
  kernel, spec = _shape(eqn.invars[1]), eqn.params["dimension_numbers"].rhs_spec
  taps = math.prod(kernel[axis] for axis in spec[1:])  # all but the output channels
  holes = math.prod(eqn.params["lhs_dilation"])
  return math.prod(_shape(eqn.outvars[0])) * taps // holes


def _our_conv_multiply_adds(eqn: core.JaxprEqn) -> int:
  """The same for our convolution and its gradients, which all have the same number."""
  shapes = [_shape(variable) for variable in (*eqn.invars, *eqn.outvars)]
  output, kernel = (shapes[i] for i in _OUR_CONVS[eqn.primitive.name])
  return math.prod(output) * math.prod(kernel[:3])


def _dot_multiply_adds(eqn: core.JaxprEqn) -> int:
  contracted = eqn.params["dimension_numbers"][0][0]
  shape = _shape(eqn.invars[0])
  return math.prod(_shape(eqn.outvars[0])) * math.prod(shape[axis] for axis in contracted)


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape


def _bytes(*variables: Any) -> int:
  return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in variables)


def _inner_jaxprs(value: Any) -> Iterator[core.Jaxpr]:
  """The jaxprs among an equation's parameters, at any depth."""
  if isinstance(value, core.ClosedJaxpr):
    yield value.jaxpr
  elif isinstance(value, core.Jaxpr):
    yield value
  elif isinstance(value, dict):
    for each in value.values():
      yield from _inner_jaxprs(each)
  elif isinstance(value, tuple | list):
    for each in value:
      yield from _inner_jaxprs(each)
