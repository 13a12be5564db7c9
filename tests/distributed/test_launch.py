"""The files that launch jobs, with commands of clusters in their places that note what they get."""

import os
import pathlib
import subprocess
import time

import numpy as np
import pytest
import yaml  # comes with ml_collections

from nfnet_jax.cli.arguments import parse

LAUNCH = pathlib.Path(__file__).parents[2] / "experiments/launch"
WORDS = ["train", "--config=experiments/digits.py", "--config.data.dir=a 'b' $c"]


@pytest.fixture
def launch(tmp_path):
  """Runs a file with words; every command is noted, a line for each word, and does as it is told.

  Gives the exit status and the commands in their order.
  """
  bin_, notes = tmp_path / "bin", tmp_path / "notes"
  bin_.mkdir()

  def run(name, words, commands, **env):
    notes.write_text("")
    for command, does in commands.items():
      path = bin_ / command
      path.write_text(f'#!/bin/bash\nprintf "%s\\0" {command} "$@" END >> {notes}\n{does}\n')
      path.chmod(0o755)
    done = subprocess.run(
      ["bash", LAUNCH / name, *words],
      cwd=tmp_path,
      env=os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}", "HOME": str(tmp_path)} | env,
      capture_output=True,
      text=True,
      check=False,
    )
    return done.returncode, noted(notes)

  return run


def noted(notes):
  return [text.split("\0")[:-1] for text in notes.read_text().split("END\0")[:-1]]


@pytest.mark.parametrize(
  ("verb", "status", "finished", "again"),
  [
    ("train", 0, False, True),  # told to stop
    ("train", 0, True, False),
    ("train", 1, False, False),
    ("evaluate", 0, False, False),
  ],
)
def test_slurm_queues_again_what_was_told_to_stop(launch, tmp_path, verb, status, finished, again):
  workdir = tmp_path / "a run"
  workdir.mkdir()
  if finished:
    (workdir / "curves.png").touch()
  words = [verb, *WORDS[1:], f"--workdir={workdir}"]
  commands = {"srun": f"exit {status}", "scontrol": ""}
  code, (srun, *others) = launch("slurm.sbatch", words, commands, SLURM_JOB_ID="7")
  assert code == status
  assert srun == [
    *("srun", "--kill-on-bad-exit=1", "--label", "python3", "-m", "nfnet_jax", *words),
    "--join_timeout=120",
  ]
  assert others == [["scontrol", "requeue", "7"]] * again


# A pod with one worker, in whose home the commands run.
GCLOUD = """
shift 3
case $1 in
  describe) exit "$THERE" ;;
  scp) cp "$2" "$HOME/${3#*:}" ;;
  ssh) for word in "$@"; do case $word in --command=*) bash -c "${word#--command=}" ;; esac; done ;;
esac
"""
GIT = """
for word in "$@"; do
  case $word in --output=*) tar -czf "${word#--output=}" -T /dev/null ;; esac
done
"""
UV = """
if [ "$1" = venv ]; then mkdir -p venv/bin && cp "$(command -v worker)" venv/bin/python; fi
"""


@pytest.mark.parametrize("there", [True, False])
def test_a_tpu_pod_is_made_once_and_trains(launch, tmp_path, there):
  commands = {"gcloud": GCLOUD, "git": GIT, "uv": UV, "python3": "", "worker": "echo training"}
  pod = {"NAME": "f5", "TYPE": "v4-512", "ZONE": "here", "THERE": "0" if there else "1"}
  code, said = launch("tpu_pod.sh", WORDS, commands, **pod)
  assert code == 0
  verbs = [command[4] for command in said if command[0] == "gcloud"]
  assert verbs == ["describe", *["create"] * (not there), "scp", "ssh"]
  for command in said:
    if command[0] == "gcloud":
      assert "--zone=here" in command
      assert command[4] in ("describe", "create") or "--worker=all" in command
  if not there:
    assert {"f5", "--accelerator-type=v4-512"} <= set(next(c for c in said if "create" in c))
  log = tmp_path / "train.log"
  deadline = time.monotonic() + 60
  while not log.read_text() and time.monotonic() < deadline:  # It outlives the connection.
    time.sleep(0.01)
  assert log.read_text() == "training\n"
  assert noted(tmp_path / "notes")[-1] == [
    "worker",
    "-m",
    "nfnet_jax",
    *WORDS,
    "--join_timeout=300",
  ]


def test_a_tpu_pod_needs_a_name(launch):
  code, said = launch("tpu_pod.sh", WORDS, {"gcloud": ""}, TYPE="v4-512", ZONE="here")
  assert (code, said) == (1, [])


def test_jobset():
  spec = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
  assert (spec["apiVersion"], spec["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  [workers] = spec["spec"]["replicatedJobs"]
  job_spec = workers["template"]["spec"]
  pod = job_spec["template"]["spec"]
  [container] = pod["containers"]
  name, port = spec["metadata"]["name"], container["ports"][0]["containerPort"]
  hosts = job_spec["parallelism"]
  assert job_spec["completions"] == hosts
  assert job_spec["completionMode"] == "Indexed"
  assert container["command"][:4] == ["python3", "-m", "nfnet_jax", "train"]
  words = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["command"][4:]]
  values = parse("train", words, about="")
  assert values.coordinator == f"{name}-{workers['name']}-0-0.{name}:{port}"
  assert (values.num_processes, values.process_id) == (hosts, 3)
  assert (LAUNCH.parents[1] / values.config.partition(":")[0]).is_file()
  chips = np.prod(
    [int(x) for x in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
  )
  assert chips == hosts * container["resources"]["limits"]["google.com/tpu"]
