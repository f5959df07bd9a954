"""Runs on two hosts, which are network namespaces with addresses of their own, started as the README says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed import TCPStore

from hooktrain.testing import Recorder

BIN = Path(sys.executable).parent
ADDRESS = "10.{number}.77.{host}"


class Hosts:
    """Two hosts and the wire between them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, os.getpid() % 200 + 20  # tests may run side by side
        self.names = [f"ht{os.getpid()}-{host}" for host in (0, 1)]

    def address(self, host: int) -> str:
        return ADDRESS.format(number=self.number, host=host + 1)

    def __enter__(self) -> Hosts:
        ends = [f"e{os.getpid() % 100000}-{host}" for host in (0, 1)]
        self.ends = ends
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, name in enumerate(self.names):
            ip("link", "set", ends[host], "netns", name)
            ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", ends[host])
            ip("-n", name, "link", "set", ends[host], "up")
            ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: Any) -> None:
        for name in self.names:
            for pid in ip("netns", "pids", name).split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)

    def start(self, host: int, *words: str) -> subprocess.Popen[str]:
        mine = {"GLOO_SOCKET_IFNAME": self.ends[host], "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], *words],
            env={**os.environ, **mine, "PYTHONPATH": str(self.folder), "PATH": f"{BIN}:{os.environ['PATH']}"},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def torchrun(self, host: int, *more: str) -> subprocess.Popen[str]:
        words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "tests"]
        words += ["--rdzv-endpoint", f"{self.address(0)}:29500", "--rdzv-conf", f"is_host={1 - host}"]
        words += ["--local-addr", self.address(host), *more, "-m", "hooktrain", "train", "recipe.yaml"]
        return self.start(host, str(BIN / "torchrun"), *words)

    def torchrun_by_number(self, host: int) -> subprocess.Popen[str]:
        """The way without a rendezvous service: each host has its number, and all know the first one's address."""
        words = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(host)]
        words += ["--master-addr", self.address(0), "--master-port", "29500"]
        return self.start(host, str(BIN / "torchrun"), *words, "-m", "hooktrain", "train", "recipe.yaml")

    def deepspeed(self, host: int) -> subprocess.Popen[str]:
        lines = [f"{self.address(each)} slots=1\n" for each in (0, 1)]
        (self.folder / "hostfile").write_text("".join(lines))
        words = ["--hostfile", "hostfile", "--no_ssh", "--node_rank", str(host), "--master_addr", self.address(0)]
        return self.start(host, str(BIN / "deepspeed"), *words, "--module", "hooktrain", "train", "recipe.yaml")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need `ip` and root")
    try:
        with Hosts(tmp_path) as made:
            yield made
    except subprocess.CalledProcessError as problem:
        pytest.skip(f"network namespaces cannot be made here: {problem.stderr}")


def write(folder: Path, **changes: Any) -> None:
    recipe = {
        "type": "tiny",
        "run_dir": str(folder / "ranks"),
        "micro_batch_size": 2,
        "strategy": {"dtype": "fp32", "device": "cpu", "timeout": 20},
        "optimizer": {"type": "sgd", "lr": 0.1},
        "plugins": {"load": ["hooktrain.testing:TinyPlugin"]},
        "console": {"enabled": False},
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=90)
    return process.returncode, output


def assert_is_the_run_of_one_process(folder: Path, run_tiny: Any) -> None:
    recorder = Recorder()
    run_tiny(recorder, micro_batch_size=4, optimizer={"type": "sgd", "lr": 0.1})
    lines = [json.loads(line) for line in (folder / "ranks" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in recorder.metrics], abs=1e-6)


def test_each_host_has_a_local_rank_0(run_tiny, tmp_path):
    """The variables that launchers set on two hosts with a process each; the files are written by one of the two."""
    write(tmp_path)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common |= {"TORCHELASTIC_RESTART_COUNT": "0", "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "hooktrain", "train", "recipe.yaml"],
            env={**os.environ, **common, "RANK": str(host), "GROUP_RANK": str(host)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host in (0, 1)
    ]
    for code, output in map(ended, runs):
        assert code == 0, output
    assert_is_the_run_of_one_process(tmp_path, run_tiny)


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ["torchrun", "torchrun_by_number", "deepspeed"])
def test_two_hosts_are_one_global_batch(hosts, run_tiny, tmp_path, launcher):
    zero = {"type": "deepspeed", "zero_stage": 2, "dtype": "fp32", "device": "cpu"}
    write(tmp_path, **({"strategy": zero} if launcher == "deepspeed" else {}))
    runs = [getattr(hosts, launcher)(host) for host in (0, 1)]
    for code, output in map(ended, runs):
        assert code == 0, output
    assert_is_the_run_of_one_process(tmp_path, run_tiny)


DIES = """
import os
from hooktrain import hookimpl

@hookimpl
def on_step_start(trainer):
    if trainer.world.rank == 1 and trainer.global_step == 2:
        os.kill(os.getppid(), 9)
        os.kill(os.getpid(), 9)
"""


@pytest.mark.thorough
def test_a_host_that_is_lost_ends_the_other(hosts, tmp_path):
    (tmp_path / "dies.py").write_text(DIES)
    write(tmp_path, plugins={"load": ["hooktrain.testing:TinyPlugin", "dies"]})
    began = time.monotonic()
    runs = [hosts.torchrun(host) for host in (0, 1)]
    code, output = ended(runs[0])
    assert code != 0, output
    assert time.monotonic() - began < 80
    ended(runs[1])


FAILS = """
import os
from hooktrain import hookimpl

@hookimpl
def on_step_start(trainer):
    if trainer.world.rank == 1 and trainer.global_step == 2 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        raise RuntimeError("out of luck")
"""


@pytest.mark.thorough
def test_torchrun_restarts_a_run_that_resumes(hosts, run_tiny, tmp_path):
    """``--max-restarts`` starts all ranks of both hosts again when one has failed."""
    (tmp_path / "fails.py").write_text(FAILS)
    saves = {"type": "full", "save_every_n_steps": 1, "auto_resume": True}
    write(tmp_path, plugins={"load": ["hooktrain.testing:TinyPlugin", "fails"]}, checkpoint=saves)
    runs = [hosts.torchrun(host, "--max-restarts", "1") for host in (0, 1)]
    outputs = [ended(run) for run in runs]
    assert [code for code, _ in outputs] == [0, 0], outputs
    assert "out of luck" in outputs[1][1] + outputs[0][1]
    assert_is_the_run_of_one_process(tmp_path, run_tiny)


@pytest.mark.thorough
def test_the_launcher_of_deepspeed_on_one_host(tmp_path, run_tiny):
    """It says the local rank as an option, which is no trouble."""
    write(tmp_path, strategy={"type": "deepspeed", "zero_stage": 1, "dtype": "fp32", "device": "cpu"})
    words = ["--module", "hooktrain", "train", "recipe.yaml"]
    done = subprocess.run(
        [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(29000 + os.getpid() % 900), *words],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "ranks" / "plugins.json").read_text())["environment"]["world_size"] == 2
