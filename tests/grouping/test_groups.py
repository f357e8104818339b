import pytest
import torch
from small_networks import Net, conv
from torch import nn
from torch.nn import functional as F

import cdlib
from cdlib import CdlibError, find_groups
from cdlib.grouping import Slice

IMAGE = torch.zeros(1, 3, 8, 8)


def test_a_unit_between_two_convolutions_is_rows_norm_and_columns():
    groups = find_groups(nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 5, 3)), IMAGE)
    assert groups.names == ["0", "3"]
    g = groups["0"]
    assert (g.size, g.prunable, g.zero_invariant, g.reason, g.stems) == (4, True, True, "", ("0.weight",))
    assert set(g.slices(2)) == {
        Slice("0.weight", 0, (2,)),
        Slice("0.bias", 0, (2,)),
        Slice("1.weight", 0, (2,)),
        Slice("1.bias", 0, (2,)),
        Slice("1.running_mean", 0, (2,)),
        Slice("1.running_var", 0, (2,)),
        Slice("3.weight", 1, (2,)),
    }
    assert {s.tensor for s in g.pzig(2)} == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_what_reaches_the_output_stays():
    last = find_groups(nn.Sequential(conv(3, 4), conv(4, 5)), IMAGE)["1"]
    assert (last.prunable, last.zero_invariant, last.reason) == (False, False, "reaches the output")


def test_a_residual_couples_the_layers_that_it_adds():
    net = Net(lambda m, x: m.c(m.b(x := m.a(x)) + x), a=conv(3, 4), b=conv(4, 4), c=conv(4, 2))
    g = find_groups(net, IMAGE)["a"]
    assert g.stems == ("a.weight", "b.weight")
    assert {(s.tensor, s.dim) for s in g.slices(1)} == {
        *(("a.weight", 0), ("a.bias", 0), ("b.weight", 0), ("b.weight", 1), ("b.bias", 0), ("c.weight", 1))
    }
    assert all(s.indices == (1,) for s in g.slices(1))


def test_concatenation_moves_the_columns():
    net = Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4), b=conv(3, 5), c=conv(9, 2))
    groups = find_groups(net, IMAGE)
    assert Slice("c.weight", 1, (3,)) in groups["a"].slices(3)
    assert Slice("c.weight", 1, (4 + 3,)) in groups["b"].slices(3)


def test_concatenation_and_slice_of_the_middle():
    def forward(m, x):
        return m.c(torch.cat([m.a(x), m.b(x)], 1)[:, 2:7])

    groups = find_groups(Net(forward, a=conv(3, 4), b=conv(3, 5), c=conv(5, 2)), IMAGE)
    assert Slice("c.weight", 1, (1,)) in groups["a#2"].slices(1)
    assert [s.tensor for s in groups["a"].slices(0)] == ["a.weight", "a.bias"]
    assert Slice("c.weight", 1, (2,)) in groups["b"].slices(0)


def test_flatten_makes_blocks_of_columns():
    net = nn.Sequential(conv(3, 4), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * 2 * 2, 5))
    assert Slice("3.weight", 1, (8, 9, 10, 11)) in find_groups(net, IMAGE)["0"].slices(2)


def test_depthwise_filters_go_with_their_channel():
    net = nn.Sequential(conv(3, 4), conv(4, 8, 3, groups=4), conv(8, 2))
    slices = find_groups(net, IMAGE)["0"].slices(1)
    assert Slice("1.weight", 0, (2, 3)) in slices
    assert Slice("2.weight", 1, (2, 3)) in slices
    assert not [s for s in slices if s.tensor == "1.weight" and s.dim == 1]


def test_a_convolution_of_one_channel_is_not_depthwise():
    groups = find_groups(nn.Sequential(conv(1, 4, 3), conv(4, 2)), torch.zeros(1, 1, 8, 8))
    assert [(s.tensor, s.indices) for s in groups["0"].slices(3)] == [
        ("0.weight", (3,)),
        ("0.bias", (3,)),
        ("1.weight", (3,)),
    ]


def test_grouped_convolutions_lose_the_same_channel_in_every_group():
    net = nn.Sequential(conv(3, 6), conv(6, 9, 3, groups=3), conv(9, 2))
    groups = find_groups(net, IMAGE)
    into, out = groups["0"], groups["1"]
    assert (into.size, out.size) == (2, 3)
    assert Slice("0.weight", 0, (1, 3, 5)) in into.slices(1)
    assert Slice("1.weight", 1, (1,)) in into.slices(1)
    assert Slice("1.weight", 0, (2, 5, 8)) in out.slices(2)
    assert Slice("2.weight", 1, (2, 5, 8)) in out.slices(2)


def test_transposed_convolutions_have_their_rows_in_dimension_1():
    net = nn.Sequential(conv(3, 4), nn.ConvTranspose2d(4, 6, 2), conv(6, 2))
    groups = find_groups(net, IMAGE)
    assert Slice("1.weight", 0, (3,)) in groups["0"].slices(3)
    assert Slice("1.weight", 1, (5,)) in groups["1"].slices(5)


def test_channel_shuffle_is_a_permutation_of_the_coupled_halves():
    def forward(m, x):
        y = m.a(x)
        y = y.view(1, 2, 3, 8, 8).transpose(1, 2).reshape(1, 6, 8, 8)
        return m.b(y)

    g = find_groups(Net(forward, a=conv(3, 6), b=conv(6, 2)), IMAGE)["a"]
    assert g.size == 3
    assert Slice("a.weight", 0, (1, 4)) in g.slices(1)
    assert Slice("b.weight", 1, (2, 3)) in g.slices(1)


@pytest.mark.parametrize("by_view", [False, True])
def test_pixel_shuffle_takes_blocks_of_channels(by_view):
    def forward(m, x):
        y = m.a(x)
        if by_view:
            y = y.view(1, 2, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(1, 2, 16, 16)
        else:
            y = F.pixel_shuffle(y, 2)
        return m.b(y)

    g = find_groups(Net(forward, a=conv(3, 8), b=conv(2, 5)), IMAGE)["a"]
    assert g.size == 2
    assert Slice("a.weight", 0, (4, 5, 6, 7)) in g.slices(1)
    assert Slice("b.weight", 1, (1,)) in g.slices(1)


def attention_net():
    def forward(m, x):
        q, k, v = m.qkv(x).reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return m.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 5, 8))

    return Net(forward, qkv=nn.Linear(6, 24), proj=nn.Linear(8, 3))


def test_attention_loses_the_same_dimension_in_every_head_of_query_key_and_value():
    g = find_groups(attention_net(), torch.zeros(1, 5, 6))["qkv"]
    assert g.size == 4
    assert Slice("qkv.weight", 0, (1, 5, 9, 13, 17, 21)) in g.slices(1)
    assert Slice("proj.weight", 1, (1, 5)) in g.slices(1)
    assert g.zero_invariant


def test_query_and_key_are_a_group_and_value_is_another_where_they_are_apart():
    def forward(m, x):
        q, k, v = (layer(x).view(1, 5, 2, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.out((torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v).transpose(1, 2).reshape(1, 5, 8))

    net = Net(forward, q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 8), out=nn.Linear(8, 3))
    groups = find_groups(net, torch.zeros(1, 5, 6))
    assert groups["q"].stems == ("q.weight", "k.weight")
    assert groups["v"].stems == ("v.weight",)
    assert all(groups[name].zero_invariant and groups[name].size == 4 for name in ("q", "v"))


# Zero-invariance.


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm([4, 8, 8]), nn.GroupNorm(1, 4)])
def test_statistics_over_channels_break_zero_invariance(norm):
    g = find_groups(nn.Sequential(conv(3, 4), norm, conv(4, 2)), IMAGE)["0"]
    assert g.prunable
    assert not g.zero_invariant
    assert "statistics" in g.reason
    assert "in 1" in g.reason


@pytest.mark.parametrize(
    ("function", "invariant"),
    [
        (torch.relu, True),
        (F.gelu, True),
        (torch.tanh, True),
        (F.hardswish, True),
        (torch.sigmoid, False),
        (torch.exp, False),
        (F.softplus, False),
        (torch.cos, False),
        (lambda x: x + 1, False),
        (lambda x: 3 * x - x * 0.5, True),
        (lambda x: x * torch.sigmoid(x), True),
        (lambda x: torch.sigmoid(x) * 2 - 1, False),  # zero in the end, but what is not zero once is not followed
        (lambda x: x.softmax(1), False),
        (lambda x: F.normalize(x), True),
        (lambda x: x / x.abs().mean(1, keepdim=True), False),
        (lambda x: x * x.amax(1, keepdim=True), False),
        (lambda x: F.pad(x, (1, 1), value=1.0), False),
        (lambda x: F.pad(x, (1, 1)), True),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), True),
        (lambda x: F.max_pool2d(x, 2), True),
    ],
)
def test_zero_invariance_is_whether_zeros_stay_zeros(function, invariant):
    g = find_groups(Net(lambda m, x: m.b(function(m.a(x))), a=conv(3, 4), b=conv(4, 2)), IMAGE)["a"]
    assert g.prunable
    assert g.zero_invariant is invariant
    assert bool(g.reason) is not invariant


def test_the_reason_names_the_operator_that_makes_numbers_of_zeros():
    g = find_groups(nn.Sequential(conv(3, 4), nn.Sigmoid(), conv(4, 2)), IMAGE)["0"]
    assert g.reason == "is not zero where convolution in 2 reads it: sigmoid in 1 does not turn zero into zero"


def test_squeeze_and_excite_is_mended_by_the_product():
    def forward(m, x):
        y = m.a(x)
        return m.b(y * torch.sigmoid(m.excite(torch.relu(m.squeeze(y.mean((2, 3), keepdim=True))))))

    net = Net(forward, a=conv(3, 4), squeeze=conv(4, 2), excite=conv(2, 4), b=conv(4, 2))
    groups = find_groups(net, IMAGE)
    assert groups.names == ["a", "squeeze", "b"]
    assert groups["a"].stems == ("a.weight", "excite.weight")
    assert groups["a"].zero_invariant
    assert groups["squeeze"].zero_invariant


def test_batch_norm_without_shift_of_its_own_is_not_zero():
    g = find_groups(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, affine=False), conv(4, 2)), IMAGE)["0"]
    assert g.prunable
    assert not g.zero_invariant


def test_writing_numbers_beside_a_view_is_noticed():
    def forward(m, x):
        whole = m.a(x)
        half = whole[:, :2]
        whole.add_(1.0)
        return m.b(half)

    groups = find_groups(Net(forward, a=conv(3, 4), b=conv(2, 2)), IMAGE)
    (read,) = [g for g in groups if ("b.weight", 1) in g.tensors]
    assert not read.zero_invariant


# Parameters of other kinds.


def test_bare_parameters_channels_go_and_positions_stay():
    def forward(m, x):
        tokens = torch.cat([m.token, m.a(x).flatten(2).transpose(1, 2)], 1) + m.position
        return m.b(tokens * m.scale)

    parameters = {"token": (1, 1, 4), "position": (1, 65, 4), "scale": (4,)}
    net = Net(
        forward, a=conv(3, 4), b=nn.Linear(4, 2), **{k: nn.Parameter(torch.ones(v)) for k, v in parameters.items()}
    )
    g = find_groups(net, IMAGE)["a"]
    named = {(s.tensor, s.dim, s.indices) for s in g.slices(3)}
    assert {("token", 2, (3,)), ("position", 2, (3,)), ("scale", 0, (3,))} <= named
    assert ("position", 1) not in g.tensors


def test_shared_and_tied_weights_are_cut_once():
    shared = nn.Linear(6, 6)
    groups = find_groups(nn.Sequential(nn.Linear(3, 6), shared, nn.ReLU(), shared, nn.Linear(6, 2)), torch.zeros(1, 3))
    assert {(s.tensor, s.dim) for s in groups["0"].slices(0)} == {
        *(("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.weight", 1), ("1.bias", 0), ("4.weight", 1))
    }


def test_an_autoencoder_with_a_transposed_weight():
    net = Net(lambda m, x: F.linear(torch.relu(m.code(x)), m.code.weight.t()), code=nn.Linear(6, 4))
    g = find_groups(net, torch.zeros(1, 6))["code"]
    assert [(s.tensor, s.dim, s.indices) for s in g.slices(2)] == [("code.weight", 0, (2,)), ("code.bias", 0, (2,))]
    assert g.zero_invariant


def test_auxiliary_classifiers_of_training_go_along():
    def forward(m, x):
        y = m.a(x)
        return (m.b(y), m.aux(y)) if m.training else m.b(y)

    groups = find_groups(Net(forward, a=conv(3, 4), b=conv(4, 2), aux=conv(4, 3)).eval(), IMAGE)
    assert Slice("aux.weight", 1, (1,)) in groups["a"].slices(1)
    assert groups["aux"].reason == "reaches the output"


def test_parameters_that_are_not_used_are_in_no_group():
    groups = find_groups(Net(lambda m, x: m.b(m.a(x)), a=conv(3, 4), b=conv(4, 2), spare=conv(4, 4)), IMAGE)
    assert not any("spare" in tensor for g in groups for tensor, _ in g.tensors)


# What has to stay.


def test_unknown_operators_freeze_what_they_meet_and_are_named():
    @torch.library.custom_op("cdlib_tests::strange", mutates_args=())
    def strange(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    strange.register_fake(torch.empty_like)
    net = Net(lambda m, x: m.c(strange(m.b(m.a(x)))), a=conv(3, 4), b=conv(4, 5), c=conv(5, 2))
    groups = find_groups(net, IMAGE)
    assert groups["a"].prunable
    assert not groups["b"].prunable
    assert "cdlib_tests.strange" in groups["b"].reason
    assert "no rule" in groups["b"].reason


def test_what_is_kept_by_choice_says_so():
    net = nn.Sequential(conv(3, 4), conv(4, 5), conv(5, 2))
    groups = find_groups(net, IMAGE, keep=["1"])
    assert [g.prunable for g in groups] == [False, False, False]
    assert groups["0"].reason == "is kept by your choice of '1'"
    assert find_groups(net, IMAGE, keep=["1.bias"])["0"].prunable
    with pytest.raises(CdlibError, match="unknown module or parameter in keep: '7'"):
        find_groups(net, IMAGE, keep=["7"])
    with pytest.raises(CdlibError, match="give a list of names"):
        find_groups(net, IMAGE, keep="1")


def test_inference_mode_is_named():
    with torch.inference_mode(), pytest.raises(CdlibError, match=r"leave it, or use torch\.no_grad"):
        find_groups(conv(3, 4), IMAGE)


def test_an_index_that_is_picked_stays_and_the_others_do_not():
    net = Net(lambda m, x: m.b(m.a(x)) + m.a(x)[:, 2:3], a=conv(3, 4), b=conv(4, 1))
    groups = find_groups(net, IMAGE)
    by_unit = {s.indices[0]: g for g in groups for u in range(g.size) for s in g.slices(u) if s.tensor == "a.weight"}
    assert [by_unit[k].prunable for k in range(4)] == [True, True, False, True]


def test_meeting_data_of_fixed_size_freezes():
    constant = torch.ones(4, 1, 1)
    groups = find_groups(Net(lambda m, x: m.b(m.a(x) * constant), a=conv(3, 4), b=conv(4, 2)), IMAGE)
    assert groups["a"].reason == "meets a constant of fixed size"
    groups = find_groups(Net(lambda m, x: m.b(m.a(x) + x), a=conv(3, 3), b=conv(3, 2)), IMAGE)
    assert groups["a"].reason == "meets the network's input"


# The sequence of groups.


def test_groups_are_a_sequence_and_print_as_a_table():
    groups = find_groups(nn.Sequential(conv(3, 4), nn.LayerNorm([4, 8, 8]), conv(4, 2)), IMAGE)
    assert len(groups) == 2
    assert [g.name for g in groups] == groups.names == ["0", "2"]
    assert groups[0] is groups["0"]
    assert groups[:1] == [groups[0]]
    text = str(groups)
    assert text.splitlines()[0] == "2 groups of Sequential, 1 of them prunable"
    assert "takes statistics" in text
    assert "reaches the output" in text
    with pytest.raises(CdlibError, match="unknown group '1'"):
        groups["1"]
    with pytest.raises(CdlibError, match=r"group '0' has no unit 4: its units are 0 to 3"):
        groups[0].slices(4)


def test_every_index_belongs_to_one_unit_at_most():
    model = cdlib.models.build("mobilenet_v3_small")
    groups = find_groups(model, torch.zeros(1, 3, 64, 64))
    seen = set()
    for group in groups:
        for key in group.tensors:
            places = {(*key, int(index)) for index in group.indices(range(group.size), key)}
            assert not places & seen
            seen |= places
    rows = {(name, 0, k) for name, p in model.named_parameters() if p.dim() > 1 for k in range(len(p))}
    assert rows <= seen


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Dropout(), conv(4, 2)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seed = torch.get_rng_state()
    find_groups(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert all(module.training for module in model.modules())
    assert torch.equal(seed, torch.get_rng_state())


# Bad input.


def test_networks_that_cannot_be_pruned_are_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.zeros(1, 3)
    with pytest.raises(CdlibError, match="before torch.compile"):
        find_groups(torch.compile(net), x)
    with pytest.raises(CdlibError, match=r"compiled by torch.jit"):
        find_groups(torch.jit.trace(net, x), x)
    with pytest.raises(CdlibError, match="not a torch.nn.Module"):
        find_groups(lambda x: x, x)
    with pytest.raises(CdlibError, match="cannot run on an input of shape"):
        find_groups(net, torch.zeros(1, 5))
    with pytest.raises(CdlibError, match="no shape yet"):
        find_groups(nn.Sequential(nn.LazyLinear(3)), x)
    with pytest.raises(CdlibError, match="example_input is on meta"):
        find_groups(net, x.to("meta"))


@pytest.mark.filterwarnings("ignore")
def test_quantized_networks_are_refused():
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(CdlibError, match="0 is quantized"):
        find_groups(net, torch.zeros(1, 3))


def test_a_course_that_depends_on_numbers_is_refused():
    def forward(m, x):
        y = m.a(x)
        return m.b(y) if y.mean() > 0 else m.c(y)

    with pytest.raises(CdlibError, match="chooses its course by a number that it computes"):
        find_groups(Net(forward, a=conv(3, 4), b=conv(4, 2), c=conv(4, 2)), IMAGE)


def test_parameters_that_share_memory_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight.data = net[0].weight.data
    with pytest.raises(CdlibError, match="share memory"):
        find_groups(net, torch.zeros(1, 4))


def tables(groups):
    return [(g.name, g.size, g.prunable, g.zero_invariant, g.reason, g.tensors, g.own) for g in groups]


@pytest.mark.parametrize("of", [lambda net, x: None, find_groups, cdlib.profile])
def test_groups_inside_autocast_are_those_outside(of):
    net = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), conv(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 3))
    outside = tables(find_groups(net, IMAGE))
    assert len(outside) == 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of(net, IMAGE)  # anything that might leave casts of the weights in the cache
        assert tables(find_groups(net, IMAGE)) == outside
        assert torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()
        net(IMAGE).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())  # not of casts that were made without


def test_groups_of_a_network_that_casts_for_itself():
    def forward(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.b(m.a(m.a(x)))

    net = Net(forward, a=conv(3, 3), b=conv(3, 2))
    for enabled in (False, True, True):
        with torch.autocast("cpu", enabled=enabled, dtype=torch.bfloat16):
            groups = find_groups(net, IMAGE)
        assert groups.names == ["a", "b"] and set(groups["b"].tensors) == {("b.weight", 0), ("b.bias", 0)}


LOGS = {
    "mean": lambda out: out.mean(),
    "dead neurons": lambda out: (out <= 0).float().mean((0, 2, 3)),
    "largest channel": lambda out: out.argmax(1),
    "median": lambda out: out.flatten().quantile(0.5),
    "histogram, for which there is no rule": lambda out: torch.histc(out, 10),
    "shares": lambda out: torch.softmax(out, 1),
    "distance": lambda out: (out + 1).norm(),
    "sum in place": lambda out: torch.zeros(()).add_(out.mean()),
}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_what_nobody_reads_decides_nothing(log):
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 5), nn.ReLU(), conv(5, 2))
    plain, drop = tables(find_groups(net, IMAGE)), {"2": [1, 3]}
    zeroed = cdlib.zero(net, find_groups(net, IMAGE), drop)
    seen = []
    net[2].register_forward_hook(lambda module, args, out: seen.append(log(out)))
    assert tables(find_groups(net, IMAGE)) == plain
    x = torch.randn(2, 3, 8, 8)
    small = cdlib.remove(net, find_groups(net, IMAGE), drop)
    torch.testing.assert_close(small(x), zeroed(x))
    assert small[2].weight.shape[0] == 3 and type(small) is nn.Sequential  # its code was left alone


def test_what_is_kept_for_later_decides():
    total = torch.zeros(())
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))
    net[0].register_forward_hook(lambda module, args, out: total.add_(out.mean()) is None or None)
    assert "takes statistics" in find_groups(net, IMAGE)["0"].reason


def test_a_head_that_runs_unread_goes_along():
    def forward(m, x):
        y = m.a(x)
        aux = m.aux(torch.cumsum(m.pre(y), 1).mean((2, 3)))
        return (m.b(y), aux) if m.training else m.b(y)

    net = Net(forward, a=conv(3, 4), b=conv(4, 2), pre=conv(4, 6), aux=nn.Linear(6, 3))
    groups = find_groups(net, IMAGE)
    assert {("pre.weight", 1), ("b.weight", 1)} <= set(groups["a"].tensors) and groups["a"].zero_invariant
    assert "depends on its order" in groups["pre"].reason  # it has as many as the weight that reads it
    small = cdlib.remove(net, groups, {"a": [0, 2]})
    assert small.pre.weight.shape == (6, 2, 1, 1)


def test_hooks_get_numbers_and_masks_are_applied():
    seen = []
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))
    net[0].register_forward_hook(lambda module, args, out: seen.append(out.mean()))
    torch.nn.utils.prune.ln_structured(net[0], "weight", 1, n=1, dim=0)
    net[2].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    groups = find_groups(net, IMAGE)
    assert groups.graph.calls and seen and not any(t.is_meta for t in seen)
    assert ("0.weight_mask", 0) in groups["0"].tensors and groups["0"].zero_invariant


def test_an_index_that_stays_lends_its_reason_to_no_other_group():
    def forward(m, x):
        return torch.sigmoid(m.c(m.n(torch.cat([x, m.a(x)], 1)))).sum(1)

    net = Net(forward, a=conv(3, 4), n=nn.BatchNorm2d(7, affine=False), c=conv(7, 5))
    groups = find_groups(net.eval(), IMAGE)
    assert [(g.name, g.size) for g in groups] == [("a", 4), ("c", 5)]
    assert "sigmoid" in groups["c"].reason and "native_batch_norm" in groups["a"].reason
