"""Memory grows with the tokens of a packed batch, not with their square."""

from __future__ import annotations

import subprocess
import sys

MEMORY = """
import ctypes, torch, transformers
from hooktrain import document_keys
from hooktrain.bench.driver import peak_mib, restart_peak
from hooktrain_hf.attention import install_document_attention
ctypes.CDLL(None).mallopt(-3, 1_000_000)  # M_MMAP_THRESHOLD: what is freed goes back, and is not counted
torch.set_num_threads(1)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=1 << 15)
for family, more, longest in (("Llama", {}, 8192), ("Mistral", {"sliding_window": 512}, 8192),
        ("Gemma2", {"sliding_window": 512}, 1024)):
    config, kind = (getattr(transformers, family + name) for name in ("Config", "ForCausalLM"))
    model = kind(config(**sizes, **more))
    install_document_attention(model, "auto")
    model.train().gradient_checkpointing_enable(dict(use_reentrant=False))
    peak = []
    for tokens in (512, 4096, 8192):
        assert restart_peak()
        length = min(tokens, longest)
        positions = (torch.arange(tokens) % length)[None]
        batch = dict(input_ids=positions % 64, position_ids=positions, **document_keys([length] * (tokens // length)))
        model.model(**batch, use_cache=False).last_hidden_state.sum().backward()
        peak.append(round(peak_mib()))
        del batch, positions
    print(family, *peak, flush=True)
"""


def test_memory_grows_with_the_tokens() -> None:
    """Peaks in MiB of steps of 512, 4k and 8k tokens: 8k by 8k scores alone would take 256 MiB for a head."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout
    for line in lines:
        least, first, second = (int(size) for size in line.split()[1:])
        assert second - least < 2.5 * (first - least) + 30 and second - least < 80, line
