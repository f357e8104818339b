import copy

import pytest
import torch
from small_networks import Net, conv
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import cdlib
from cdlib import CdlibError, find_groups, remove, zero
from cdlib.surgery.removal import rewritten


def random(model):
    """The model in float64 with random weights and statistics."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.2, 1.0) if tensor.dim() < 2 else tensor.data.normal_(std=0.5)
    return model.double().eval()


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def small_cnn():
    layers = [conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, 3, groups=8), conv(8, 6), nn.ReLU()]
    return random(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)))


def assert_same(a, b, tolerance=1e-12):
    assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_removal_is_slicing_the_tensors(small_cnn):
    small = remove(small_cnn, find_groups(small_cnn, images(1, 3, 8, 8)), {"0": [1, 6], "4": [0]})
    keep, rest = [0, 2, 3, 4, 5, 7], [1, 2, 3, 4, 5]
    assert torch.equal(small[0].weight, small_cnn[0].weight[keep])
    assert torch.equal(small[1].running_var, small_cnn[1].running_var[keep])
    assert torch.equal(small[3].weight, small_cnn[3].weight[keep])
    assert torch.equal(small[4].weight, small_cnn[4].weight[rest][:, keep])
    assert torch.equal(small[8].weight, small_cnn[8].weight[:, 4:])


def test_zeroed_and_cut_networks_compute_the_same(small_cnn):
    x, drop = images(4, 3, 8, 8), {"0": [1, 6], "4": [0, 2]}
    groups = find_groups(small_cnn, x)
    zeroed, small = zero(small_cnn, groups, drop), remove(small_cnn, groups, drop)
    assert_same(small(x), zeroed(x))
    assert (zeroed(x) - small_cnn(x)).abs().max() > 1e-3
    assert (remove(small_cnn, groups, {"0": [1, 5], "4": [0, 2]})(x) - zeroed(x)).abs().max() > 1e-3


def test_only_the_own_slices_become_zero(small_cnn):
    zeroed = zero(small_cnn, find_groups(small_cnn, images(1, 3, 8, 8)), {"0": [1]})
    changed = {name for name, t in zeroed.state_dict().items() if not torch.equal(t, small_cnn.state_dict()[name])}
    assert changed == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert zeroed[0].weight[1].abs().max() == 0
    assert torch.equal(zeroed[4].weight, small_cnn[4].weight)


def test_attributes_follow(small_cnn):
    small = remove(small_cnn, find_groups(small_cnn, images(1, 3, 8, 8)), {"0": [1, 6], "4": [0]})
    text = repr(small)
    assert (small[0].in_channels, small[0].out_channels) == (3, 6)
    assert small[1].num_features == 6
    assert (small[3].groups, small[3].in_channels, small[3].out_channels) == (6, 6, 6)
    assert (small[8].in_features, small[8].out_features) == (20, 5)
    assert "Conv2d(6, 5" in text
    assert "groups=6" in text


@pytest.mark.parametrize(
    ("layer", "attributes"),
    [
        (nn.GroupNorm(2, 8), {"num_channels": 6, "num_groups": 2}),
        (nn.GroupNorm(8, 8), {"num_channels": 6, "num_groups": 6}),
        (nn.InstanceNorm2d(8, affine=True), {"num_features": 6}),
        (nn.PReLU(8), {"num_parameters": 6}),
        (nn.LayerNorm([8, 4, 4]), {"normalized_shape": (6, 4, 4)}),
        (conv(8, 16, 3, groups=8), {"in_channels": 6, "out_channels": 12, "groups": 6}),
        (conv(8, 16, 3, groups=4), {"in_channels": 4, "out_channels": 16, "groups": 4}),
        (nn.ConvTranspose2d(8, 16, 2, groups=8), {"in_channels": 6, "out_channels": 12, "groups": 6}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_attributes_of_other_layers_follow(layer, attributes):
    width = getattr(layer, "out_channels", 8)
    model = random(nn.Sequential(conv(3, 8), layer, conv(width, 2)))
    x = images(2, 3, 4, 4)
    small = remove(model, find_groups(model, x), {"0": [1] if find_groups(model, x)["0"].size < 8 else [1, 5]})
    assert {name: getattr(small[1], name) for name in attributes} == attributes
    assert small(x).shape == (2, 2, 4, 4) if width == 8 else small(x).shape[:2] == (2, 2)


def test_the_original_is_not_touched(small_cnn):
    small_cnn.train()
    state, text = copy.deepcopy(small_cnn.state_dict()), repr(small_cnn)
    small = remove(small_cnn, find_groups(small_cnn, images(1, 3, 8, 8)), {"0": [1]})
    assert repr(small_cnn) == text
    assert all(torch.equal(t, state[name]) for name, t in small_cnn.state_dict().items())
    assert small.training
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(small.parameters(), small_cnn.parameters(), strict=True))


def test_a_cut_network_trains_and_is_cut_again(small_cnn):
    x = images(4, 3, 8, 8)
    small = remove(small_cnn, find_groups(small_cnn, x), {"0": [1, 6]}).train()
    before = copy.deepcopy(small)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(x).square().mean().backward()
    optimizer.step()
    for (name, a), b in zip(small.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(a, b) or name == "0.bias"  # which the batch norm takes out
    small.eval()
    drop = {"0": [0, 5], "4": [1]}
    assert_same(remove(small, find_groups(small, x), drop)(x), zero(small, find_groups(small, x), drop)(x))
    assert remove(small, find_groups(small, x), drop)[0].out_channels == 4


def test_dropping_nothing_copies(small_cnn):
    x = images(1, 3, 8, 8)
    for drop in ({}, {"0": []}):
        small = remove(small_cnn, find_groups(small_cnn, x), drop)
        assert small is not small_cnn
        assert torch.equal(small(x), small_cnn(x))


@pytest.mark.parametrize(("round_to", "width"), [(1, 5), (2, 6), (4, 8), (16, 8)])
def test_widths_are_rounded_up_by_keeping_the_units_named_last(small_cnn, round_to, width):
    small = remove(small_cnn, find_groups(small_cnn, images(1, 3, 8, 8)), {"0": [7, 2, 0]}, round_to=round_to)
    assert small[0].out_channels == width
    gone = [7, 2, 0][: 8 - width]
    assert torch.equal(small[0].weight, small_cnn[0].weight[[k for k in range(8) if k not in gone]])


def test_layer_norm_is_cut_exactly_but_is_not_zero_invariant():
    def forward(m, x):
        return m.b(F.layer_norm(m.a(x), m.scale.shape, m.scale, m.shift))

    scale, shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
    net = random(Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3), scale=scale, shift=shift))
    x = images(5, 4)
    groups = find_groups(net, x)
    small = remove(net, groups, {"a": [0, 3]})
    keep = [1, 2, 4, 5]
    by_hand = F.layer_norm(net.a(x)[:, keep], [4], net.scale[keep], net.shift[keep]) @ net.b.weight[:, keep].T
    assert_same(small(x), by_hand + net.b.bias)
    assert (zero(net, groups, {"a": [0, 3]})(x) - small(x)).abs().max() > 1e-3


def test_masks_and_weight_norm_are_cut_too():
    model = random(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))))
    prune.random_unstructured(model[0], "weight", amount=0.4)
    x = images(3, 3)
    small = remove(model, find_groups(model, x), {"0": [1, 2]})
    assert small[0].weight_mask.shape == small[0].weight.shape == (4, 3)
    assert (small[0].out_features, small[2].in_features) == (4, 4)
    assert small(x).shape == (3, 4)


def test_tied_parameters_stay_tied():
    shared = nn.Linear(6, 6)
    model = random(nn.Sequential(nn.Linear(3, 6), shared, nn.ReLU(), shared, nn.Linear(6, 2)))
    x = images(2, 3)
    groups = find_groups(model, x)
    small = remove(model, groups, {"0": [1]})
    assert small[1] is small[3]
    assert_same(small(x), zero(model, groups, {"0": [1]})(x))


def test_memory_format_and_type_are_kept(small_cnn):
    model = small_cnn.to(torch.bfloat16, memory_format=torch.channels_last)
    x = torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)
    small = remove(model, find_groups(model, x), {"0": [1]})
    assert small[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert small[0].weight.dtype == torch.bfloat16


def test_hooks_stay(small_cnn):
    seen = []
    small_cnn[0].register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    x = images(1, 3, 8, 8)
    small = remove(small_cnn, find_groups(small_cnn, x), {"0": [1]})
    seen.clear()
    small(x)
    assert seen == [7]


# Modules whose Python code fixes a width.


class Attention(nn.Module):
    """Attention that computes its head size from the width of its input, like many do."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q = q * (width // self.heads) ** -0.5
        y = self.dropout((q @ k.transpose(-2, -1)).softmax(-1)) @ v
        return self.proj(y.transpose(1, 2).reshape(n, tokens, width))


def transformer():
    layers = [nn.Linear(5, 8), Attention(8, 2), nn.ReLU(), Attention(8, 2), nn.Linear(8, 3)]
    return random(nn.Sequential(*layers))


def test_code_that_fixes_a_width_is_replaced_and_says_so():
    model, x = transformer(), images(3, 6, 5)
    groups = find_groups(model, x)
    drop = {"1.qkv": [0, 2], "3.qkv": [1]}
    small = remove(model, groups, drop)
    assert rewritten(small) == ["1", "3"]
    assert "in place of Attention, for inputs of Nx6x8" in repr(small)
    assert small[1].qkv.out_features == 12
    assert small[3].heads == 2
    for samples in (1, 2, 7):
        x = images(samples, 6, 5)
        assert_same(small(x), zero(model, groups, drop)(x))


def test_multi_head_attention_keeps_its_scale():
    def forward(m, x):
        return m.c(m.b(y := m.a(x), y, y, need_weights=False)[0])

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = random(Net(forward, a=nn.Linear(5, 8), b=attention, c=nn.Linear(8, 3)))
    x = images(3, 6, 5)
    groups = find_groups(model, x)
    drop = {"b": [1, 2]}
    small = remove(model, groups, drop)
    assert rewritten(small) == ["b"]
    assert small.b.in_proj_weight.shape == (12, 8)
    assert_same(small(x), zero(model, groups, drop)(x))


def test_a_rewritten_network_is_a_network():
    model, x = transformer(), images(3, 6, 5)
    small = remove(model, find_groups(model, x), {"1.qkv": [0, 2]})
    assert list(small.state_dict()) == list(model.state_dict())
    twin = copy.deepcopy(small)
    assert torch.equal(twin(x), small(x))
    again = remove(twin, find_groups(twin, x), {"1.qkv": [0], "0": [3]})
    assert again[1].qkv.out_features == 6
    assert again(images(2, 6, 5)).shape == (2, 6, 3)
    exported = torch.export.export(small, (x,)).module()
    assert_same(exported(x), small(x))


def test_dropout_inside_a_rewritten_module_is_active_in_training():
    model, x = transformer(), images(3, 6, 5)
    small = remove(model, find_groups(model, x), {"1.qkv": [0, 2], "3.qkv": [0]})
    assert torch.equal(small(x), small(x))
    small.train()
    assert not torch.equal(small(x), small(x))


def test_batch_norm_inside_a_rewritten_module_uses_the_batch_in_training():
    def forward(m, x):
        y = m.norm(m.a(x))
        return m.b(y.reshape(-1, 8, 4, 4))

    model = random(Net(forward, a=conv(3, 8), norm=nn.BatchNorm2d(8), b=conv(8, 2)))
    x = images(4, 3, 4, 4)
    groups = find_groups(model, x)
    small = remove(model, groups, {"a": [1]})
    assert rewritten(small) == [""]
    assert_same(small(x), zero(model, groups, {"a": [1]})(x))
    small.train()
    mean = small.norm.running_mean.clone()
    trained = small(x)
    assert not torch.equal(small.norm.running_mean, mean)
    y = F.batch_norm(small.a(x), None, None, small.norm.weight, small.norm.bias, training=True)
    assert_same(trained, small.b(y))


def test_a_rewritten_module_refuses_other_sizes():
    model, x = transformer(), images(3, 6, 5)
    small = remove(model, find_groups(model, x), {"1.qkv": [0]})
    with pytest.raises(
        CdlibError, match=r"Attention was rewritten for inputs of shape \(2, 6, 8\) and got \(2, 7, 8\)"
    ):
        small(images(2, 7, 5))


def test_padding_of_channels_follows():
    def forward(m, x):
        return m.c(m.b(m.a(x)) + F.pad(m.a(x), (0, 0, 0, 0, 2, 2)))

    model = random(Net(forward, a=conv(3, 4), b=conv(4, 8), c=conv(8, 2)))
    x = images(2, 3, 4, 4)
    groups = find_groups(model, x)
    drop = {g.name: [0] for g in groups.prunable if g.size > 1}
    assert_same(remove(model, groups, drop)(x), zero(model, groups, drop)(x))


def test_unequal_halves_are_split_where_they_are():
    def forward(m, x):
        a, b = m.a(x).chunk(2, 1)
        return m.b(a) + m.c(b)

    model = random(Net(forward, a=conv(3, 8), b=conv(4, 2), c=conv(4, 2)))
    x = images(2, 3, 4, 4)
    groups = find_groups(model, x)
    drop = {"a": [0, 1]}
    small = remove(model, groups, drop)
    assert_same(small(x), zero(model, groups, drop)(x))
    assert small.b.in_channels == 2


def test_a_pretrained_size_network_by_name():
    model = random(cdlib.models.build("resnet18_cifar"))
    x = images(2, 3, 32, 32)
    groups = find_groups(model, x)
    drop = {g.name: range(0, g.size, 2) for g in find_groups(model, x).prunable}
    assert_same(remove(model, groups, drop)(x), zero(model, groups, drop)(x), 1e-9)


# Bad input.


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ({"1": [0]}, "unknown group '1'"),
        ({"0": [8]}, r"group '0' has no unit 8: its units are 0 to 7"),
        ({"0": [-1]}, "has no unit -1"),
        ({"0": [1.5]}, "has no unit 1.5"),
        ({"0": "12"}, r"give a list of units"),
        ({"0": range(8)}, "removes all 8 units of group '0'"),
        ({"8": [0]}, "group '8' cannot be pruned: it reaches the output"),
        ([("0", [1])], "give a dictionary"),
    ],
)
@pytest.mark.parametrize("function", [remove, zero])
def test_units_that_cannot_be_dropped(small_cnn, drop, message, function):
    groups = find_groups(small_cnn, images(1, 3, 8, 8))
    with pytest.raises(CdlibError, match=message):
        function(small_cnn, groups, drop)


@pytest.mark.parametrize("round_to", [0, -2, 1.5, True])
def test_rounding_to_no_multiple(small_cnn, round_to):
    with pytest.raises(CdlibError, match="round_to"):
        remove(small_cnn, find_groups(small_cnn, images(1, 3, 8, 8)), {"0": [1]}, round_to=round_to)


def test_networks_that_do_otherwise_for_several_samples_are_refused():
    def forward(m, x):
        return m.b(m.a(x)) if len(x) == 1 else m.c(m.a(x))

    model = random(Net(forward, a=conv(3, 4), b=conv(4, 2), c=conv(4, 2)))
    with pytest.raises(CdlibError, match="uses other weights for several samples"):
        remove(model, find_groups(model, images(1, 3, 4, 4)), {"a": [0]})


def test_networks_that_cannot_be_copied_are_refused(small_cnn):
    small_cnn.lock = (k for k in range(3))
    with pytest.raises(CdlibError, match="cannot be copied"):
        remove(small_cnn, find_groups(small_cnn, images(1, 3, 8, 8)), {"0": [1]})


class OwnNorm(nn.Module):
    """A norm as people write it: the width is an attribute."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.width, self.kind = nn.Parameter(torch.ones(width)), (width,), 6

    def forward(self, x):
        return F.layer_norm(x, self.width, self.weight) * self.kind


def test_numbers_of_a_users_module_follow_where_they_must_and_nowhere_else(tmp_path):
    model = random(nn.Sequential(nn.Linear(4, 6), OwnNorm(6), nn.Linear(6, 3)))
    x = images(5, 4)
    small = remove(model, find_groups(model, x), {"0": [0, 3]})
    keep = [1, 2, 4, 5]
    by_hand = 6 * F.layer_norm(model[0](x)[:, keep], [4], model[1].weight[keep]) @ model[2].weight[:, keep].T
    assert_same(small(x), by_hand + model[2].bias)
    cdlib.save(small, tmp_path / "small.cdlib")
    assert_same(cdlib.load(tmp_path / "small.cdlib", model=model)(x), small(x))


class Kind(nn.Module):
    """A number that is a width by chance, and a weight."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.ones(width)), width

    def forward(self, x):
        return x * self.weight if self.kind == 6 else x * self.weight + 1


def test_a_number_that_is_a_width_by_chance_stays():
    model = random(nn.Sequential(nn.Linear(4, 6), Kind(6), nn.Linear(6, 3)))
    x = images(5, 4)
    groups = find_groups(model, x)
    small = remove(model, groups, {"0": [0, 3]})
    assert small[1].kind == 6
    assert rewritten(small) == []
    assert_same(small(x), zero(model, groups, {"0": [0, 3]})(x))


def test_a_number_that_follows_although_it_should_not_is_put_back():
    class Scaled(Kind):
        def forward(self, x):
            return x * self.weight * x.shape[-1] ** -0.5 * self.kind

    model = random(nn.Sequential(nn.Linear(4, 6), Scaled(6), nn.Linear(6, 3)))
    x = images(5, 4)
    groups = find_groups(model, x)
    small = remove(model, groups, {"0": [0, 3]})
    assert rewritten(small) == ["1"]
    assert_same(small(x), zero(model, groups, {"0": [0, 3]})(x))


def test_a_factor_that_depends_on_the_width_is_seen_in_runs_with_numbers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.a, self.b = nn.GRU(3, 3, batch_first=True), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.a(self.rnn(x)[0])
            return self.b(y * y.shape[-1] ** -0.5)

    model, x = random(Net()), images(2, 4, 3)
    groups = find_groups(model, x)
    assert not find_groups(model, x).graph.on_meta
    assert_same(remove(model, groups, {"a": [1]})(x), zero(model, groups, {"a": [1]})(x))
