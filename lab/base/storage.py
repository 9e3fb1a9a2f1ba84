"""`lab.base.files` for any path that tf.io.gfile knows, `gs://` too, and questions to it that end in time."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from lab.base import files
from lab.base.errors import UserError, brief

# What tf.io.gfile and TFRecords raise where a file cannot be written or read.
FILE_ERRORS = (tf.errors.OpError, OSError)
ANSWER_SECONDS = 30.0  # of a storage service to the first question; TensorFlow itself tries for minutes


def is_remote(path: str | Path) -> bool:
    """Whether the path names its file system: gs://bucket/folder."""
    return "://" in str(path)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """As files.write_whole, on any path. Raises one of FILE_ERRORS: what remedy there is, the caller knows."""
    if not is_remote(path):
        files.replace(path, content)
        return
    with tf.io.gfile.GFile(f"{path}.part", "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    tf.io.gfile.rename(f"{path}.part", path, overwrite=True)


def read(path: str | Path, limit: int | None = None) -> bytes:
    """A file's content. Raises one of FILE_ERRORS, or ValueError if it is no file (a FIFO would wait) or larger."""
    _check_file(path)
    with tf.io.gfile.GFile(path, "rb") as file:
        content: bytes = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content


def _check_file(path: str | Path) -> None:
    if not is_remote(path) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is no file")


def with_timeout(path: str, question: Callable[[str], Any]) -> Any:
    """question(path), the first about this path, asked in a thread so that it cannot take longer than ANSWER_SECONDS.

    Raises UserError if it does, or if the path cannot be reached: no network, credentials or such file system.
    NotFoundError is left to the caller.
    """
    remedy = "check the path, the network and the credentials (gcloud auth application-default login)"
    try:
        return answered(lambda: question(path), ANSWER_SECONDS)
    except Unanswered:
        raise UserError(f"{path} does not answer within {ANSWER_SECONDS:g} s; {remedy}") from None
    except tf.errors.NotFoundError:
        raise
    except FILE_ERRORS as error:
        raise UserError(f"cannot reach {path}: {brief(error)}; {remedy}") from None


class Unanswered(Exception):
    """A question took longer than was waited for."""


def answered(question: Callable[[], Any], seconds: float) -> Any:
    """What the question returns or raises, if it does so in that time; else raises Unanswered, and it goes on alone."""
    answers: list[Any] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:
            errors.append(error)

    # A daemon: a thread that still waits for an answer does not keep the process from ending.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Unanswered
    if errors:
        raise errors[0]
    return answers[0]
