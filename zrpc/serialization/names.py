"""The names that stand in a pickle for things which only a reader can make.

One rule: nothing here is ever called. A reducer returns one of these functions so that the pickler writes its name;
the reader resolves the name to something of its own (see `pickler`), which knows the message's buffers. A pickle that
is read by anything else fails here, instead of making half a value.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

MODULE: Final = __name__
"""The module part of all these names, as pickles spell it."""


def _outside(what: str) -> NoReturn:
    raise TypeError(f"a {what} of a zrpc message can only be read together with the message's buffers")


def tensor(*_: Any) -> NoReturn:
    """A contiguous tensor that is the whole of its storage: buffer index, dtype code, shape."""
    _outside("tensor")


def leaf(*_: Any) -> NoReturn:
    """The same with requires_grad set."""
    _outside("tensor")


def view(*_: Any) -> NoReturn:
    """Any strided tensor: buffer index, dtype code, offset, shape, strides, flags, device."""
    _outside("tensor")


def meta(*_: Any) -> NoReturn:
    """A tensor without memory: dtype code, shape, strides, flags."""
    _outside("tensor")


def quantized(*_: Any) -> NoReturn:
    """A quantized tensor: buffer index, dtype code, offset, shape, strides, device, quantizer."""
    _outside("tensor")


def sparse_coo(*_: Any) -> NoReturn:
    """A COO tensor: indices, values, shape, is coalesced, flags."""
    _outside("tensor")


def sparse_compressed(*_: Any) -> NoReturn:
    """A CSR, CSC, BSR or BSC tensor: layout code, compressed indices, plain indices, values, shape, flags."""
    _outside("tensor")


def nested(*_: Any) -> NoReturn:
    """A nested tensor of the strided layout: its parts, dtype code, flags, device."""
    _outside("tensor")


def jagged(*_: Any) -> NoReturn:
    """A nested tensor of the jagged layout: values, offsets, lengths, ragged dimension, flags."""
    _outside("tensor")


def parameter(*_: Any) -> NoReturn:
    """A torch.nn.Parameter: its data, requires_grad."""
    _outside("parameter")


def recorded(*_: Any) -> NoReturn:
    """A tensor that belongs to an autograd graph: its place among those of the message, the tensor without the graph."""
    _outside("tensor")


def subclassed(*_: Any) -> NoReturn:
    """An instance of a subclass of torch.Tensor: class, plain tensor, requires_grad, attributes."""
    _outside("tensor")


def same(*_: Any) -> NoReturn:
    """The one argument itself."""
    _outside("value")


def complex_number(*_: Any) -> NoReturn:
    """A complex: real part, imaginary part."""
    _outside("complex")


def dtype(*_: Any) -> NoReturn:
    """A torch.dtype: its code."""
    _outside("dtype")


def device(*_: Any) -> NoReturn:
    """A torch.device: its text."""
    _outside("device")


def layout(*_: Any) -> NoReturn:
    """A torch.layout: its code."""
    _outside("layout")


def memory_format(*_: Any) -> NoReturn:
    """A torch.memory_format: its code."""
    _outside("memory format")


def size(*_: Any) -> NoReturn:
    """A torch.Size: a tuple."""
    _outside("torch.Size")


def named_tuple(*_: Any) -> NoReturn:
    """A named tuple: the class's name, the field names, the values."""
    _outside("named tuple")


def enum_member(*_: Any) -> NoReturn:
    """A member of an Enum: module, qualified name, member name, value."""
    _outside("enum member")


def script_object(*_: Any) -> NoReturn:
    """An instance of a TorchScript class: qualified name, attributes."""
    _outside("TorchScript object")


def script_module(*_: Any) -> NoReturn:
    """A ScriptModule by value: the bytes of its archive as an uint8 tensor."""
    _outside("ScriptModule")


def main_object(*_: Any) -> NoReturn:
    """Something defined in `__main__`: qualified name, digest of the script, how to make it, with what."""
    _outside("value")


def main_state(*_: Any) -> NoReturn:
    """Its state: the thing, (qualified name, digest, how to set it, state)."""
    _outside("value")
