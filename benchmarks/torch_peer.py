"""The same networks as a PyTorch user would write them well: grouped convolutions, stock batch norm, autograd.

A `Network` takes a wiring and the weights of a `GatedResNeXt` and computes its function. The blocks of a module lie
side by side in the channels, so each of its layers is one grouped convolution; what the blocks read is one product of
the gates with the branches. For Fixed-Full, whose blocks read one sum, `norm="sum"` is ResNeXt as torchvision builds
it, with one batch norm of the summed blocks: nearly the same network, and the least that PyTorch needs for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from gated_resnext.architecture import Architecture, ModulePlan
from gated_resnext.connectivity import Connectivity

EPSILON, MOMENTUM = 1e-5, 0.1


class Gate(nn.Module):
    """x_j = ReLU((1/K) sum_k g_jk y_k): K inputs a block, drawn in training, the gates learned straight through.

    Args:
        blocks: C, of the module before.
        fan_in: K.
        sources: what each block reads where the wiring is fixed; None to learn it.
        last: whether the channels lie last in memory, which decides the faster product.
    """

    def __init__(self, blocks: int, fan_in: int, sources: Any, last: bool) -> None:
        super().__init__()
        self.blocks, self.fan_in, self.last = blocks, fan_in, last
        self.learns = sources is None
        if sources is None:
            self.real_gates = nn.Parameter(torch.full((blocks, blocks), 1.0 / blocks))
        else:
            weights = torch.zeros(len(sources), blocks)
            for block, inputs in enumerate(sources):
                weights[block, list(inputs)] = 1.0 / len(inputs)
            self.register_buffer("weights", weights)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        weights = self._drawn() / self.fan_in if self.learns else self.weights
        images, channels, height, width = y.shape
        filters = channels // self.blocks
        if self.last:
            flat = y.permute(0, 2, 3, 1).reshape(-1, self.blocks, filters)
            x = torch.matmul(weights, flat).reshape(images, height, width, -1).permute(0, 3, 1, 2)
        else:
            flat = y.reshape(images, self.blocks, -1)
            x = torch.matmul(weights, flat).reshape(images, -1, height, width)
        return functional.relu(x)

    def _drawn(self) -> torch.Tensor:
        real: Any = self.real_gates
        drawn = self.training
        chosen = torch.multinomial(real.detach(), self.fan_in) if drawn else real.topk(self.fan_in).indices
        binary = torch.zeros_like(real).scatter_(1, chosen, 1.0)
        return binary + real - real.detach()


class Module(nn.Module):
    """`blocks` bottlenecks side by side in the channels, and the shortcut that they share."""

    def __init__(self, plan: ModulePlan, blocks: int, inputs: int, together: str | None) -> None:
        super().__init__()
        self.blocks, self.together = blocks, together
        self.groups = inputs  # 1 where all blocks read the same
        narrow, wide = blocks * plan.width, blocks * plan.filters
        self.reduce = nn.Conv2d(inputs * plan.in_channels, narrow, 1, groups=inputs, bias=False)
        self.reduce_norm = _norm(narrow)
        self.conv = nn.Conv2d(narrow, narrow, 3, plan.stride, 1, groups=blocks, bias=False)
        self.conv_norm = _norm(narrow)
        if together == "sum":
            self.expand, self.expand_norm = nn.Conv2d(narrow, plan.filters, 1, bias=False), _norm(plan.filters)
        else:
            self.expand, self.expand_norm = nn.Conv2d(narrow, wide, 1, groups=blocks, bias=False), _norm(wide)
        self.shortcut: Any = None
        if plan.projects:
            project = nn.Conv2d(plan.in_channels, plan.filters, 1, plan.stride, bias=False)
            self.shortcut = nn.Sequential(project, _norm(plan.filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.relu(self.reduce_norm(self.reduce(x)))
        h = functional.relu(self.conv_norm(self.conv(h)))
        f = self.expand_norm(self.expand(h))
        if self.shortcut is not None:
            x = self._projected(x)
        if self.together == "block":
            return x + f.unflatten(1, (self.blocks, -1)).sum(1)
        if self.together is None and self.groups == 1:  # one input, blocks kept apart
            return (x.unsqueeze(1) + f.unflatten(1, (self.blocks, -1))).flatten(1, 2)
        return x + f

    def _projected(self, x: torch.Tensor) -> torch.Tensor:
        """The shortcut; its one kernel and one batch norm serve all blocks, which lie in the batch here."""
        if self.groups == 1:
            return self.shortcut(x)
        images, _, height, width = x.shape
        x = x.reshape(images * self.groups, -1, height, width)
        x = self.shortcut(x)
        return x.reshape(images, -1, *x.shape[-2:])


class Network(nn.Module):
    """A GateConnect network or ResNeXt for images (batch, 3, height, width), standardised.

    Args:
        architecture: its shape; aggregation "mean" or "shared".
        connectivity: the wiring; None to learn it.
        norm: for "shared", "block" normalises each block, as `GatedResNeXt` does, "sum" their sum.
        last: channels last in memory.
    """

    def __init__(
        self, architecture: Architecture, connectivity: Connectivity | None, norm: str = "block", last: bool = True
    ) -> None:
        super().__init__()
        self.architecture, self.norm, self.last = architecture, norm, last
        shared = architecture.aggregation == "shared"
        plans = architecture.plan()
        blocks = connectivity.blocks if connectivity else (architecture.cardinality,) * len(plans)
        self.stem = nn.Conv2d(architecture.input_shape[-1], architecture.stem_filters, 3, 1, 1, bias=False)
        self.stem_norm = _norm(architecture.stem_filters)
        gates, modules = [], []
        for index, plan in enumerate(plans):
            if index:
                sources = connectivity.sources[index - 1] if connectivity else None
                gates.append(nn.ReLU() if shared else Gate(blocks[index - 1], architecture.fan_in, sources, last))
            inputs = 1 if shared or not index else blocks[index]
            modules.append(Module(plan, blocks[index], inputs, norm if shared else None))
        self.gates, self.modules_ = nn.ModuleList(gates), nn.ModuleList(modules)
        self.classifier = nn.Linear(plans[-1].filters, architecture.classes)
        if last:
            self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem_norm(self.stem(images)))
        for index, module in enumerate(self.modules_):
            x = module(self.gates[index - 1](x) if index else x)
        if self.architecture.aggregation != "shared":
            x = x.unflatten(1, (self.modules_[-1].blocks, -1)).mean(1)
        return self.classifier(functional.relu(x).mean((2, 3)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, EPSILON, MOMENTUM)


def network(weights: dict[str, np.ndarray], architecture: Architecture, **options: Any) -> Network:
    """A `Network` with the weights of a `GatedResNeXt`, by their names there.

    Args:
        weights: what `GatedResNeXt.weights_by_name` gives.
        architecture: of both.
        options: of `Network`.
    """
    peer = Network(architecture, **options)
    with torch.no_grad():
        _copy_conv(peer.stem, weights["stem_conv/kernel"][None])
        _copy_norm(peer.stem_norm, weights, "stem_norm")
        for index, (plan, module) in enumerate(zip(architecture.plan(), peer.modules_, strict=True)):
            for part in ("reduce", "conv", "expand", "project"):
                if part != "project":
                    layer, norm = getattr(module, part), getattr(module, f"{part}_norm")
                elif module.shortcut is not None:
                    layer, norm = module.shortcut
                else:
                    continue
                kernel = weights[f"{plan.name}/{part}/kernel"]
                if part == "expand" and module.together == "sum":
                    layer.weight.copy_(torch.tensor(kernel.reshape(-1, kernel.shape[-1]).T[..., None, None]))
                    continue  # its batch norm is of another thing
                _copy_conv(layer, kernel if part == "conv" else kernel[:, None, None])
                _copy_norm(norm, weights, f"{plan.name}/{part}/norm")
            if index and getattr(peer.gates[index - 1], "real_gates", None) is not None:
                peer.gates[index - 1].real_gates.copy_(torch.tensor(weights[f"{plan.name}_gate/real_gates"]))
        peer.classifier.weight.copy_(torch.tensor(weights["classifier/kernel"].T))
        peer.classifier.bias.copy_(torch.tensor(weights["classifier/bias"]))
    return peer


def _copy_conv(layer: nn.Conv2d, kernel: np.ndarray) -> None:
    """From (blocks, height, width, in, out) to (blocks * out, in, height, width)."""
    blocks, height, width, inputs, outputs = kernel.shape
    layer.weight.copy_(torch.tensor(kernel.transpose(0, 4, 3, 1, 2).reshape(blocks * outputs, inputs, height, width)))


def _copy_norm(norm: nn.BatchNorm2d, weights: dict[str, np.ndarray], path: str) -> None:
    names = ("gamma", "weight"), ("beta", "bias"), ("moving_mean", "running_mean"), ("moving_variance", "running_var")
    for ours, theirs in names:
        getattr(norm, theirs).copy_(torch.tensor(weights[f"{path}/{ours}"].reshape(-1)))


class Step:
    """Training steps of the paper's SGD: momentum and L2 for the kernels, plain SGD for the gates, then projected.

    Args:
        network: what to train.
        compiled: whether `torch.compile` makes the forward and the backward pass.
    """

    def __init__(self, network: Network, compiled: bool = False, *, rate: float = 0.1, gate_rate: float = 0.2) -> None:
        gates = [gate.real_gates for gate in network.gates if getattr(gate, "real_gates", None) is not None]
        kernels = [weight for weight in network.parameters() if weight.dim() in (2, 4) and not _among(weight, gates)]
        others = [weight for weight in network.parameters() if weight.dim() == 1]
        self.network, self.gates = network, gates
        self.forward = torch.compile(network) if compiled else network
        self.optimizers = [
            torch.optim.SGD(
                [{"params": kernels, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}], rate, momentum=0.9
            )
        ]
        if gates:
            self.optimizers.append(torch.optim.SGD(gates, gate_rate))

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One step on standardised images; returns the loss."""
        self.network.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(self.forward(images), labels)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for gate in self.gates:
                gate.clamp_(0, 1)
                gate /= gate.sum(1, keepdim=True)
        return loss.detach()


def _among(weight: torch.Tensor, gates: list[torch.Tensor]) -> bool:
    return any(weight is gate for gate in gates)


def standardized(pixels: np.ndarray, mean_image: np.ndarray, last: bool = True) -> torch.Tensor:
    """Pixels (batch, height, width, channels) as the network takes them."""
    images = torch.tensor((pixels - np.float32(mean_image)) / np.float32(255.0)).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
