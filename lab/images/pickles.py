"""Reads CIFAR-10's pickles as untrusted input: nothing in them runs, and they take no more memory than their size."""

import io
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.base.errors import UserError, brief

AGAIN = "delete it and download it again"

# All that the published files use, and what Python 3 writes for the same dictionaries with protocols 2 to 4.
_KNOWN = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINUNICODE SHORT_BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL "
    "STACK_GLOBAL REDUCE BUILD"
)
_OPCODES = frozenset(_KNOWN.split())
_MAX_OPCODES = 100_000  # a batch file has 30,108
_MAX_WIDTH = 200  # of a tuple, in opcodes; the widest has about 40
_MAX_MEMO = 1 << 20  # they use about 10,000; the unpickler allocates up to the highest index
# Objects in one another make depth, and those fetched from the memo twice make trees larger than the file: of 40
# tuples, each of the one before it twice, the last has 2^40 leaves, all of which hashing or printing would visit.
_LIMITS = tuple(
    (frozenset(names.split()), most, what)
    for names, most, what in (
        ("EMPTY_LIST EMPTY_DICT EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL REDUCE BUILD",
         100, "structured objects"),  # they have about 15
        ("BINGET LONG_BINGET", 32, "shared objects"),  # the published files have none, Python 3's at most 25
        ("REDUCE", 16, "made objects"),  # 2, and Python 3's up to 12
    )
)  # fmt: skip


class _StandIn:
    """Takes the place of a NumPy object: holds what the pickle says about it and acts on nothing.

    NumPy's own __setstate__ trusts its input (a wrong flag in a dtype makes it follow pixels as pointers).
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_StandIn):
    pass


class _Dtype(_StandIn):
    pass


class _Encoded(_StandIn):
    """_codecs.encode(text, 'latin1'), which is how protocol 2 of Python 3 writes bytes."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"text in encoding {shown(encoding)}")
        return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _StandIn,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_StandIn]:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which these files never hold")
        return _GLOBALS[module, name]


def _check_opcodes(data: bytes) -> None:
    """Walks over the pickle without running it: lengths inside the file, known opcodes, and few of them."""
    seen, marks = dict.fromkeys(_OPCODES, 0), [0]
    for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"opcode {opcode.name} at byte {position}")
        seen[opcode.name] += 1
        if opcode.name == "LONG_BINPUT" and (argument or 0) > _MAX_MEMO:
            raise pickle.UnpicklingError(f"memo index {argument}, limit {_MAX_MEMO}")
        if opcode.name == "MARK":
            marks.append(number)
        elif opcode.name in ("TUPLE", "APPENDS", "SETITEMS"):
            width = number - (marks.pop() if marks else 0)
            if opcode.name == "TUPLE" and width > _MAX_WIDTH:
                raise pickle.UnpicklingError(f"a tuple of more than {_MAX_WIDTH} opcodes")
        if number == _MAX_OPCODES:
            break
    for names, most, what in _LIMITS:
        if sum(seen[name] for name in names) > most:
            raise pickle.UnpicklingError(f"more than {most} {what}")
    if sum(seen.values()) > _MAX_OPCODES:
        raise pickle.UnpicklingError(f"more than {_MAX_OPCODES} opcodes")


def shown(value: Any) -> str:
    """A bad value for a message, in at most 100 letters and little work, whatever it is; else its type."""
    if isinstance(value, str | bytes):
        return repr(value[:20])
    if isinstance(value, tuple) and len(value) <= 4 and all(type(item) is int for item in value):
        return repr(value)
    return repr(value) if value is None or isinstance(value, int) else f"a {type(value).__name__}"


def text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def load(data: bytes, name: str) -> dict[Any, Any]:
    """The pickled dictionary with text keys; UserError for damage and for anything else in the file."""
    try:
        _check_opcodes(data)
        # encoding: a str of Python 2 stays bytes, so 30 MB of pixels are not decoded and encoded again.
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # damaged bytes raise nearly every kind
        raise UserError(f"{name} is no CIFAR-10 pickle or is damaged ({brief(error)}); {AGAIN}") from error
    if not isinstance(value, dict):
        raise UserError(f"{name} holds a {type(value).__name__} instead of a dictionary; {AGAIN}")
    return {text(key): item for key, item in value.items()}


def uint8_matrix(array: Any, columns: int) -> NDArray[np.uint8]:
    """The (N, columns) array that a stand-in describes; ValueError says what is wrong."""
    if not isinstance(array, _Array) or not isinstance(array.state, tuple) or len(array.state) != 5:
        raise ValueError("'data' is no array")
    _, shape, dtype, fortran_order, pixels = array.state
    code = text(dtype.arguments[0]) if isinstance(dtype, _Dtype) and dtype.arguments else None
    if code not in ("u1", "|u1", "uint8"):
        raise ValueError(f"'data' is not uint8 (dtype {shown(code)})")
    if not (
        isinstance(shape, tuple)
        and len(shape) == 2
        and all(type(length) is int for length in shape)
        and shape[0] > 0
        and shape[1] == columns
    ):
        raise ValueError(f"'data' has shape {shown(shape)} instead of (N, {columns})")
    if not isinstance(pixels, bytes) or len(pixels) != shape[0] * shape[1]:
        raise ValueError(f"'data' does not have the {shape[0] * shape[1]} bytes of its shape")
    flat = np.frombuffer(pixels, np.uint8)
    return flat.reshape(shape, order="F" if fortran_order else "C")
