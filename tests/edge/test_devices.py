"""Cards of devices have sources, and the roofline is the sum that one can do by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import cdlib
from cdlib import CdlibError
from cdlib.edge import Device, Figure, device, devices, roofline, this_machine


def counted() -> cdlib.complexity.Profile:
    """Of a network whose numbers are easy.

    The convolution has 3 x 8 x 9 = 216 weights and 216 x 16 = 3,456 MACs on 4 x 4 places, and makes 128 numbers; ReLU
    is fused; the linear layer has 128 x 10 = 1,280 weights and MACs, and makes 10 numbers.
    """
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10, bias=False)
    )
    return cdlib.profile(net, torch.zeros(1, 3, 4, 4))


def made_up(**figures: float) -> Device:
    return Device("made-up", "Made up", **{name: Figure(value, "here") for name, value in figures.items()})


def test_every_figure_has_a_source_and_a_sensible_size() -> None:
    assert len(devices()) >= 6
    ranges = {
        "ram_bytes": (1e5, 1e10),
        "storage_bytes": (1e6, 1e12),
        "macs_float32": (1e8, 1e13),
        "macs_int8": (1e8, 1e14),
        "bandwidth": (1e8, 1e12),
        "storage_bandwidth": (1e7, 1e12),
        "price_usd": (1, 2000),
        "power_w": (0.01, 100),
    }
    for name, card in devices().items():
        assert card.name == name and device(name) == card
        assert {"ram_bytes", "macs_float32", "macs_int8"} <= card.figures().keys()
        for key, (value, source) in card.figures().items():
            assert ranges[key][0] <= value <= ranges[key][1], (name, key)
            assert len(source) > 20, (name, key)
            assert not source.startswith("derived") or any(sign in source for sign in "x/"), (name, key)
        assert card.macs_int8.value > card.macs_float32.value  # type: ignore[union-attr]


def test_the_arithmetic_of_derived_peaks() -> None:
    pi, pico = device("raspberry-pi-5"), device("esp32-s3")
    assert pi.macs_float32 is not None and pi.macs_float32.value == pytest.approx(4 * 2.4e9 * 8)
    assert pi.bandwidth is not None and pi.bandwidth.value == pytest.approx(4267e6 * 32 / 8)
    assert pico.macs_int8 is not None and pico.macs_int8.value == pytest.approx(2 * 240e6 * 16)


@pytest.mark.parametrize(
    ("figures", "dtype", "wanted", "bound"),
    [
        # 1 M MAC/s: (3,456 + 1,280) us.
        ({"macs_float32": 1e6, "bandwidth": 1e12}, "float32", 4.736, "macs"),
        # 1 MB/s: 4 x (216 + 1,280) bytes of weights and 2 x 4 x (128 + 10) of activations.
        ({"macs_float32": 1e12, "bandwidth": 1e6}, "float32", 5.984 + 1.104, "bytes"),
        ({"macs_int8": 1e12, "bandwidth": 1e6}, "int8", 1.496 + 0.276, "bytes"),
        # The convolution by MACs, 3.456 ms over 216 + 256 us; the linear layer by bytes, 1.280 + 0.02 ms over 1.280.
        ({"macs_int8": 1e6, "bandwidth": 1e6}, "int8", 3.456 + 1.3, "macs"),
        # Weights from a storage of 0.5 MB/s: 432 and 2,560 us, and the activations as before.
        ({"macs_int8": 1e12, "bandwidth": 1e6, "storage_bandwidth": 5e5}, "int8", 2.992 + 0.276, "bytes"),
        ({"macs_float32": 1e6}, "float32", 4.736, "macs"),  # no bandwidth is known
    ],
)
def test_the_roofline_by_hand(figures: dict[str, float], dtype: str, wanted: float, bound: str) -> None:
    found = roofline(counted(), made_up(**figures), dtype)
    assert found.latency_ms == pytest.approx(wanted) and found.bound == bound
    assert found.layers["ms"].sum() == pytest.approx(wanted)


def test_what_fits() -> None:
    peak, weights = counted().peak_activation_bytes, 4 * (216 + 1280)
    common: dict[str, Any] = {"macs_float32": 1e9, "macs_int8": 1e9}
    loaded = roofline(counted(), made_up(**common, ram_bytes=peak + weights))
    assert loaded.ram_bytes == peak + weights and loaded.fits_ram and loaded.fits_storage is None
    assert not roofline(counted(), made_up(**common, ram_bytes=peak + weights - 1)).fits_ram
    in_place = made_up(**common, ram_bytes=peak // 4, storage_bytes=2000, storage_bandwidth=1e6)
    assert roofline(counted(), in_place, "int8", file_bytes=2000).fits_ram
    assert roofline(counted(), in_place, "int8", file_bytes=2000).fits_storage
    assert not roofline(counted(), in_place, file_bytes=2001).fits_ram
    assert roofline(counted(), in_place, file_bytes=2001).fits_storage is False


def test_this_machine_is_measured() -> None:
    card = this_machine()
    assert {figure.source for figure in card.figures().values()} == {"measured"}
    assert card.macs_float32 is not None and 1e8 < card.macs_float32.value < 1e14
    assert card.bandwidth is not None and 1e8 < card.bandwidth.value < 1e13
    assert roofline(counted(), card).latency_ms > 0


def test_unknown_names_are_one_line() -> None:
    for act, message in {
        lambda: device("raspberry-pi4"): "did you mean 'raspberry-pi-4'",
        lambda: roofline(counted(), device("pixel-8"), "int4"): "unknown dtype 'int4'",
        lambda: roofline(counted(), made_up(macs_float32=1.0), "int8"): "made-up has no peak for int8",
    }.items():
        with pytest.raises(CdlibError, match=message) as error:
            act()
        assert "\n" not in str(error.value)
