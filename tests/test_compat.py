"""Private names of Python and torch: an upgrade that changes one fails here, and not deep in a run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hooktrain import compat


def test_every_name_is_there():
    assert [name for name in compat.__all__ if not hasattr(compat, name)] == []


@pytest.mark.usefixtures("real_starts")
def test_torch_is_imported_by_the_first_name_of_it():
    code = "import sys, hooktrain.compat as c; print('torch' in sys.modules); c.tree_map; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split() == [
        b"False",
        b"True",
    ]


def test_popen_passes_what_the_fork_server_unpacks():
    given: list[tuple[object, ...]] = []

    def start(*arguments: object) -> int:
        given.append(arguments)
        raise OSError("not started")

    with compat.replaced_fork_exec(start), pytest.raises(OSError, match="not started"):
        subprocess.Popen([sys.executable, "-c", "pass"], cwd="/")
    ((words, executables, close_fds, _, cwd, env, *rest),) = given
    assert (words, executables, close_fds, cwd, env) == (
        [sys.executable, "-c", "pass"],
        (sys.executable.encode(),),
        True,
        "/",
        None,
    )
    assert len(rest) == 17


def test_tensors_share_a_storage():
    one = torch.zeros(4, device="meta")
    assert compat.storage_id(one) == compat.storage_id(one.view(2, 2)) != compat.storage_id(one.clone())


def test_a_subclass_of_tensor_says_what_it_wraps():
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert any(torch.equal(inner, torch.ones(5)) for inner in compat.inner_tensors(ragged))
    assert compat.inner_tensors(torch.ones(2)) == []


def test_writes_are_counted():
    one = torch.zeros(3)
    before = compat.version_of(one)
    assert compat.version_of(one.add_(1)) == before + 1
    assert compat.version_of(one) == compat.version_of(one.view(3, 1))
    assert compat.local_tensor(one) is one


def test_a_shard_is_the_local_tensor_and_a_write_to_it_is_counted():
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        made = DTensor.from_local(torch.zeros(4), mesh, [Shard(0)])
        local = compat.local_tensor(made)
        before = compat.version_of(made), compat.version_of(local)
        made.to_local().add_(1)
        assert type(local) is torch.Tensor
        assert compat.version_of(local) > before[1]
        made.add_(1)
        assert compat.version_of(made) > before[0]
    finally:
        dist.destroy_process_group()


def test_modes_see_nothing_of_what_is_done_without_them():
    seen = []

    class Mode(compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        with compat.without_modes():
            torch.ones(2)
        assert not seen
        torch.zeros(2)
    assert seen


def test_operations_are_seen():
    class Operations(compat.TorchDispatchMode):
        names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Operations():
        torch.ones(2)
    assert Operations.names == ["aten.ones.default"]
    tree = {"a": [torch.ones(1), 2]}
    assert compat.tree_leaves(tree)[1] == 2 and compat.tree_map(str, tree)["a"][1] == "2"
    assert len(compat.tree_flatten(tree)[0]) == 2


def test_frames():
    assert compat.caller_frame(1).f_code.co_name == "test_frames"
