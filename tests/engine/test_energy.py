"""The energy meter counts what runs, and refuses to invent joules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.engine.energy import EnergyMeter
from striate.engine.macs import count_macs
from striate.errors import InputError, RunError


def test_it_counts_what_runs():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))
    x = torch.rand(2, 3, 8, 8)
    with EnergyMeter() as meter:
        model(x)
        model(x[:1])
    assert meter.value == count_macs(model, x) * 3 / 2
    assert meter.unit == "multiply-accumulates"
    with torch.inference_mode(), EnergyMeter() as meter:
        model(x)
    assert meter.value == count_macs(model, x)


def test_processor_seconds_grow_with_work():
    with EnergyMeter("time") as idle:
        pass
    with EnergyMeter("time") as busy:
        sum(i * i for i in range(200_000))
    assert 0 <= idle.value < busy.value
    assert busy.unit == "processor seconds"


def counter(folder, name, value, largest=1000):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{value}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{largest}\n")


def test_joules_of_all_packages_also_where_a_counter_begins_anew(tmp_path):
    counter(tmp_path, "intel-rapl:0", 900)
    counter(tmp_path, "intel-rapl:0:0", 5)  # a part of package 0
    counter(tmp_path, "intel-rapl:1", 10)
    with EnergyMeter("rapl", counters=tmp_path) as meter:
        counter(tmp_path, "intel-rapl:0", 99)
        counter(tmp_path, "intel-rapl:0:0", 700)
        counter(tmp_path, "intel-rapl:1", 60)
    assert meter.value == pytest.approx(250e-6)
    assert meter.unit == "joules"


def test_no_joules_are_invented(tmp_path):
    with pytest.raises(RunError, match="offers no energy counters"), EnergyMeter("rapl", counters=tmp_path):
        pass
    (tmp_path / "intel-rapl:0").mkdir()
    with pytest.raises(RunError, match="cannot be read"), EnergyMeter("rapl", counters=tmp_path):
        pass
    with pytest.raises(InputError, match="one of macs, time, rapl"):
        EnergyMeter("calories")


def test_a_meter_can_be_used_again():
    layer, meter = nn.Linear(4, 4), EnergyMeter()
    for _ in range(2):
        with meter:
            layer(torch.rand(1, 4))
        assert meter.value == 16
