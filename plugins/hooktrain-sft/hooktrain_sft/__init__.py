"""Supervised fine-tuning for hooktrain: chat rows to masked tokens, packing, batches and the loss.

For plugins that render or pack: :class:`hooktrain_sft.chat.render.Rendered` and
:class:`hooktrain_sft.data.packing.Bins`.
"""
