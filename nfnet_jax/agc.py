"""Adaptive gradient clipping (AGC) for any pytree of parameters, as an optax transformation.

AGC scales the gradient of each unit (an output channel of a convolution or an output of a linear
layer) down if the ratio of its norm to that of the unit's weights exceeds `clipping` (NFNet paper,
section 4, equation 3):

    G_i <- clipping * max(||W_i||, eps) / ||G_i|| * G_i   if ||G_i|| > clipping * max(||W_i||, eps)

The shape of a parameter determines its units; as in the paper's code, it is read as HWIO or IO. The
norm is taken

* over the whole array if at most one dimension is longer than 1: scalars, biases, gains, and also
  kernels of shape `[1, 1, I, 1]` or `[1, O]`;
* over axis 0 for 2 and 3 dimensions: `[I, O]`, and `[I, heads, size]` as in attention;
* over all axes but the last for 4 and more: `[H, W, I, O]`, `[D, H, W, I, O]`.

`optax.adaptive_grad_clip` uses the same rule for up to 5 dimensions and gives the same numbers.
This version supports any rank, an axis for each leaf, a mask and a schedule. It passes frozen
leaves through, keeps the gradients' dtype, and counts clipped units.
"""

import functools
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath
from jax.typing import ArrayLike

PyTree = Any
Path = tuple[str, ...]
Axis = int | tuple[int, ...] | None
AxisFunction = Callable[[Path, jax.Array], Axis]

# From the paper's code; it matters only if clipping * eps is smaller.
_SMALLEST_DIVISOR = 1e-6


class AdaptiveGradClipState(NamedTuple):
  """The result of the latest clipping, and the step count for a schedule of `clipping`.

  `optax.tree.get(opt_state, "clipped_share")` finds the share anywhere in a chain's state. With
  several AGCs, `nfnet_jax.clipped_shares(opt_state)` returns the share of each.

  Attributes:
    count: `[]` int32, number of updates so far.
    clipped_share: `[]` float32, number of clipped units divided by the number of examined units.
    clipped_share_by_leaf: the parameters' tree with the share of each leaf, `[]` float32; 0 for a
      frozen gradient, `optax.MaskedNode()` for a leaf that the mask excludes.
  """

  count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as optax's own states do
  clipped_share: jax.Array
  clipped_share_by_leaf: PyTree


class _ClippedLeaf(NamedTuple):
  gradient: PyTree
  share: PyTree
  num_clipped: ArrayLike = 0.0
  num_units: int = 0


def unitwise_norm(x: ArrayLike, axis: Axis = None) -> jax.Array:
  """L2 norm of each unit of `x`.

  Args:
    x: float or complex array of any shape and rank.
    axis: axis or axes to reduce, `()` for none; None for this module's rule by shape.

  Returns:
    The norms, float32 (float64 for a float64 `x`), in the shape of `x` with size 1 for every
    reduced axis.

  Raises:
    ValueError: if `x` does not have such an axis, or an axis is given twice.
  """
  x = jnp.asarray(x)
  axes = _reduced_axes(axis, x.shape, "an array")
  squares = jnp.square(jnp.abs(_at_least_float32(x)))
  return jnp.sqrt(jnp.sum(squares, axis=axes, keepdims=True))


def adaptive_grad_clip(
  clipping: ArrayLike | optax.Schedule,
  eps: ArrayLike = 1e-3,
  *,
  axis: Axis | AxisFunction = None,
  mask: PyTree | Callable[[PyTree], PyTree] = None,
) -> optax.GradientTransformation:
  """Clips each unit's gradient to at most `clipping * max(||unit's weights||, eps)`.

  >>> params = {"w": jnp.ones((4, 2)), "b": jnp.zeros(2)}
  >>> tx = optax.chain(adaptive_grad_clip(0.01), optax.adamw(1e-3))
  >>> updates, state = tx.update(params, tx.init(params), params)

  Put it before all transformations that rescale gradients. Clipped units keep their direction, and
  other units are unchanged, bit for bit. NaN and infinite gradients become NaN. As in the paper's
  code, finite gradients whose square overflows (above 1e19) become 0. Frozen gradients (None,
  `optax.MaskedNode()`) pass through, whatever `params` holds for them. `optax.inject_hyperparams`
  needs `static_args=("axis", "mask")`. Inside `shard_map`, norms are those of the local shard.

  Args:
    clipping: largest ratio of gradient norm to weight norm, at least 0; or a schedule, which is
      called with the number of updates so far.
    eps: lower bound of the weight norm, at least 0. It lets parameters at zero move.
    axis: the axes that one norm is taken over. None selects them by shape, see the module. An int
      or a tuple applies to all leaves, e.g. (1, 2, 3) for OIHW; leaves with at most one dimension
      longer than 1 remain one unit. A function of path, e.g. `("NFNet/~/linear", "w")`, and
      parameter returns the axis of each leaf or None, e.g. for PyTorch's layouts
      `lambda path, p: {4: (1, 2, 3), 2: 1}.get(p.ndim)`.
    mask: tree of bools as in `optax.masked` (a prefix is enough), or a function of the parameters
      that returns one. Leaves marked False are neither clipped nor counted.

  Returns:
    A transformation with `AdaptiveGradClipState`; its `update` needs `params`.

  Raises:
    ValueError: immediately if `clipping` or `eps` is not a number of at least 0; in `init` and
      `update` if mask, axis, params or state do not fit the gradients.

  References:
    Brock et al., High-Performance Large-Scale Image Recognition Without Normalization, 2021,
    https://arxiv.org/abs/2102.06171
  """
  if not callable(clipping):
    _check_number("clipping", clipping)
  _check_number("eps", eps)

  def init_fn(params: PyTree) -> AdaptiveGradClipState:
    shares = _zero_shares(params, _kept_leaves(mask, params))
    return AdaptiveGradClipState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), shares)

  def update_fn(
    updates: PyTree, state: AdaptiveGradClipState, params: PyTree | None = None
  ) -> tuple[PyTree, AdaptiveGradClipState]:
    _check_trees(updates, params)
    ratio = clipping(state.count) if callable(clipping) else clipping
    clip_leaf = functools.partial(_clip_leaf, ratio=ratio, eps=eps, axis=axis)
    kept = _kept_leaves(mask, params)
    clipped = jax.tree.map_with_path(clip_leaf, updates, params, kept, is_leaf=_is_frozen)
    return _collect(clipped, state)

  return optax.GradientTransformation(init_fn, update_fn)


def _clip_leaf(
  key_path: KeyPath,
  gradient: PyTree,
  param: PyTree,
  keep: PyTree,
  *,
  ratio: ArrayLike,
  eps: ArrayLike,
  axis: Axis | AxisFunction,
) -> _ClippedLeaf:
  """Applies equation 3 to one leaf; frozen and masked leaves pass through."""
  if _is_frozen(gradient) or not keep:
    return _ClippedLeaf(gradient, _zero_shares(param, keep))
  gradient, param = jnp.asarray(gradient), jnp.asarray(param)
  axes = _leaf_axes(axis, key_path, param)
  norm = unitwise_norm(gradient, axes)
  param_norm = unitwise_norm(param, axes).astype(norm.dtype)
  max_norm = jnp.asarray(ratio, norm.dtype) * jnp.maximum(param_norm, jnp.asarray(eps, norm.dtype))
  scaled = _at_least_float32(gradient) * (max_norm / jnp.maximum(norm, _SMALLEST_DIVISOR))
  too_long = norm > max_norm
  num_clipped = jnp.sum(too_long, dtype=jnp.float32)
  return _ClippedLeaf(
    gradient=jnp.where(too_long, scaled.astype(gradient.dtype), gradient),
    share=num_clipped / max(norm.size, 1),
    num_clipped=num_clipped,
    num_units=norm.size,
  )


def _collect(clipped: PyTree, state: AdaptiveGradClipState) -> tuple[PyTree, AdaptiveGradClipState]:
  """Collects clipped gradients and the new state from a tree of `_ClippedLeaf`."""
  leaves, treedef = jax.tree.flatten(clipped, is_leaf=lambda x: isinstance(x, _ClippedLeaf))
  shares = jax.tree.unflatten(treedef, [leaf.share for leaf in leaves])
  structure: Any = jax.tree.structure(state.clipped_share_by_leaf)
  if structure != jax.tree.structure(shares):
    raise ValueError(
      "the state of adaptive_grad_clip was made for other parameters or another mask: call init "
      "again with the current parameters."
    )
  num_units = sum(leaf.num_units for leaf in leaves)
  gradients = jax.tree.unflatten(treedef, [leaf.gradient for leaf in leaves])
  return gradients, AdaptiveGradClipState(
    count=optax.safe_increment(state.count),
    clipped_share=jnp.float32(sum(leaf.num_clipped for leaf in leaves)) / max(num_units, 1),
    clipped_share_by_leaf=shares,
  )


def _is_frozen(x: PyTree) -> bool:
  return x is None or isinstance(x, optax.MaskedNode)


def _is_vector(shape: tuple[int, ...]) -> bool:
  return sum(length != 1 for length in shape) <= 1


def _at_least_float32(x: jax.Array) -> jax.Array:
  is_wide = jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype.itemsize >= 4
  return x if is_wide else x.astype(jnp.float32)


def _strings(key_path: KeyPath) -> Path:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in key_path)


def _name(key_path: KeyPath) -> str:
  return repr("/".join(_strings(key_path)))


def _kept_leaves(mask: PyTree, params: PyTree) -> PyTree:
  """The tree of `params` with a bool for each leaf: whether AGC clips it."""
  functions = [callable(leaf) for leaf in jax.tree.leaves(mask)]
  if functions and all(functions):  # Not `callable(mask)`, since a tree may have a `__call__`.
    mask = mask(params)
  try:
    return jax.tree.map(bool, jax.tree.broadcast(True if mask is None else mask, params))
  except ValueError as error:
    raise ValueError(f"mask is not a prefix of the tree of parameters: {error}") from error


def _zero_shares(params: PyTree, kept: PyTree) -> PyTree:
  return jax.tree.map(
    lambda _, keep: jnp.zeros((), jnp.float32) if keep else optax.MaskedNode(), params, kept
  )


def _leaf_axes(axis: Axis | AxisFunction, key_path: KeyPath, param: jax.Array) -> tuple[int, ...]:
  """The axes to reduce for one parameter."""
  if callable(axis):
    axis = axis(_strings(key_path), param)
  elif _is_vector(param.shape):
    axis = None
  return _reduced_axes(axis, param.shape, f"leaf {_name(key_path)}")


def _reduced_axes(axis: Axis, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
  """`axis` as a tuple of valid axes of `shape`; None follows this module's rule."""
  ndim = len(shape)
  if axis is None:
    last = ndim if _is_vector(shape) else 1 if ndim <= 3 else ndim - 1
    return tuple(range(last))
  axes = axis if isinstance(axis, tuple) else (axis,)
  known = all(isinstance(i, int | np.integer) and -ndim <= i < ndim for i in axes)
  if not known or len({i % ndim for i in axes}) < len(axes):
    raise ValueError(
      f"axis={axis!r} does not fit {name} of shape {shape}: give each of its {ndim} axes at most "
      "once, as Python integers. A function of path and parameter can give each leaf its own axis."
    )
  return axes


def _check_number(name: str, value: ArrayLike) -> None:
  single = isinstance(value, numbers.Real) and value >= 0
  if isinstance(value, jax.Array | np.ndarray):
    single = value.shape == ()
  if not single:
    raise ValueError(f"{name} must be a single number, 0 or more, but is {value!r}.")


def _check_trees(gradients: PyTree, params: PyTree) -> None:
  """Checks that each gradient has its parameter; a frozen gradient may replace a whole subtree."""
  if params is None:
    raise ValueError(
      "adaptive_grad_clip compares gradients with parameters: call update(grads, state, params)."
    )
  gradients = dict(jax.tree.leaves_with_path(gradients, is_leaf=_is_frozen))
  params = dict(jax.tree.leaves_with_path(params, is_leaf=_is_frozen))
  frozen = {path for path, gradient in gradients.items() if _is_frozen(gradient)}
  in_gradients = gradients.keys() - frozen
  in_params = {p for p in params if not any(p[:i] in frozen for i in range(len(p) + 1))}
  if in_gradients != in_params:
    only_gradients, only_params = (
      ", ".join(sorted(map(_name, paths))[:5]) or "nothing"
      for paths in (in_gradients - in_params, in_params - in_gradients)
    )
    raise ValueError(
      "gradients and params must be trees of the same structure, but only the gradients have "
      f"{only_gradients}, and only params has {only_params} (up to 5 names each)."
    )
  for path in sorted(in_gradients, key=_name):
    gradient, param = gradients[path], params[path]
    if _is_frozen(param):
      raise ValueError(
        f"leaf {_name(path)} has a gradient but no parameter: params holds {param!r} there."
      )
    if jnp.shape(gradient) != jnp.shape(param):
      raise ValueError(
        f"leaf {_name(path)} has a gradient of shape {jnp.shape(gradient)} but a parameter of "
        f"shape {jnp.shape(param)}."
      )
