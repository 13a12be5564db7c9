"""What can be chosen by name. They stand here so that the command line's help needs no JAX."""

DTYPES = ("float32", "bfloat16")  # of the computation
ACTIVATIONS = ("identity", "elu", "gelu", "relu", "sigmoid", "silu", "tanh")
NUMERICS = ("published", "timm")
# Rematerialisation: the activations that are kept for the backward pass, which recomputes the
# others. "none" keeps all. "block" keeps the input of each block, for about a third more work.
# "stage" keeps the input of each stage, and while a stage is recomputed, the inputs of its blocks,
# for about two thirds more work.
REMAT = ("none", "block", "stage")
LOSSES = ("softmax", "sigmoid")
CLIPPERS = ("agc", "global_norm", "none")
TEST_METRICS = ("ema_top1", "top1", "ema_top5", "top5", "ema_f1", "f1", "ema_loss", "loss")
