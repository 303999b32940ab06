from __future__ import annotations

import pytest
import torch

from flexmoe_core.devices import choose_device, reproducible_convolutions
from flexmoe_core.errors import InputError


@pytest.mark.parametrize("gpus", [0, 2])
def test_automatic_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device("auto").type == ("cuda" if gpus else "cpu")


def test_each_hospital_can_name_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("name", "what"), [("gpu", "not known"), ("meta", "not known"), ("cuda:2", "shows 2 GPUs")])
def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, what: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=what):
        choose_device(name)


@pytest.mark.parametrize("before", [False, True])
def test_convolutions_are_reproducible_for_a_while_only(before: bool) -> None:
    with torch.backends.cudnn.flags(enabled=True, deterministic=before):
        with pytest.raises(ZeroDivisionError), reproducible_convolutions():
            assert torch.backends.cudnn.deterministic
            _ = 1 / 0
        assert torch.backends.cudnn.deterministic == before
