"""A run for TensorBoard: its rows as scalars, its pictures as images. Needs tensorboard; the pictures, matplotlib."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from lab.base.errors import UserError

FOLDER = "tensorboard"  # in the run's
SCALARS = ("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "train_seconds")


class Summaries:
    """Writes the summaries of a run to `FOLDER` in its folder.

    Raises:
        UserError: without tensorboard, or if the folder cannot be written.
    """

    def __init__(self, run: Path) -> None:
        try:
            import tensorboard  # noqa: F401  # tf.summary finds it missing only when it writes
        except ImportError:
            raise UserError("--tensorboard needs tensorboard; try: pip install tensorboard") from None
        try:
            self.writer = tf.summary.create_file_writer(str(run / FOLDER))
        except tf.errors.OpError as error:
            raise UserError(f"cannot write {run / FOLDER}: {error.message}; try another --out") from None

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch's row of result.json."""
        with self.writer.as_default(step=row["epoch"]):
            for name in SCALARS:
                tf.summary.scalar(name, row[name])
        self.writer.flush()

    def pictures(self, run: Path, epoch: int, data: str) -> list[str]:
        """Draws a finished run's pictures into its folder, test set evaluated, and writes them as images too.

        Args:
            run: its folder.
            epoch: its last, the images' step.
            data: the path of its images; "": found as data.load finds them.

        Returns: a line for each picture that there is none of.
        """
        try:
            return self._pictures(run, epoch, data)
        except (UserError, ImportError) as error:  # the run has ended well, whatever comes of its pictures
            return [f"no pictures: {error}"]

    def _pictures(self, run: Path, epoch: int, data: str) -> list[str]:
        from lab.report import confusion
        from lab.report import figures as pictures
        from lab.runs import trained

        found = trained.load(run)
        images = confusion.load_data(found.result, found.options, data)
        confusion.write_predictions(found, images, confusion.evaluate(found, images))
        missing = []
        with self.writer.as_default(step=epoch):
            for picture in pictures.draw(run, run / "pictures", data=data or None):
                if picture.missing:
                    missing.append(f"no {picture.name}: {picture.missing}")
                else:
                    content = (run / "pictures" / picture.name).read_bytes()
                    tf.summary.image(Path(picture.name).stem, tf.io.decode_png(content, channels=3)[None])
        self.writer.flush()
        return missing
