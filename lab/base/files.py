"""Files on any path that tf.io.gfile knows, `gs://` too: written whole, reached in time, errors in a few words."""

import os
import re
import threading
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter; read at its import

import tensorflow as tf

from lab.base.errors import UserError

# What tf.io.gfile, TFRecords and tf.train.Checkpoint raise where a file cannot be written or read.
FILE_ERRORS = (tf.errors.OpError, OSError)
ANSWER_SECONDS = 30.0  # of a storage service to the first question; TensorFlow itself tries for minutes


def is_remote(path: str) -> bool:
    """Whether the path names its file system: gs://bucket/folder."""
    return "://" in path


def brief(error: Exception) -> str:
    """The error in a few words."""
    text = (
        getattr(error, "message", "") or getattr(error, "strerror", "") or str(error) or type(error).__name__
    )
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(text))  # which of tf.data's nodes it was
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:80]}...{text[-117:]}"  # TensorFlow says the cause last


def write_whole(path: str, text: str) -> None:
    """Writes a file under another name and renames it. Raises one of FILE_ERRORS."""
    with tf.io.gfile.GFile(f"{path}.part", "w") as file:
        file.write(text)
    tf.io.gfile.rename(f"{path}.part", path, overwrite=True)


def first_answer(path: str, question: Callable[[str], Any]) -> Any:
    """question(path), the first about this path, asked in a thread so that it cannot take longer than ANSWER_SECONDS.

    Raises UserError if it does, or if the path cannot be reached: no network, credentials or such file system.
    Errors that say that something is not there are the caller's.
    """
    found: list[Any] = []
    failed: list[Exception] = []

    def ask() -> None:
        try:
            found.append(question(path))
        except FILE_ERRORS as error:
            failed.append(error)

    # A daemon: a thread that still waits for an answer does not keep the process from ending.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    remedy = "check the path, the network and the credentials (gcloud auth application-default login)"
    if thread.is_alive():
        raise UserError(f"{path} does not answer within {ANSWER_SECONDS:g} s; {remedy}")
    if failed and isinstance(failed[0], tf.errors.NotFoundError):
        raise failed[0]
    if failed:
        raise UserError(f"cannot reach {path}: {brief(failed[0])}; {remedy}")
    return found[0]
