"""The vision tower's layers and the projector in their fused CPU form.

Legend: N images, T their patches and the class token, C hidden size.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from llava_batch.engine.kernels import cpu, cpu_whole
from llava_batch.engine.kernels.cpu_linear import PackedLinear, PanelLinear, linear
from llava_batch.engine.kernels.interface import HARMLESS, refuse_unknown
from llava_batch.engine.passes import Rows

GELUS = {"GELUActivation": "none", "GELUTanh": "tanh"}
"""oneDNN's names of those activations. Within a product each entry is computed alike; torch's own takes
one way for whole vectors and another for what is left of a thread's share."""


MOST_PATCHES = 1280
"""In one call of several layers: no signal is heard before it is over, and of more the call's own cost is nothing."""


class FusedClipEmbeddings(nn.Module):  # type: ignore[misc]
    """Patches and the class token, positions added: one product, in which the class token is a patch of zeros."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        weight = embeddings.patch_embedding.weight.detach()
        self.image_size, self.patch_size = embeddings.image_size, embeddings.patch_size
        product = nn.Linear(weight[0].numel(), len(weight), bias=False, device="meta")
        product.weight = nn.Parameter(weight.flatten(1), requires_grad=False)
        self.product = linear(product)
        added = embeddings.position_embedding.weight.detach().clone()
        added[0] += embeddings.class_embedding.detach()
        self.added = added
        """`[T, C]`: what is added to each."""

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """`[N, 3, H, W]` -> `[N, T, C]`."""
        if interpolate_pos_encoding:
            raise ValueError("interpolate_pos_encoding is asked for, which is not implemented")
        images, channels, *size = pixel_values.shape
        if size != [self.image_size] * 2:
            raise ValueError(f"pixels are {size}, must be {[self.image_size] * 2}")
        side, patch = self.image_size // self.patch_size, self.patch_size
        parts = pixel_values.view(images, channels, side, patch, side, patch)
        patches = pixel_values.new_zeros(images, 1 + side**2, channels * patch**2)
        to = patches[:, 1:].view(images, side, side, channels, patch, patch)
        to.copy_(parts.permute(0, 2, 4, 1, 3, 5))
        return self.product(patches, residual=self.added.expand(images, -1, -1))


class FusedClipAttention(nn.Module):  # type: ignore[misc]
    """The tower's attention, over all of an image's patches."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv = linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = linear(attention.out_proj)
        self.scaling, self.head_dim = attention.scale, attention.head_dim

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **more: object,
    ) -> tuple[torch.Tensor, None]:
        """`[N, T, C]` -> `[N, T, C]`."""
        refuse_unknown(self, attention_mask, more.keys() - HARMLESS)
        batch, length, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, length, 3, -1, self.head_dim)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        every = Rows(slots=tuple(range(batch)), past=(0,) * batch, new=(length,) * batch)
        mixed = cpu.attend(
            query,
            key.transpose(1, 2),
            value.transpose(1, 2),
            every,
            scaling=self.scaling,
            causal=False,
        )
        return self.out(mixed.view(batch, length, width)), None


class FusedClipMLP(nn.Module):  # type: ignore[misc]
    """The tower's feed-forward with quick-GELU within its first product."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(mlp.fc1), linear(mlp.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., C]`."""
        return self.fc2(self.fc1(x, "quick_gelu"))


class FusedGelu(nn.Module):  # type: ignore[misc]
    """Two linear layers and a gelu between them: LLaVA's projector, SigLIP's feed-forward."""

    def __init__(self, first: nn.Linear, gelu: nn.Module, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = PackedLinear(first), linear(second)
        self.form = GELUS[type(gelu).__name__]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` -> `[..., C]`."""
        return self.second(self.first.product(x, "gelu", self.form))


class FusedClipLayer(CLIPEncoderLayer):  # type: ignore[misc]
    """A layer of CLIP's tower, whose parts are fused, in one call that does not call them.

    Of transformers' class, and with the layer's forward hooks: by these it hands out the hidden states that are asked for.
    """

    def __init__(self, layer: Any, whole: cpu_whole.ClipLayer) -> None:
        nn.Module.__init__(self)  # transformers' own would make the parts anew
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.layer_norm1, self.layer_norm2 = layer.layer_norm1, layer.layer_norm2
        self._forward_hooks.update(layer._forward_hooks)
        self.whole, self.call = whole, cpu_whole.ClipLayers([whole])

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **more: object,
    ) -> torch.Tensor:
        """`[N, T, C]` -> `[N, T, C]`."""
        refuse_unknown(self, attention_mask, more.keys() - HARMLESS)
        return self.call(hidden_states)


class FusedClipEncoder(nn.Module):  # type: ignore[misc]
    """The layers of CLIP's tower, which are all fused: several in one call, or one by one where patches are many or any
    layer has a forward hook, as those of a model have that was asked for hidden states once."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.layers = encoder.layers
        wholes = [layer.whole for layer in self.layers]
        self.calls = [cpu_whole.ClipLayers(part) for part in cpu_whole.in_calls(wholes)]

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **more: object,
    ) -> BaseModelOutput:
        """`[N, T, C]` -> `[N, T, C]`."""
        refuse_unknown(self, attention_mask, more.keys() - HARMLESS)
        hidden = inputs_embeds
        are_heard = any(layer._forward_hooks for layer in self.layers)
        are_many = hidden.shape[:2].numel() > MOST_PATCHES
        for part in self.layers if are_heard or are_many else self.calls:
            hidden = part(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


def whole_layer(layer: Any) -> cpu_whole.ClipLayer | None:
    """What one call computes a CLIPEncoderLayer from, whose parts are fused; None where it cannot."""
    attention, mlp = layer.self_attn, layer.mlp
    if not (isinstance(attention, FusedClipAttention) and isinstance(mlp, FusedClipMLP)):
        return None
    products = (attention.qkv, attention.out, mlp.fc1, mlp.fc2)
    if not all(isinstance(part, PanelLinear) for part in products):
        return None
    qkv, out, up, down = (part.weight for part in products)
    before, behind = (
        cpu.LayerNorm(norm.weight.detach(), norm.bias.detach(), norm.eps)
        for norm in (layer.layer_norm1, layer.layer_norm2)
    )
    num_heads = out.inner // attention.head_dim
    made = cpu_whole.ClipLayer(before, qkv, out, behind, up, down, num_heads, attention.scaling)
    return made if made.fits else None
