"""Networks by all their usual names."""

import pytest

import nfnet_jax
from nfnet_jax import models
from nfnet_jax.errors import RequestError


@pytest.mark.parametrize(
  ("name", "found"),
  [
    *(("dm_nfnet_f0", "nfnet_f0"), ("NFNet-F0", "nfnet_f0"), ("nfnet-f0", "nfnet_f0")),
    *(("F0", "nfnet_f0"), ("f7+", "nfnet_f7+"), ("NFNet-F4-plus", "nfnet_f4+")),
    *(("nf_resnet-50", "nf_resnet50"), ("NF-ResNet-101", "nf_resnet101")),
    *(("timm/nf_resnet50.ra2_in1k", "timm_nf_resnet50"), ("timm_nf_regnet_b1",) * 2),
    *(("timm/eca_nfnet_l0.ra2_in1k", "eca_nfnet_l0"), ("timm_nfnet_l0", "nfnet_l0")),
    *(("timm/dm_nfnet_f0.dm_in1k", "nfnet_f0"), ("ECA-NFNet-L1", "eca_nfnet_l1")),
    *(("ResNet50", "resnet50"), ("B3", "nf_regnet_b3"), ("NF-RegNet-B0", "nf_regnet_b0")),
  ],
)
def test_other_names_of_a_network(name, found):
  assert models.find(name) == found
  assert models.get_spec(name) is models.MODELS[found]


def test_every_name_is_its_own():
  assert [models.find(name) for name in models.list_models()] == models.list_models()
  assert [models.find(name.upper()) for name in models.list_models()] == models.list_models()


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("nfnet_f9", "did you mean nfnet_f"),
    ("nfnet_mirco", "did you mean nfnet_micro"),
    ("nf_resnet26", "did you mean timm_nf_resnet26"),
    ("nf_rensnet50", "did you mean nf_resnet50"),
    ("zzz", "`nfnet-jax models` lists them"),
    ("", "`nfnet-jax models` lists them"),
    (["nfnet_f0"], "unknown model"),
  ],
)
def test_names_of_no_network(name, said):
  with pytest.raises(RequestError, match=said):
    nfnet_jax.create_model(name)


def test_overrides_that_a_network_does_not_take():
  said = "resnet50 does not take alpha: remove it. It takes bn_decay, cross_replica_axis"
  with pytest.raises(RequestError, match=said):
    nfnet_jax.create_model("resnet50", alpha=0.2)
