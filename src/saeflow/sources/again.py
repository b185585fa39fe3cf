"""How a model goes to another process: as the name it was loaded by, never as its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from saeflow.engines import device_of_worker
from saeflow.errors import InvalidArgument

Asked = tuple[str, str, object, bool | None]
"""What a model was loaded by: name, device, dtype, and whether texts begin with a begin-of-text token."""

Reduced = tuple[Callable[..., object], tuple[object, ...]]
"""What `__reduce__` returns."""


def asked_for(name: str | Path, device: object, dtype: object, prepend_bos: bool | None = None) -> Asked:
    """The arguments of `load_model`; a folder by its whole path, since another process may run elsewhere."""
    here = name != "demo" and Path(name).exists()
    return str(Path(name).absolute() if here else name), str(device), dtype, prepend_bos


def reduced(asked: Asked | None) -> Reduced:
    """How another process gets the same model.

    Raises:
        InvalidArgument: when it was built in memory.
    """
    if asked is None:
        raise InvalidArgument(
            "the model was built in memory, and another process cannot load it by name. Save it with its tokenizer "
            "(save_pretrained) and load the folder with load_model, or take the engine here."
        )
    return loaded, asked


@lru_cache(maxsize=1)
def loaded(name: str, device: str, dtype: object, prepend_bos: bool | None = None) -> object:
    """In a worker: the model, loaded once for all works of the process."""
    from saeflow.sources import model

    return model.load_model(
        name,
        device=device_of_worker(device),
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        prepend_bos=prepend_bos,
    )
