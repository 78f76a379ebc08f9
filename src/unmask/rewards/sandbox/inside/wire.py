"""Frames and values between the processes of a jail: length-prefixed JSON, rebuilt from builtin types only.

A value is JSON with one-key objects as tags: `{"l": [..]}` a list, `{"t": ..}` a tuple, `{"i": ..}` a large integer
in hex, and so on. Whoever decodes gets exact builtin objects: no class of the sender, hence none of its methods,
comes along.
"""

import json
import os
from itertools import islice

LARGEST = 1 << 20
"""Bytes of an answer of a candidate."""
DEEPEST = 40
LONGEST_ITERATOR = 1 << 16


class WireError(Exception):
    """A frame or a value that does not cross: too large, too deep, of a class, malformed, or the other side ended."""


def frame(message):
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def write_frame(fd, message):
    write(fd, frame(message))


def write(fd, data):
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd, largest=LARGEST):
    size = int.from_bytes(_read(fd, 4), "big")
    if size > largest:
        raise WireError("too large")
    return json.loads(_read(fd, size))


def _read(fd, size):
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 16))
        if not part:
            raise WireError("ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode(value, depth=0):
    """The content of a value. What subclasses of builtin types override is bypassed; other types do not cross."""
    if depth > DEEPEST:
        raise WireError("too deep")

    def many(values):
        return [encode(v, depth + 1) for v in values]

    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        exact = int.__add__(value, 0)
        return exact if -(2**53) < exact < 2**53 else {"i": format(exact, "x")}  # hex has no limit of digits
    if isinstance(value, str):
        return str.__add__("", value)
    if isinstance(value, float):
        return {"f": float.hex(value)}
    if isinstance(value, complex):
        return {"c": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"b": bytes(value).hex()}
    if isinstance(value, range):
        return {"r": [value.start, value.stop, value.step]}
    if isinstance(value, dict):
        return {"d": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in dict.items(value)]}
    for kind, tag in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z")):
        if isinstance(value, kind):
            return {tag: many(kind.__iter__(value))}  # pyright: ignore[reportArgumentType]
    for kind, tag in ((type({}.keys()), "dk"), (type({}.values()), "dv"), (type({}.items()), "di")):
        if isinstance(value, kind):
            return {tag: many(value)}
    if hasattr(type(value), "__next__"):
        taken = list(islice(value, LONGEST_ITERATOR + 1))
        if len(taken) > LONGEST_ITERATOR:
            raise WireError("too large")
        return {"g": many(taken)}
    raise WireError("a " + type(value).__name__)


def decode(message, depth=0):
    """Inverse of `encode`. The message may be hostile: anything malformed raises some ordinary exception."""
    if message is None or type(message) in (bool, int, str):
        return message
    if depth > DEEPEST:
        raise WireError("too deep")
    if type(message) is not dict:
        raise WireError("malformed")
    ((tag, content),) = message.items()
    if tag == "i":
        return int(content, 16)
    if tag == "f":
        return float.fromhex(content)
    if tag == "c":
        return complex(*map(float.fromhex, content))
    if tag == "b":
        return bytes.fromhex(content)
    if tag == "r":
        return range(*content)
    if tag == "d":
        return {decode(k, depth + 1): decode(v, depth + 1) for k, v in content}
    values = [decode(v, depth + 1) for v in content]
    return _KINDS[tag](values)


_KINDS = {
    "l": list,
    "t": tuple,
    "s": set,
    "z": frozenset,
    "g": iter,
    "dk": lambda values: dict.fromkeys(values).keys(),
    "di": lambda values: dict(values).items(),
    "dv": lambda values: dict(enumerate(values)).values(),
}
