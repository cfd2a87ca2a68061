"""Calibration hidden states between blocks: on the device while they fit, else on the host, copied while it works."""

import torch
from torch import Tensor

RESIDENT = 2**30  # bytes of hidden states that stay on a GPU


class Resident:
    """Each batch's hidden states [n, width, hidden], where they were made."""

    def __init__(self) -> None:
        self._states: dict[int, Tensor] = {}

    def get(self, batch: int) -> Tensor:
        return self._states[batch]

    def put(self, batch: int, states: Tensor) -> None:
        self._states[batch] = states


class Spilled:
    """The same in page-locked host memory: the next batch is on its way while a block runs this one, and what it left
    goes back meanwhile."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._host: dict[int, Tensor] = {}
        self._ahead: dict[int, tuple[Tensor, torch.cuda.Event]] = {}
        self._incoming, self._outgoing = torch.cuda.Stream(), torch.cuda.Stream()

    def _load(self, batch: int) -> None:
        self._incoming.wait_stream(self._outgoing)
        with torch.cuda.stream(self._incoming):
            self._ahead[batch] = self._host[batch].to(self._device, non_blocking=True), self._incoming.record_event()

    def get(self, batch: int) -> Tensor:
        if batch not in self._ahead:
            self._load(batch)
        states, arrived = self._ahead.pop(batch)
        if batch + 1 in self._host:
            self._load(batch + 1)
        torch.cuda.current_stream().wait_event(arrived)
        states.record_stream(torch.cuda.current_stream())
        return states

    @torch.inference_mode()  # whoever calls: a tensor made within inference mode is written within it only
    def put(self, batch: int, states: Tensor) -> None:
        if batch not in self._host:
            self._host[batch] = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
        self._outgoing.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._outgoing):
            self._host[batch].copy_(states, non_blocking=True)
        states.record_stream(self._outgoing)


HiddenStates = Resident | Spilled


def hidden_states(device: str, n_bytes: int) -> HiddenStates:
    """A place for n_bytes of hidden states."""
    return Resident() if torch.device(device).type == "cpu" or n_bytes <= RESIDENT else Spilled(device)
