"""Sharpness-aware minimisation (SAM): the gradient not at the weights, but uphill from them.

With weights w and their gradient g, the weights are moved by rho g / ||g||, which is where the loss
rises fastest, and the gradient is taken there. It is that gradient which trains w: what the loss
rises to nearby is made small, not the loss at w alone (Foret et al., 2021).

NFNet-F5 and F6 were trained so. Their ascent is computed from 20 % of the batch, of the same batch,
and each replica ascends by its own images: nothing is summed over replicas before the second
gradient (NFNet paper, section 6.1). The first pass then costs a fifth of the second.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nfnet_jax.errors import RequestError


def value_and_grad(
  fun: Callable,
  argnums: int | Sequence[int] = 0,
  has_aux: bool = False,
  *,
  rho: float,
  ascent_args: Callable[..., tuple] | None = None,
) -> Callable:
  """The same as `jax.value_and_grad`, with SAM's gradient in place of the gradient.

  >>> def loss_fn(w, x):
  ...   return jnp.sum(jnp.square(w * x))
  >>> w, x = jnp.array([3.0]), jnp.array([1.0, 1.0])
  >>> value_and_grad(loss_fn, rho=0.5)(w, x)  # of 2 w^2 at w = 3.5
  (Array(24.5, dtype=float32), Array([14.], dtype=float32))
  >>> from_half = value_and_grad(loss_fn, rho=0.5, ascent_args=lambda w, x: (w, x[:1]))
  >>> from_half(w, x)[1]
  Array([14.], dtype=float32)

  Args:
    fun: gives a scalar, or a pair of a scalar and anything else if `has_aux`. What is random in it
      has to follow from its arguments: both passes should see the same draws.
    argnums: which arguments to differentiate by, as of `jax.value_and_grad`. Several are moved
      together, by the norm of all their gradients.
    has_aux: whether `fun` gives a pair.
    rho: how far to move, as a Euclidean norm; 0.05 in the paper's fine-tuning. At 0 the function is
      `jax.value_and_grad(fun, argnums, has_aux)` itself.
    ascent_args: gives the positional arguments of the first pass from those of the call, such as
      the same weights with a part of the batch. All of them unless given.

  Returns:
    A function of the arguments of `fun`. Its value, its auxiliary output (a network's running
    statistics, for one) and its gradients are all those of the second pass, at the moved weights.
    Mapped over replicas, each moves by its own gradient.

  Raises:
    RequestError: if `rho` is negative or not finite.
  """
  if not 0 <= rho < math.inf:
    raise RequestError(f"SAM's rho={rho} must be at least 0, and finite.")
  plain = jax.value_and_grad(fun, argnums, has_aux)
  if rho == 0:
    return plain
  places = (argnums,) if isinstance(argnums, int) else tuple(argnums)

  def sam_value_and_grad(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    _, grads = plain(*(ascent_args(*args) if ascent_args else args), **kwargs)
    grads = (grads,) if isinstance(argnums, int) else grads
    moved = list(args)
    weights = ascend(tuple(args[place] for place in places), grads, rho)
    for place, values in zip(places, weights, strict=True):
      moved[place] = values
    return plain(*moved, **kwargs)

  return sam_value_and_grad


def ascend(params: Any, grads: Any, rho: float) -> Any:
  """Moves weights by `rho` in the direction of their gradient: `w + rho g / ||g||`.

  Args:
    params: any pytree of arrays.
    grads: the same tree. Where all of it is 0 there is no direction, and nothing moves.
    rho: length of the move.

  Returns:
    The moved weights, each in its own dtype.
  """
  wide = jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads)
  # Of squares alone a gradient of 1e-25 would have the norm 0, and one of 1e20 an infinite one.
  greatest = [jnp.max(jnp.abs(g), initial=0) for g in jax.tree.leaves(wide)]
  wide = jax.tree.map(lambda g: g / _or_one(jnp.max(jnp.stack(greatest))), wide)
  scale = rho / _or_one(optax.tree.norm(wide))
  return jax.tree.map(lambda w, g: (w + scale * g).astype(w.dtype), params, wide)


def _or_one(x: jax.Array) -> jax.Array:
  """The same number, to divide by; NaN stays, so that what has diverged is seen to have."""
  return jnp.where(x == 0, 1, x)
