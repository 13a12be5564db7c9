"""Fake CPU devices, and a compiler that hurries: half the seconds for the same programs."""


def xla_flags(count: int) -> str:
  return (
    f"--xla_force_host_platform_device_count={count} "
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
  )
