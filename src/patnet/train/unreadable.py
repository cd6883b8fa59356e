"""Pictures that cannot be read: listed in the run folder, and counted, up to a share."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ..errors import InputError

__all__ = ["Unreadable"]


class Unreadable(Callback):
    """Lists the pictures in whose place another was taken, and stops the run where they are too many.

    Args:
        file: The list, a line for each picture.
        allowed: Share of the pictures of an epoch.
    """

    def __init__(self, file: Path, allowed: float) -> None:
        self.file = file
        self.allowed = allowed
        self.seen: dict[str, None] = {}

    def state_dict(self) -> dict[str, Any]:
        """The pictures so far."""
        return {"seen": list(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the list of the run that is resumed."""
        self.seen = dict.fromkeys(state_dict["seen"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch's pictures.

        Raises:
            InputError: If they are more than allowed.
        """
        new = [fault for fault in dict.fromkeys(batch[2]) if fault not in self.seen]
        if not new:
            return
        self.seen |= dict.fromkeys(new)
        with self.file.open("a", encoding="utf-8") as file:  # by whichever process met them
            file.write("".join(f"{fault}\n" for fault in new))
        pictures = int(trainer.num_training_batches) * len(batch[1])
        if len(self.seen) > self.allowed * pictures:
            raise InputError(
                f"{new[0]}; {len(self.seen)} of {pictures} pictures cannot be read, more than --max_unreadable "
                f"{self.allowed} allows; {self.file} lists them: mend or remove them, or raise it"
            )
