"""What published weights reach on ImageNet's 50,000 validation images."""

# Top-1 and top-5 at the test size, from timm's results table, which measured these weights. (The
# paper's Table 3 has means over three seeds: 83.6 / 96.8 for F0.)
IMAGENET_ACCURACY = {
  "nfnet_f0": (0.83468, 0.96570),
  "nfnet_f1": (0.84700, 0.97178),
  "nfnet_f2": (0.85184, 0.97340),
  "nfnet_f3": (0.85676, 0.97576),
  "nfnet_f4": (0.85838, 0.97652),
  "nfnet_f5": (0.86102, 0.97688),
  "nfnet_f6": (0.86364, 0.97900),
}
