"""The recipe's global batch on the devices there are."""

from dataclasses import dataclass

from ..errors import InputError
from .config import RunConfig

__all__ = ["Batching", "work_out"]


@dataclass(frozen=True)
class Batching:
    """How a step's pictures are shared out: `whole = per_device * accumulate * devices`."""

    per_device: int
    accumulate: int
    devices: int

    @property
    def whole(self) -> int:
        """The global batch."""
        return self.per_device * self.accumulate * self.devices

    def batches(self, there: "Batching", count: int) -> int:
        """How many batches of a device make the steps that `count` made `there`, with the same global batch."""
        return count // there.accumulate * self.accumulate

    def __str__(self) -> str:
        times = f" x {self.accumulate} times" if self.accumulate > 1 else ""
        devices = f"{self.devices} devices" if self.devices > 1 else "1 device"
        return f"global batch {self.whole}: {self.per_device} pictures{times} on {devices}"


def work_out(config: RunConfig, devices: int) -> Batching:
    """Share the global batch out.

    Args:
        config: `batch_size`, which the global batch cuts down where it is smaller, and `global_batch_size`.
        devices: Of all machines.

    Raises:
        InputError: If the devices, or the devices and the batch size, do not divide the global batch.
    """
    assert config.batch_size != "auto"
    size, whole = config.batch_size, config.global_batch_size
    if whole is None:
        return Batching(size, 1, devices)
    if whole % devices:
        near = [str(n) for n in (whole // devices * devices, -(-whole // devices) * devices) if n]
        raise InputError(
            f"--global_batch_size {whole}: {devices} devices do not divide it; "
            f"give {' or '.join(near)}, or other devices"
        )
    share = whole // devices
    size = min(size, share)
    if share % size:
        fitting = max(n for n in range(1, size + 1) if share % n == 0 and (n % 2 == 0 or n == share or n == 1))
        raise InputError(
            f"--batch_size {config.batch_size}: does not divide the {share} pictures that each of {devices} devices "
            f"has in a global batch of {whole}; {fitting} does"
        )
    return Batching(size, share // size, devices)
