"""What a function costs, by formula: multiply-adds, bytes of its matrix products, bytes reduced.

The counts are read from the function's jaxpr, so that nothing is computed or compiled. As in the
papers, an operation is one multiply-add, taps on padding count, and element-wise work does not.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval

# The primitives of `nfnet_jax/ops/conv.py`. Of two arguments and a result: which has the shape of
# the convolution's output, and which that of its kernel.
_OUR_CONVS = {
  "nf_conv": (2, 1),
  "nf_conv_input_gradient": (0, 1),
  "nf_conv_kernel_gradient": (1, 2),
}


class Cost(NamedTuple):
  """Cost of one call on one device.

  Attributes:
    multiply_adds: of all convolutions and matrix products.
    matrix_bytes: that these read and write if each fetches its operands from memory once and puts
      its result there, with all element-wise work done on the way.
    reduced_bytes: that are summed over the devices of a mapped axis.
  """

  multiply_adds: int = 0
  matrix_bytes: int = 0
  reduced_bytes: int = 0

  def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]  # a sum, not a chain
    return Cost(*map(sum, zip(self, other, strict=True)))

  def __mul__(self, times: int) -> "Cost":  # type: ignore[override]  # a product, not copies
    return Cost(*(value * times for value in self))


def count(f: Callable, *args: Any, axes: dict[str, int] | None = None) -> Cost:
  """Counts what a function costs.

  A loop counts as often as it runs, and of several branches the dearest; a loop without a fixed
  number of rounds counts once. What the results do not depend on does not count.

  >>> import jax.numpy as jnp
  >>> count(jnp.matmul, jax.ShapeDtypeStruct((2, 3), "float32"),
  ...       jax.ShapeDtypeStruct((3, 4), "float32")).multiply_adds
  24

  Args:
    f: any function that JAX can trace.
    *args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
    axes: sizes of the mapped axes that it reduces over, by name.
  """
  jaxpr = jax.make_jaxpr(f, axis_env=list((axes or {}).items()))(*args).jaxpr
  # A gradient that nobody asked for, such as that of the images, is traced and never computed.
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
    # Of formulations for different backends, the one without a backend's name is the formula.
    platforms = eqn.params.get("branches_platforms")
    return inner[platforms.index(None)] if platforms else max(inner)
  return sum(inner, Cost()) * (eqn.params["length"] if name == "scan" else 1)


def _conv_multiply_adds(eqn: core.JaxprEqn) -> int:
  """Output elements times the taps that each sums over, without the holes of a dilated input."""
  kernel, spec = _shape(eqn.invars[1]), eqn.params["dimension_numbers"].rhs_spec
  taps = math.prod(kernel[axis] for axis in spec[1:])  # all but the output channels
  holes = math.prod(eqn.params["lhs_dilation"])
  return math.prod(_shape(eqn.outvars[0])) * taps // holes


def _our_conv_multiply_adds(eqn: core.JaxprEqn) -> int:
  """The same for a convolution and its gradients, which take one multiply-add for each of its."""
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
  """The jaxprs among an equation's parameters, however deep."""
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
