"""Read what diffusers saved, in a folder or on the hub: configurations, weights without a gap, files beside them."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from ..core import InputError, canonical_json

CONFIG = "config.json"


def looks_local(path: str) -> bool:
    """Return True for what is meant as a path of this machine.

    A name on the hub has one slash at the most; with a folder called like what is before it, `runs/none` is a path.
    """
    is_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    folder, slash, _ = path.partition("/")
    return is_path or Path(path).exists() or (bool(slash) and Path(folder).is_dir())


def find_config(
    kind: Any, path: str, subfolders: Sequence[str | None]
) -> tuple[str | None, dict[str, Any]]:
    """Return the first of the subfolders that has a configuration, None for the root, and what it says.

    Args:
        kind: diffusers' class that reads it.

    Raises:
        OSError: none of them has one, or the hub cannot be reached.
    """
    last: OSError | None = None
    for subfolder in subfolders:
        try:
            config: Any = kind.load_config(path, subfolder=subfolder)
            return subfolder, dict(config)
        except OSError as error:
            last = error

    assert last is not None
    raise last


def load_network(kind: Any, path: str, subfolder: str | None, what: str) -> Any:
    """Load a network in eval mode without gradients; every weight has to be there.

    Args:
        kind: diffusers' class of it.
        what: it is, for the message.

    Raises:
        InputError: there are no weights, or damaged ones; or one is missing, or of another shape, or there are others:
            diffusers would go on with random ones in their place.
    """
    try:
        with _quiet_diffusers():  # it says in many lines what is said in one here
            net, loading = kind.from_pretrained(
                path, subfolder=subfolder, low_cpu_mem_usage=False, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{what} {path}: its weights cannot be loaded ({reason[:200]}); fetch or make it again"
        ) from error

    faults = sorted(
        f"{kind}: {', '.join(map(str, keys))}" for kind, keys in loading.items() if keys
    )
    if faults:
        raise InputError(
            f"{what} {path}: its weights do not fit its config ({'; '.join(faults)[:200]})"
        )

    return net.eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Keep diffusers' warnings back inside the block."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def network_digest(facts: Mapping[str, Any], net: torch.nn.Module) -> str:
    """Return the SHA-256 over facts and every weight of a network: the same for any file format."""
    total = hashlib.sha256(canonical_json(facts))
    for name, tensor in sorted(net.state_dict().items()):
        shape = tuple(tensor.shape)
        heading = f"{name} {tensor.dtype} {shape}\n"
        content = tensor.detach().cpu().contiguous().view(torch.uint8)
        total.update(heading.encode())
        total.update(content.numpy().tobytes())

    return total.hexdigest()


def structure_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration says of the network, without diffusers' notes on versions and files."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def origin_of(path: str) -> str:
    """Return the name of a model for people: of a folder without those that it lies in."""
    return Path(path).resolve().name if Path(path).exists() else path


def model_file(path: str, name: str) -> Path | None:
    """Return a file beside a U-Net, in its folder or fetched from the hub; None where it has none.

    Raises:
        InputError: the hub cannot be asked, and it is not known from before: a model must not lose what it says.
    """
    if Path(path).exists():
        file = Path(path) / name
        return file if file.exists() else None

    try:
        return Path(hf_hub_download(path, name))
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        # The hub says so, now or when it was asked before; out of reach it says nothing
        is_absent = isinstance(error, EntryNotFoundError) and not isinstance(
            error, LocalEntryNotFoundError
        )
        if is_absent or _is_known_to_lack(path, name):
            return None

        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"diffusion model {path}: it could not be found out whether it has {name} ({reason}); "
            "try again with the hub in reach, or give a local folder"
        ) from error


def _is_known_to_lack(path: str, name: str) -> bool:
    """Return True if the cache of the hub has noted that a model has no such file."""
    found = try_to_load_from_cache(path, name)
    return found is not None and not isinstance(found, str)
