"""``hooktrain chat``: a conversation with a run, a checkpoint, an export or an adapter."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hooktrain_hf.samples import answer

from hooktrain import HooktrainError
from hooktrain.cli.main import cli
from tests.facts import facts

Run = Callable[..., Any]
SAVES = [{"type": "full", "save_end_of_training": True}, {"type": "huggingface", "save_end_of_training": True}]


def chat(lines: str, *words: object) -> list[str]:
    """Pipe lines to the command; returns what it prints."""
    result = CliRunner().invoke(
        cli, ["chat", *map(str, words), "--max-new-tokens", "8"], input=lines, catch_exceptions=True
    )
    assert result.exit_code == 0, result.exception
    return result.stdout.splitlines()


@pytest.fixture
def trained(run_chat: Run) -> Any:
    """A run that has learned to answer, with its checkpoint and export."""
    return run_chat(checkpoint=SAVES, train_iters=30)


def test_each_line_of_a_pipe_is_answered(trained: Any) -> None:
    """By the run, its checkpoint and its export alike; the conversation goes on until it is reset."""
    expected = answer(trained.model, trained.tokenizer, "What is the answer?", max_new_tokens=8)
    assert expected
    told = answer(trained.model, trained.tokenizer, "What is the answer?", system="No.", max_new_tokens=8)
    lines = "What is the answer?\n/reset\nWhat is the answer?\n/system No.\nWhat is the answer?\n"
    for source in (trained.run_dir, trained.run_dir / "checkpoints/step-00000030", trained.run_dir / "export"):
        said = [line.strip() for line in chat(lines, source)]
        assert said == [expected, expected, told]
    two = chat("What is the answer?\nWhat is the answer?\n", trained.run_dir)
    tokenizer = trained.tokenizer
    messages = [{"role": "user", "content": "What is the answer?"}]
    messages += [{"role": "assistant", "content": two[0].strip()}, messages[0]]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    from hooktrain_hf.generation import generate

    from hooktrain import GenerationSettings

    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    (made,) = generate(trained.model, tokenizer, [ids], GenerationSettings(max_new_tokens=8))
    assert two[1].strip() == tokenizer.decode(made, skip_special_tokens=True).strip(), "the first turn was seen"


def test_an_adapter_answers_on_its_base(run_chat: Run) -> None:
    trainer = run_chat(checkpoint=SAVES[1:], train_iters=20, peft={"type": "lora", "r": 4})
    expected = answer(trainer.model, trainer.tokenizer, "What is the answer?", max_new_tokens=8)
    for source in (trainer.run_dir, trainer.run_dir / "export"):
        assert [line.strip() for line in chat("What is the answer?\n", source)] == [expected]


def test_drawn_answers_repeat_with_their_seed(trained: Any) -> None:
    words = (trained.run_dir, "--temperature", "2")
    one, same, other = (chat("What is the answer?\n", *words, "--seed", seed) for seed in (1, 1, 2))
    assert one == same != other


def test_what_is_no_model_and_what_cannot_be_answered_is_named(trained: Any, tmp_path: Path) -> None:
    def refused(lines: str, *words: object) -> str:
        result = CliRunner().invoke(cli, ["chat", *map(str, words)], input=lines, catch_exceptions=True)
        assert isinstance(result.exception, HooktrainError), result.output
        return str(result.exception)

    assert re.search(facts(f"'{tmp_path / 'nowhere'}'", "exist"), refused("x\n", tmp_path / "nowhere"))
    assert re.search(facts(f"'{tmp_path}'", "no run"), refused("x\n", tmp_path))
    assert re.search(facts("--device", "'cuda:77'", "cpu"), refused("x\n", trained.run_dir, "--device", "cuda:77"))
    template = ("-o", 'tokenizer.chat_template="{{ raise_exception(42) }}"')
    assert re.search(facts("chat", "template", "42", "/reset"), refused("x\n", trained.run_dir, *template))


START = "import os, sys; os.close(os.open(sys.argv.pop(1), os.O_RDWR));from hooktrain.cli.main import main; main()"


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, *words: object) -> None:
        self.main, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, os.ttyname(inner), "chat", *map(str, words)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,  # which takes the first terminal that it opens for its own
            env={**os.environ, "TERM": "dumb", "HF_HUB_OFFLINE": "1"},
        )
        os.close(inner)
        self.text = ""

    def until(self, pattern: str) -> str:
        """Read until something is printed; returns what was printed since the last call."""
        deadline = time.monotonic() + 90
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, self.text
            if select.select([self.main], [], [], 1)[0]:
                try:
                    self.text += os.read(self.main, 4096).decode(errors="replace")
                except OSError:  # the other side is closed
                    break
        assert found, self.text
        seen, self.text = self.text[: found.end()], self.text[found.end() :]
        return seen

    def write(self, text: str) -> None:
        os.write(self.main, text.encode())


def test_a_terminal_streams_stops_and_quits(tiny_llama: Path, tmp_path: Path) -> None:
    """Ctrl-C stops an answer that would never end, another question is answered, and Ctrl-D ends with status 0."""
    model = tmp_path / "endless"
    from hooktrain.testing.tiny_llama import make_llama, make_tokenizer

    tokenizer = make_tokenizer()
    made = make_llama(tokenizer, max_position_embeddings=100_000)
    made.save_pretrained(model)
    tokenizer.save_pretrained(model)
    terminal = Terminal(
        model,
        "--max-new-tokens",
        "90000",
        "--temperature",
        "100",
        "-o",
        "tokenizer.chat_template=\"{{ messages[-1]['content'] }}\"",
    )
    try:
        terminal.until("/reset .*\n")
        terminal.until("> ")
        terminal.write("What?\n")
        terminal.until("What\\?\r\n.")
        terminal.write("\x03")
        terminal.until("stopped")
        terminal.until("> ")
        terminal.write("/reset\n")
        terminal.until("> ")
        terminal.write("/nothing\n")
        assert "no command is named '/nothing'" in terminal.until("> ")
        terminal.write("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
            terminal.process.wait()
        os.close(terminal.main)


ECHO = """
import attrs
import torch
from hooktrain import hookimpl


@attrs.frozen(kw_only=True)
class Config:
    pass


@hookimpl
def register_configs():
    return {"model": {"echo": Config}}


@hookimpl
def describe_model(source):
    return {"model": {"type": "echo"}} if source == "echo" else None


@hookimpl
def make_model(config):
    return torch.nn.Identity() if isinstance(config, Config) else None


@hookimpl
def stream_answer(model, messages):
    if not isinstance(model, torch.nn.Identity):
        return None
    return (f"{message['role']}: {message['content']};" for message in messages)
"""


def test_a_strangers_model_talks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is found by a word of its own, and needs neither tokenizer nor transformers."""
    (tmp_path / "echo_chat_model.py").write_text(ECHO)
    monkeypatch.syspath_prepend(str(tmp_path))
    said = chat("one\ntwo\n", "echo", "-p", "echo_chat_model", "--system", "Be kind.")
    assert said == [
        "system: Be kind.;user: one;",
        "system: Be kind.;user: one;assistant: system: Be kind.;user: one;;user: two;",
    ]
