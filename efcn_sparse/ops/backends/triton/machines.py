"""What GPUs can do at the most: data of the work model."""

from __future__ import annotations

from dataclasses import dataclass

from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.tuning import family


@dataclass(frozen=True)
class Machine:
    """Ceilings: FLOP/s of the matrix units for operands of 16, 32 and 64 bits, and bytes/s of the two memories."""

    name: str
    flops: dict[int, float]
    l2: float
    memory: float


# bf16 and memory as measured on these two; L2, and the other operands' rates (of the data sheet), are leads
H200 = Machine("H200", {16: 790e12, 32: 395e12, 64: 60e12}, l2=5.5e12, memory=4.3e12)
H100 = Machine("H100", H200.flops | {16: 798e12}, l2=H200.l2, memory=3.0e12)
# leads altogether: nine tenths of the data sheets, and for L2 what has been published of such GPUs
_LEADS = (
    Machine("A100", {16: 280e12, 32: 140e12, 64: 17e12}, l2=4.5e12, memory=1.7e12),
    Machine("B200", {16: 2000e12, 32: 1000e12, 64: 35e12}, l2=9.0e12, memory=7.0e12),
    Machine("MI300X", {16: 1100e12, 32: 550e12, 64: 140e12}, l2=8.0e12, memory=4.7e12),
    Machine("GeForce", {16: 150e12, 32: 75e12, 64: 1.2e12}, l2=4.0e12, memory=0.9e12),
)
MACHINES = (H200, H100, *_LEADS)
_OF_FAMILY = {"sm80": "A100", "sm90": "H200", "sm100": "B200", "gfx942": "MI300X"}
_WITH_DATA_CENTRE_MEMORY = ("sm80", "sm90", "sm100", "sm103", "gfx942", "gfx950")


def machine_of(device: Device) -> Machine:
    """The ceilings of a GPU: by its name, or those of the nearest that is known."""
    for machine in MACHINES:
        if machine.name in device.name:
            return machine
    known = {machine.name: machine for machine in MACHINES}
    if device.arch.startswith("sm") and device.arch not in _WITH_DATA_CENTRE_MEMORY:
        return known["GeForce"]
    return known[_OF_FAMILY.get(family(device.arch), "H200")]
