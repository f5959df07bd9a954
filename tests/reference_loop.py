"""Forty plain lines of PyTorch that the engine must match bit by bit on a CPU."""

import torch

from hooktrain.testing import TinyDataConfig, TinyModel, TinyModelConfig, TinyPlugin


def reference(data, model, *, micro, accumulation, epochs, lr, seed=42, clip=1.0, max_steps=None):
    """Train as the recipe says; returns the loss of each step and the trained model."""
    rows = TinyPlugin().make_data(TinyDataConfig(**data), None)
    torch.manual_seed(seed)
    net = TinyModel(TinyModelConfig(**model))
    torch.manual_seed(seed)  # the engine seeds dropout anew once the parts are built
    matrices = [p for p in net.parameters() if p.dim() >= 2]
    vectors = [p for p in net.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(len(rows.train), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for window in order.split(micro * accumulation):
            batches = [rows.collate([rows.train.rows[i] for i in share]) for share in window.split(micro)]
            count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
            total = torch.zeros(())
            for batch in batches:
                logits = net(batch["input_ids"])[:, :-1]
                summed = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
                )
                (summed / count).backward()
                total += summed.detach()
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(total) / count)
            if len(losses) == max_steps:
                return losses, net
    return losses, net
