"""Sharpness-aware minimisation (SAM): takes the gradient at perturbed weights.

SAM moves the weights w by rho g / ||g||, where g is their gradient, because the loss rises fastest
in this direction. It takes the gradient at the moved weights and uses it to train w. This minimises
the largest loss in the neighbourhood of w instead of the loss at w (Foret et al., 2021).

NFNet-F5 and F6 were trained with SAM. Their ascent step uses 20 % of the same batch, and each
replica computes it from its own images, so replicas exchange nothing before the second gradient
(NFNet paper, section 6.1). The first pass then costs a fifth of the second.
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
  """Like `jax.value_and_grad`, but returns SAM's gradient.

  >>> def loss_fn(w, x):
  ...   return jnp.sum(jnp.square(w * x))
  >>> w, x = jnp.array([3.0]), jnp.array([1.0, 1.0])
  >>> value_and_grad(loss_fn, rho=0.5)(w, x)  # of 2 w^2 at w = 3.5
  (Array(24.5, dtype=float32), Array([14.], dtype=float32))
  >>> from_half = value_and_grad(loss_fn, rho=0.5, ascent_args=lambda w, x: (w, x[:1]))
  >>> from_half(w, x)[1]
  Array([14.], dtype=float32)

  Args:
    fun: returns a scalar, or a pair of a scalar and auxiliary output if `has_aux`. Its random draws
      must depend only on its arguments, so that both passes see the same draws.
    argnums: the arguments to differentiate, as for `jax.value_and_grad`. Several arguments are
      moved together, by the norm of all their gradients.
    has_aux: whether `fun` returns a pair.
    rho: length of the move, as a Euclidean norm; 0.05 in the paper's fine-tuning. With 0, the
      result is `jax.value_and_grad(fun, argnums, has_aux)` itself.
    ascent_args: maps the positional arguments of the call to those of the first pass, for example
      the same weights with a part of the batch. By default, both are the same.

  Returns:
    A function of the arguments of `fun`. Its value, auxiliary output (such as running statistics)
    and gradients are those of the second pass, at the moved weights. If it is mapped over replicas,
    each replica moves by its own gradient.

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
    grads: the same tree. If all gradients are 0, nothing moves.
    rho: length of the move.

  Returns:
    The moved weights, each in its own dtype.
  """
  wide = jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads)
  # Scaled first, since squares underflow for gradients of 1e-25 and overflow for those of 1e20.
  greatest = [jnp.max(jnp.abs(g), initial=0) for g in jax.tree.leaves(wide)]
  wide = jax.tree.map(lambda g: g / _or_one(jnp.max(jnp.stack(greatest))), wide)
  scale = rho / _or_one(optax.tree.norm(wide))
  return jax.tree.map(lambda w, g: (w + scale * g).astype(w.dtype), params, wide)


def _or_one(x: jax.Array) -> jax.Array:
  """Replaces 0 by 1 in a divisor; NaN stays, so that divergence remains visible."""
  return jnp.where(x == 0, 1, x)
