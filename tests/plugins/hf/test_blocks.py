"""What the blocks of a model keep, tile and compile: the same numbers, and what is refused."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hooktrain_hf.activation_offload import HostActivations
from hooktrain_hf.attention import expect_compiled_blocks
from hooktrain_hf.block_settings import Compilation
from hooktrain_hf.compat import unwrap_adapters
from hooktrain_hf.compiled_blocks import compile_blocks, counted_since_compiling
from hooktrain_hf.documents_op import _described
from hooktrain_hf.model import HFModelConfig, build_model
from hooktrain_hf.tiled_mlp import tile_mlps
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hooktrain import ModelError, RecipeError, World
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.plugins.hf.attention.families import FAMILIES, LENGTHS, documents, flat, gradients, logits, make, pair

TWICE = {"sequence_parallel": 2, "device": "cpu"}
CUDA = {"device": "cuda"}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"activation_checkpointing": "some"}, {}, ["model.activation_checkpointing", "'some'", "full, selective"]),
    ({"activation_checkpointing": {"each": 2}}, {}, ["model.activation_checkpointing", "'each'", "{every: 2}"]),
    ({"activation_checkpointing": {"every": 0}}, {}, ["model.activation_checkpointing", "every: 0", "from 1 on"]),
    ({"activation_checkpointing": {"ops": ["mn"]}}, {}, ["model.activation_checkpointing.ops", "'mn'", "mm"]),
    ({"activation_offload": True}, CUDA, ["model.activation_offload", "false", "activation_checkpointing: true"]),
    (
        {"activation_offload": True, "activation_checkpointing": "selective"},
        CUDA,
        ["model.activation_offload", "selective", "activation_checkpointing: true"],
    ),
    (
        {"activation_offload": True, "activation_checkpointing": True},
        {"device": "cpu"},
        ["model.activation_offload", "strategy.device: cpu", "remove"],
    ),
    ({"tiled_mlp": 0}, {}, ["model.tiled_mlp", "given 0", "from 1 on"]),
    ({"tiled_mlp": True}, {"type": "deepspeed", "zero_stage": 3}, ["model.tiled_mlp", "gathers", "zero_stage: 2"]),
    ({"compile": True}, {"type": "deepspeed", "zero_stage": 3}, ["model.compile", "gathers", "zero_stage: 2"]),
    ({"compile": "blocks"}, TWICE, ["model.compile", "blocks", "sequence_parallel", "remove"]),
    ({"compile": True, "tiled_mlp": True}, {}, ["model.compile", "model.tiled_mlp", "remove"]),
    (
        {"compile": True, "activation_checkpointing": True, "activation_offload": True},
        CUDA,
        ["model.compile", "model.activation_offload", "remove"],
    ),
    ({"compile": {"mode": "reduce-overhead"}}, {}, ["model.compile", "mode", "max-autotune-no-cudagraphs"]),
    ({"compile": {"modes": 1}}, {}, ["model.compile", "modes", "'mode'"]),
]


@pytest.mark.parametrize(("model", "strategy", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_weights_are_read(
    run_chat: Any, tmp_path: Path, model: dict[str, Any], strategy: dict[str, Any], message: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        run_chat(model={"name_or_path": str(tmp_path / "nowhere"), **model}, strategy=strategy)
    assert re.search(facts(*message), str(caught.value))


def test_a_missing_compiler_is_named(run_chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"name_or_path": str(tmp_path / "nowhere")}
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RecipeError, match=facts("model.compile", "'no-such-compiler'", "apt-get install g++", "CXX")):
        run_chat(model={**model, "compile": True})
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match=facts("model.compile", "'g++'", "apt-get install g++")):
        run_chat(model={**model, "compile": True})


def test_offload_without_a_gpu_is_refused_before_weights_are_read(run_chat: Any, config_of: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model = {"activation_offload": True, "activation_checkpointing": True}
    with pytest.raises(ModelError, match=facts("model.activation_offload", "without a GPU", "remove")):
        run_chat(model={"name_or_path": config_of("Llama"), **model}, strategy={})


@pytest.mark.parametrize(
    ("family", "reason"), [("Qwen3Moe", "Qwen3MoeSparseMoeBlock"), ("Mixtral", "experts"), ("OPT", "no block")]
)
def test_models_without_an_mlp_to_tile_are_refused_before_weights_are_read(
    config_of: Any, family: str, reason: str
) -> None:
    with pytest.raises(ModelError, match=facts("model.tiled_mlp", family, reason, "activation_checkpointing: true")):
        build_model(HFModelConfig(name_or_path=config_of(family), tiled_mlp=True), None, World())


@pytest.fixture
def config_of(tmp_path: Path, tiny_llama: Path) -> Any:
    """Writes a folder with a tokenizer and the config of a family, and no weights."""

    def write(family: str) -> str:
        folder = tmp_path / f"config-of-{family}"
        make_tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
        make_tokenizer.save_pretrained(folder)
        getattr(transformers, f"{family}Config")(**FAMILIES[family][1]).save_pretrained(folder)
        return str(folder)

    return write


# ------------------------------------------------------------------------------------------------------ recomputing


class _Kept:
    """The bytes that autograd has saved since it was entered, each storage once."""

    def __enter__(self) -> _Kept:
        self.storages: dict[int, Any] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        self.storages[id(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    def __exit__(self, *problem: Any) -> None:
        self._hooks.__exit__(*problem)

    @property
    def size(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


def test_every_kind_of_recomputation_is_bit_equal(run_chat: Any, tiny_llama: Path) -> None:
    """And keeps what it says: inputs of blocks, of half of them, or the results of matrix products as well."""
    calls: dict[str, int] = {}
    found: dict[str, list[Any]] = {}
    kinds = [False, True, "full", "selective", {"every": 2}, {"ops": ["mm"]}]
    for kind in kinds:
        recorder, seen = Recorder(), []

        def count(module: Any, *_: Any, seen: list[Any] = seen) -> None:
            seen.append(module)

        with pytest.MonkeyPatch.context() as patch:
            norm = transformers.models.llama.modeling_llama.LlamaRMSNorm
            forward = norm.forward
            patch.setattr(
                norm, "forward", lambda self, x, forward=forward, count=count: (count(self), forward(self, x))[1]
            )
            run_chat(
                recorder, model={"name_or_path": str(tiny_llama), "activation_checkpointing": kind}, eval_interval=0
            )
        calls[str(kind)] = len(seen)
        found[str(kind)] = [(line["loss"], line["grad_norm"]) for line in recorder.metrics if "loss" in line]
    assert all(lines == found["False"] and lines for lines in found.values())
    assert calls["True"] == calls["full"] == calls["selective"] == calls["{'ops': ['mm']}"]
    # 4 steps; two norms in each of two blocks, of which half are recomputed
    assert calls["True"] - calls["False"] == 2 * (calls["{'every': 2}"] - calls["False"]) == 16


class _Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def test_kept_results_are_not_computed_again(tiny_llama: Path) -> None:
    counts = {}
    for kind in (True, "selective"):
        config = HFModelConfig(name_or_path=str(tiny_llama), activation_checkpointing=kind)
        model = build_model(config, None, World()).train()
        ids = torch.arange(24)[None] + 5
        loss = model(ids, labels=ids, use_cache=False).loss
        with _Products() as products:
            loss.backward()
        counts[kind] = products.count
    assert (
        counts[True] - counts["selective"] == 2 * 6
    )  # in two blocks all but the last one, which nothing in its block needs


def test_moved_activations_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(32, 32, requires_grad=True), torch.randn(64, 32)
    host = HostActivations("cpu", least=1024)

    def block(states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(states @ weight) @ weight

    def loss(offloaded: bool) -> torch.Tensor:
        states = inputs
        for _ in range(3):
            if offloaded:
                with host.hooks():
                    states = checkpoint(block, states, use_reentrant=False)  # type: ignore[assignment]
            else:
                states = block(states)
        return states.square().mean()

    (expected,) = torch.autograd.grad(loss(False), weight)
    for _ in range(2):
        made = loss(True)
        for kept in (True, False):
            (found,) = torch.autograd.grad(made, weight, retain_graph=kept)
            assert torch.equal(found, expected)
    assert host.moved == 2 * 3 * inputs.numel() * 4 and host.stayed == 0


# ----------------------------------------------------------------------------------------------------------- tiles

PER_TOKEN = (
    "Llama",
    "Gemma2",
    "Phi",
    "Phi3",
    "GPTNeoX",
    "GPT2",
    "Cohere",
    "Olmo2",
    "Starcoder2",
    "MiniCPM3",
    "StableLm",
)


@pytest.mark.parametrize("family", PER_TOKEN)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_tiles_give_the_same_gradients(family: str, checkpointing: bool) -> None:
    whole = make(family, FAMILIES[family][1]).train()
    tiled = copy.deepcopy(whole)
    tile_mlps(tiled, 7)
    if checkpointing:
        tiled.gradient_checkpointing_enable({"use_reentrant": False})
    batch = {"input_ids": torch.arange(2 * 20).view(2, 20) + 3}
    found = []
    for model in (whole, tiled):
        torch.manual_seed(1)
        with _Kept() as kept:
            made = logits(model, batch)
        made.square().mean().backward()
        found.append((made.detach(), gradients(model), kept.size))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-5)
    assert found[1][2] < found[0][2]


def test_a_run_with_tiles_and_an_adapter(run_chat: Any, tiny_llama: Path) -> None:
    pytest.importorskip("peft")
    found = []
    for tile in (False, 16):
        recorder = Recorder()
        model = {"name_or_path": str(tiny_llama), "tiled_mlp": tile, "activation_checkpointing": bool(tile)}
        run_chat(recorder, model=model, peft={"type": "lora", "r": 4, "target_modules": "all-linear"})
        found.append([line["loss"] for line in recorder.metrics if "loss" in line])
    assert found[1] == pytest.approx(found[0], rel=1e-5) and found[0][-1] < found[0][0]


# --------------------------------------------------------------------------------------------------------- compiled

EAGER = {"backend": "eager"}


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma2", "Gemma3", "Mistral", "GptOss", "DeepseekV3", "GPT2"])
def test_the_operator_attends_as_documents_one_by_one(family: str) -> None:
    """Grouped keys, windows, soft caps, sinks and latent attention; outside of graphs, where it is the same operator."""
    model, _ = pair(family)
    texts, found = flat(documents(LENGTHS)), []
    for other in (False, True):
        mine = copy.deepcopy(model)
        if other:
            expect_compiled_blocks(mine)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("hooktrain_hf.attention._one_by_one", None)  # nothing else may compute it
                made = logits(mine, texts)
        else:
            made = logits(mine, texts)
        made.square().mean().backward()
        found.append((made.detach(), gradients(mine)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-6)
    del made
    gc.collect()
    assert not _described  # documents are forgotten with what was computed from them


def ragged(tmp_path: Path, count: int = 40) -> str:
    """Write conversations of very different lengths."""
    rows = tmp_path / "ragged.jsonl"
    words = "What is the answer? The answer is yes, no or both. "
    with rows.open("w") as file:
        for number in range(count):
            answer = (words * 4)[: 7 + (number * 37) % 150]
            file.write(
                json.dumps(
                    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]}
                )
                + "\n"
            )
    return str(rows)


SHAPES: dict[str, dict[str, Any]] = {
    "packed": {"max_length": 128, "pack_samples": True, "overflow": "truncate"},
    "padding-free": {"max_length": 128, "overflow": "truncate"},
}


def compiled_run(run_chat: Any, tmp_path: Path, shape: str, steps: int, compiled: Any, **more: Any) -> Any:
    recorder = Recorder()
    changes = {key: value for key, value in more.items() if key != "model"}
    trainer = run_chat(
        recorder,
        **{
            "model": {"compile": compiled, **more.get("model", {})},
            "data": {"sources": [ragged(tmp_path)], "eval_sources": [], **SHAPES[shape]},
            "micro_batch_size": 1 if shape == "packed" else 3,
            "train_iters": steps,
            "log_interval": 1,
            "run_dir": str(tmp_path / f"{shape}-{bool(compiled)}"),
            **changes,
        },
    )
    return trainer, [line for line in recorder.metrics if "loss" in line]


def test_documents_of_any_length_need_no_new_graph(run_chat: Any, tmp_path: Path, tiny_llama: Path) -> None:
    model = {"name_or_path": str(tiny_llama)}
    export = {"checkpoint": [{"type": "huggingface", "save_end_of_training": True}]}
    _, expected = compiled_run(run_chat, tmp_path, "padding-free", 8, False, model=model)
    trainer, found = compiled_run(run_chat, tmp_path, "padding-free", 8, EAGER, model=model, **export)
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], rel=1e-4)
    assert found[0]["compiled_graphs"] > 0 and "compiled_graphs" not in expected[0]
    assert found[-1]["compiled_graphs"] == found[1]["compiled_graphs"] and found[-1]["late_recompilations"] == 0
    assert not [text for text in trainer.host.warnings if "model.compile" in text]
    with safe_open(tmp_path / "padding-free-True" / "export" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    with safe_open(tiny_llama / "model.safetensors", "pt") as file:
        assert names == set(file.keys())


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "full": {"activation_checkpointing": True},
    "selective": {"activation_checkpointing": "selective"},
    "every": {"activation_checkpointing": {"every": 2}},
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "lora", "autocast"),
    [*itertools.product(KINDS, (False, True), (False,)), ("plain", False, True), ("selective", True, True)],
)
def test_fifty_ragged_steps_need_no_new_graph(tiny_llama: Path, kind: str, lora: bool, autocast: bool) -> None:
    """Packs and padding-free batches, which are one sequence each, of other documents in each step; no graph breaks."""
    models: list[Any] = []
    for compiled in (False, {"backend": "aot_eager"}):
        config = HFModelConfig(name_or_path=str(tiny_llama), compile=compiled, **KINDS[kind])
        model: Any = build_model(config, None, World()).train()
        if lora:
            peft = pytest.importorskip("peft")
            torch.manual_seed(0)
            adapter = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
            model = peft.get_peft_model(model, adapter)
        models.append(model)
    graphs = []
    for step in range(50):
        lengths = [1 + (step * 7 + number * 5) % 19 for number in range(2 + step % 4)]
        losses = []
        for model in models:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = model(**flat(documents(lengths, seed=step)), use_cache=False).logits
            losses.append(found.float().square().mean())
            losses[-1].backward()
        assert float(losses[1]) == pytest.approx(float(losses[0]), rel=5e-2 if autocast else 1e-4)
        count, breaks = counted_since_compiling(unwrap_adapters(models[1]))
        graphs.append(count)
        assert not breaks
    assert 0 < graphs[1] == graphs[-1]
    expected, made = (gradients(model) for model in models)
    for name, gradient in expected.items():  # in bf16 both are about as far from float32
        assert float((made[name] - gradient).norm()) <= (0.3 if autocast else 1e-3) * float(gradient.norm()), name


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["Qwen2", "Gemma2", "Gemma3", "Mistral", "Phi3", "GPTNeoX", "Olmo2", "DeepseekV3"])
def test_blocks_of_every_family_are_one_graph(family: str) -> None:
    model = copy.deepcopy(pair(family)[0]).train()
    compile_blocks(model, Compilation(backend="aot_eager"))
    expect_compiled_blocks(model)
    for step in range(4):
        logits(model, flat(documents([1 + (step * 7 + number * 5) % 19 for number in range(4)]))).sum().backward()
        if step == 1:
            before, _ = counted_since_compiling(model)
    graphs, breaks = counted_since_compiling(model)
    assert graphs == before > 0 and not breaks


@pytest.mark.thorough
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sharded_ranks_need_no_new_graph(
    run_ranks: Any, run_chat: Any, chat_recipe: dict[str, Any], tmp_path: Path, checkpointing: bool
) -> None:
    """Two ranks of FSDP2 learn what one process does without compiling; the names of an export are plain."""
    rows = ragged(tmp_path)
    settings = {
        **chat_recipe,
        "model": {**chat_recipe["model"], "activation_checkpointing": checkpointing},
        "data": {"sources": [rows], **SHAPES["padding-free"]},
        "train_iters": 12,
        "log_interval": 1,
        "checkpoint": [{"type": "huggingface", "save_end_of_training": True}],
    }
    recorder = Recorder()
    run_chat(recorder, **{**settings, "micro_batch_size": 4})
    ranks = {
        **settings,
        "model": {**settings["model"], "compile": {"backend": "eager"}},
        "strategy": {"data_parallel": "fsdp2", "dtype": "fp32", "device": "cpu"},
        "micro_batch_size": 2,
        "run_dir": str(tmp_path / "ranks"),
    }
    two = run_ranks(2, "", **ranks)
    assert two.status == 0, two.output
    expected = [line["loss"] for line in recorder.metrics if "loss" in line]
    assert [line["loss"] for line in two.metrics] == pytest.approx(expected, rel=1e-3)
    assert two.metrics[1]["compiled_graphs"] == two.metrics[-1]["compiled_graphs"] > 0
    assert "model.compile" not in two.output
    names = []
    for folder in (tmp_path / "run", tmp_path / "ranks"):
        with safe_open(folder / "export" / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]
