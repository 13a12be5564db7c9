"""The convolution of the networks compared with XLA's: values, gradients, transformations."""

import functools
import itertools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet_jax.models import layers
from nfnet_jax.ops import conv, conv_cpu

CASES = [  # kernel, stride, groups, dtype
  *itertools.product((1, 3, 7), (1, 2), (1, 2), ("float32",)),
  *itertools.product((1, 3), (1, 2), (2,), ("float64", "bfloat16")),
]
# One row of pixels, odd and even, and sizes on both sides of every choice by height and width.
SIZES = [(1, 2), (6, 7), (50, 5)]
TOLERANCES = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 1e-2}


def problem(size, kernel, stride, groups, dtype="float32", channels=(8, 6)):
  """Input, kernel and an output's gradient."""
  rng = np.random.default_rng(0)
  out = [-(-n // stride) for n in size]
  shapes = (
    (3, *size, channels[0]),
    (kernel, kernel, channels[0] // groups, channels[1]),
    (3, *out, channels[1]),
  )
  return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def with_gradients(f, x, w, g):
  value, vjp = jax.vjp(f, x, w)
  return value, *vjp(g)


def relative_error(ours, theirs):
  assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30)


def assert_close(ours, theirs, tolerance=1e-5):
  errors = jax.tree.map(relative_error, ours, theirs)
  assert max(jax.tree.leaves(errors)) <= tolerance, errors


@pytest.mark.parametrize(("kernel", "stride", "groups", "dtype"), CASES)
def test_values_and_gradients(kernel, stride, groups, dtype):
  kwargs = {"stride": stride, "groups": groups}
  ours, theirs = functools.partial(conv.conv, **kwargs), functools.partial(conv.plain, **kwargs)
  with jax.enable_x64(dtype == "float64"):
    problems = [problem(size, kernel, stride, groups, dtype) for size in SIZES]
    problems.append(problem(SIZES[1], kernel, stride, groups, dtype, channels=(4, 12)))
    both = jax.jit(
      lambda each: [[with_gradients(f, *args) for args in each] for f in (ours, theirs)]
    )
    assert_close(*both(problems), TOLERANCES[dtype])


@pytest.mark.parametrize("kernel", [3, 7])
def test_padding_of_half_a_kernel(kernel):
  """As PyTorch's networks have it."""

  def theirs(x, w):
    half = (kernel // 2, kernel // 2)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
      x, w, (2, 2), (half, half), dimension_numbers=dimensions, feature_group_count=2
    )

  ours = functools.partial(conv.conv, stride=2, groups=2, padding="SAME_LOWER")
  problems = [problem(size, kernel, 2, 2) for size in SIZES]
  both = jax.jit(lambda each: [[with_gradients(f, *args) for args in each] for f in (ours, theirs)])
  assert_close(*both(problems))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_kernel_gradients(size, stride):
  x, w, g = problem(size, 3, stride, 1)
  expected = with_gradients(functools.partial(conv.plain, stride=stride), x, w, g)[2]
  for formulation in conv_cpu.kernel_gradient_by_image, conv_cpu.kernel_gradient_by_rows:
    assert_close(formulation(x, g, kernel=(3, 3), stride=stride), expected)


def loss(f, x, w):
  return jnp.mean(jnp.tanh(f(f(x, w, stride=2, groups=2), w, groups=2)) ** 2)


def test_vmap_and_remat():
  # In float64: the loss's gradients are small differences, 3e-5 off in float32 on some processors.
  with jax.enable_x64(True):
    x, w, _ = problem((9, 8), 3, 1, 2, dtype="float64", channels=(8, 8))
    xs, ws = jnp.stack([x, 2 * x, -x]), jnp.stack([w, 2 * w, -w])
    for axes, args in (((0, None), (xs, w)), ((None, 0), (x, ws)), ((0, 0), (xs, ws))):
      ours, theirs = (
        jax.jit(jax.vmap(jax.grad(functools.partial(loss, f), (0, 1)), axes))(*args)
        for f in (conv.conv, conv.plain)
      )
      assert_close(ours, theirs, TOLERANCES["float64"])
    ours = jax.jit(jax.grad(jax.checkpoint(functools.partial(loss, conv.conv)), (0, 1)))(x, w)
    assert_close(
      ours, jax.grad(functools.partial(loss, conv.plain), (0, 1))(x, w), TOLERANCES["float64"]
    )


def dot(a, b):
  return sum(jnp.vdot(x, y) for x, y in zip(a, b, strict=True))


def derivatives(f, x, w, vector):
  """One of each kind, of the loss as a function of both arguments."""

  def gradient(x, w):
    return jax.grad(functools.partial(loss, f), (0, 1))(x, w)

  def directional(*args):
    return dot(gradient(*args), vector)

  _, linear = jax.linearize(functools.partial(loss, f), x, w)
  return {
    "jvp": jax.jvp(functools.partial(loss, f), (x, w), vector)[1],
    "linearize": linear(*vector),
    "forward over reverse": jax.jvp(gradient, (x, w), vector)[1],
    "reverse over reverse": jax.grad(directional, (0, 1))(x, w),
    "reverse over forward": jax.grad(
      lambda *args: jax.jvp(functools.partial(loss, f), args, vector)[1], (0, 1)
    )(x, w),
    "third order": jax.jvp(jax.grad(directional, (0, 1)), (x, w), vector)[1],
    "by example": jax.vmap(lambda x: jax.grad(functools.partial(loss, f, x[None]))(w))(x),
    "jacfwd": jax.jacfwd(lambda scale: loss(f, x, scale * w))(1.5),
  }


@pytest.mark.parametrize("kernel", [1, 3])
def test_every_mode_to_any_order(kernel):
  with jax.enable_x64(True):
    x, w, _ = problem((7, 6), kernel, 1, 2, dtype="float64", channels=(8, 8))
    vector = jnp.cos(x), jnp.sin(w)
    ours, theirs = (
      jax.jit(functools.partial(derivatives, f))(x, w, vector) for f in (conv.conv, conv.plain)
    )
    assert_close(ours, theirs, TOLERANCES["float64"])


def test_forward_mode_is_not_needed_any_more():
  x, w, _ = problem((9, 8), 3, 1, 2, channels=(8, 8))
  with pytest.warns(DeprecationWarning, match="no longer needed"), conv.forward_mode():
    inside = jax.jvp(functools.partial(loss, conv.conv, x), (w,), (w,))
  assert_close(inside, jax.jvp(functools.partial(loss, conv.conv, x), (w,), (w,)), 0.0)


def test_vmapped_images_are_one_batch():
  x, w, _ = problem((8, 8), 3, 1, 2, channels=(8, 8))
  f = jax.vmap(functools.partial(conv.conv, groups=2), (1, None), 1)
  xs = jnp.stack([x, 2 * x], 1)
  jaxpr = jax.make_jaxpr(f)(xs, w)
  assert "nf_conv" in str(jaxpr)
  assert_close(f(xs, w), jax.vmap(functools.partial(conv.plain, groups=2), (1, None), 1)(xs, w))


@pytest.mark.parametrize("size", [(9, 8), (100, 2)])  # kernel gradients by rows, and by image
def test_shard_map_sums_the_kernels_gradient(size):
  mesh = jax.sharding.Mesh(jax.devices()[:4], ("data",))
  split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

  def sharded(f):
    def gradient(x, w):
      return jax.grad(lambda w: jax.lax.pmean(loss(f, x, w), "data"))(w)

    return jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(split, whole), out_specs=whole))

  with jax.enable_x64(True):
    x, w, _ = problem(size, 3, 1, 2, "float64", channels=(8, 8))
    x = jnp.concatenate([x, x + 1, x * x, x - 1])
    expected = jax.grad(functools.partial(loss, conv.plain, x))(w)
    assert_close(sharded(conv.conv)(x, w), expected, TOLERANCES["float64"])
    # Nothing but the kernel's gradient is summed over devices, on a TPU too.
    ours, theirs = (
      sharded(f).trace(x, w).lower(lowering_platforms=("tpu",)).as_text().count("all_reduce")
      for f in (conv.conv, conv.plain)
    )
  assert ours == theirs


def program(platform, gradient):
  f = functools.partial(conv.conv, groups=2)
  if gradient:
    f = functools.partial(with_gradients, f)
  args = problem((8, 8), 3, 1, 2)[: 3 if gradient else 2]
  return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("gradient", "count"), [(False, 1), (True, 3)])
def test_tpu_and_gpu_get_plain_convolutions(gradient, count):
  for platform in "tpu", "cuda":
    text = program(platform, gradient)
    assert text.count("stablehlo.convolution(") == count
    assert "dot_general" not in text
  assert program("cpu", gradient) != text


def test_export_for_any_batch():
  x, w, _ = problem((9, 8), 3, 1, 2, channels=(8, 8))
  (n,) = jax.export.symbolic_shape("n")
  f = jax.grad(functools.partial(loss, conv.conv), (0, 1))
  shape = jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype)
  exported = jax.export.export(jax.jit(f), platforms=("cpu", "tpu"))(shape, w)
  assert_close(exported.call(x, w), jax.grad(functools.partial(loss, conv.plain), (0, 1))(x, w))


@pytest.mark.parametrize("numerics", layers.NUMERICS)
def test_gradients_of_weight_standardisation(numerics):
  def formula(w, gain):
    mean, var = jnp.mean(w, (0, 1, 2)), jnp.var(w, (0, 1, 2))
    bounded = jnp.maximum(var * 18, 1e-4) if numerics == "published" else (var + 1e-5) * 18
    return gain * (w - mean) / jnp.sqrt(bounded)

  rng = np.random.default_rng(0)
  # The first channel is so small that its norm is bounded, the second far from zero.
  w = rng.standard_normal((3, 3, 2, 4)) * [1e-3, 1, 1, 1] + [0, 3, 0, 0]
  args = [
    jnp.asarray(a, "float32") for a in (w, rng.standard_normal(4), rng.standard_normal(w.shape))
  ]
  ours = functools.partial(layers.standardize_weight, numerics=numerics)
  both = jax.jit(lambda args: [with_gradients(f, *args) for f in (ours, formula)])
  assert_close(*both(args))


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER"])
@pytest.mark.parametrize("size", [(1, 1), (7, 8), (8, 5)])
def test_max_pool(size, padding):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.integers(0, 4, (2, *size, 3)), "float32")  # with many equal maxima

  def plain(x):
    # A pixel's width on both sides, as in PyTorch, or what Haiku adds.
    if padding == "SAME":
      return hk.max_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)

  ours = functools.partial(layers.max_pool, padding=padding)
  g = jnp.asarray(rng.standard_normal((2, *(-(-n // 2) for n in size), 3)), "float32")
  both = jax.jit(lambda x: [(f(x), jax.vjp(f, x)[1](g)[0]) for f in (ours, plain)])
  (value, gradient), (expected, expected_gradient) = both(x)
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-6)
  (value, _), (expected, _) = both(x.at[0, 0, 0, 0].set(jnp.nan))
  np.testing.assert_array_equal(value, expected)
