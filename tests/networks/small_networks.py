"""Networks of a few layers, written where they are tested."""

import torch
from torch import nn


class Net(nn.Module):
    """Modules by name, and what to do with them."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module) if isinstance(module, nn.Module) else setattr(self, name, module)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def conv(a, b, k=1, **options):
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


def attention():
    """A transformer layer for inputs [n, 6, 16]; a cut replaces its attention by the operators."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    return nn.Sequential(nn.Linear(16, 24), layer, nn.Linear(24, 5)).eval()
