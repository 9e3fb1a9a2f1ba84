"""A run's rows as scalars for TensorBoard. Needs tensorboard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from lab.base.errors import UserError

FOLDER = "tensorboard"  # in the run's
SCALARS = ("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "train_seconds")


class Board:
    """Writes the rows of a run to `FOLDER` in its folder.

    Raises:
        UserError: without tensorboard, or if the folder cannot be written.
    """

    def __init__(self, run: Path) -> None:
        try:
            import tensorboard  # noqa: F401  # tf.summary notices that it is missing only when it writes
        except ImportError:
            raise UserError("--tensorboard needs tensorboard; try: pip install tensorboard") from None
        try:
            self.writer = tf.summary.create_file_writer(str(run / FOLDER))
        except tf.errors.OpError as error:
            raise UserError(f"cannot write {run / FOLDER}: {error.message}; try another --out") from None

    def write(self, row: Mapping[str, Any]) -> None:
        """An epoch's row of result.json, at once."""
        with self.writer.as_default(step=row["epoch"]):
            for name in SCALARS:
                tf.summary.scalar(name, row[name])
        self.writer.flush()
