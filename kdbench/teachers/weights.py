"""Where the weights of teachers lie on this machine, and how they are fetched. Torch is imported only where timm is asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlparse

from kdbench.datasets.download import fetch_file, file_digest
from kdbench.errors import KdbenchError, ListedError, counted, masked, nearest
from kdbench.opening import inside
from kdbench.suite.net import NetSpec, WeightsFile

#: Endings of files of weights, in the order in which they are looked for.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Weights:
    """Weights that a teacher needs.

    Attributes:
        teacher: its name.
        net: it, whose ``weights`` is ``"timm"``, ``"finetune"`` or a file.
        file: the name under which they are kept below the folder of the weights.
        sha256: what the file must have; None where nothing is known.
        url: where the file can be fetched.
        repo, repo_files: the Hugging Face repository, and names of the file in it in the order in which they are tried.
        path: where they were found; None where they are missing.
    """

    teacher: str
    net: NetSpec
    file: str
    sha256: str | None = None
    url: str | None = None
    repo: str | None = None
    repo_files: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def origin(self) -> str:
        """Where they come from, for listings."""
        if isinstance(self.net.weights, WeightsFile):
            return f"file {self.file}"
        return f"timm {self.net.timm}"

    @property
    def where_to_get(self) -> str:
        """Where to get them, for messages."""
        places = [f"Hugging Face {self.repo}"] if self.repo else []
        places += [masked(self.url)] if self.url else []
        source = self.net.weights.source if isinstance(self.net.weights, WeightsFile) else None
        return ", or ".join(places) or source or "the authors (the suite gives no address)"


def find_weights(teacher: str, net: NetSpec, folder: Path | None) -> Weights:
    """Look for the weights of a teacher in ``folder``, then, for timm's own, in the caches of Hugging Face and torch.

    Nothing is fetched.

    Raises:
        KdbenchError: if timm has no weights of that name.
    """
    if isinstance(net.weights, WeightsFile):
        found = Weights(teacher, net, net.weights.file, net.weights.sha256, net.weights.url)
        path = inside(folder, found.file) if folder else None
        return replace(found, path=path if path and path.is_file() else None)
    return _find_timm(teacher, net, folder)


def _find_timm(teacher: str, net: NetSpec, folder: Path | None) -> Weights:
    import timm
    import torch
    from timm.models import get_pretrained_cfg

    import kdbench.nets.small  # noqa: F401 - registers the 32 px nets with timm

    base = net.timm.split(".")[0]
    known = [name for name in timm.list_pretrained(f"{base}*") if name.split(".")[0] == base]
    if net.timm not in known:
        hint = nearest(net.timm, known) if known else f"it has none of {base}"
        raise KdbenchError(f"teacher {teacher}: timm has no weights {net.timm}; {hint}")
    config = get_pretrained_cfg(net.timm)
    named = config.hf_hub_filename
    found = Weights(
        teacher,
        net,
        f"{net.timm}{SUFFIXES[0]}",
        url=config.url if isinstance(config.url, str) and config.url else None,
        repo=config.hf_hub_id or None,
        repo_files=(named,) if named else ("model.safetensors", "pytorch_model.bin"),
    )
    paths = [inside(folder, f"{net.timm}{suffix}") for suffix in SUFFIXES] if folder else []
    paths += _in_hub_cache(found)
    if found.url:
        paths.append(Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(found.url).path).name)
    return replace(found, path=next((path for path in paths if path.is_file()), None))


def _in_hub_cache(weights: Weights) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache

    if weights.repo is None:
        return []
    repo, _, revision = weights.repo.partition("@")
    cached = [try_to_load_from_cache(repo, name, revision=revision or None) for name in weights.repo_files]
    return [Path(path) for path in cached if isinstance(path, str)]


def check_file(weights: Weights) -> str:
    """SHA-256 of the file that was found.

    Raises:
        KdbenchError: if it is missing, cannot be read, or is another one than the suite says.
    """
    if weights.path is None:
        raise missing_weights([weights], "SUITE")
    try:
        found = file_digest(weights.path, "sha256")
    except OSError as error:
        raise KdbenchError(
            f"weights of teacher {weights.teacher}: {weights.path} cannot be read ({error.strerror})"
        ) from None
    if weights.sha256 and found != weights.sha256:
        raise KdbenchError(
            f"weights of teacher {weights.teacher}: {weights.path} has sha256 {found}, the suite expects {weights.sha256}: "
            f"another file, or one that is cut; available from {weights.where_to_get}"
        )
    return found


def fetch_weights(weights: Weights, folder: Path | None, progress: Callable[[int, int], None] | None = None) -> Weights:
    """Fetch weights that are missing: files by their address into ``folder``, timm's own into the cache of Hugging Face.

    Raises:
        KdbenchError: in one line, if that fails.
    """
    if weights.path is not None:
        return weights
    if weights.repo is not None:
        return replace(weights, path=_from_hub(weights))
    if weights.url is None:
        raise KdbenchError(
            f"weights of teacher {weights.teacher}: {weights.file} cannot be downloaded; available from "
            f"{weights.where_to_get}"
        )
    if folder is None:
        raise KdbenchError(
            f"weights of teacher {weights.teacher}: say with --data or --weights where {weights.file} goes"
        )
    path = inside(folder, weights.file)
    fetch_file(weights.url, path, weights.sha256, progress)
    return replace(weights, path=path)


def _from_hub(weights: Weights) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    assert weights.repo is not None
    repo, _, revision = weights.repo.partition("@")
    if not os.isatty(2):
        disable_progress_bars()
    problem = ""
    for name in weights.repo_files:
        try:
            return Path(hf_hub_download(repo, name, revision=revision or None))
        except EntryNotFoundError:
            problem = f"it does not hold {' or '.join(weights.repo_files)}"
        except Exception as error:  # the client raises those of several HTTP libraries
            problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            break
    raise KdbenchError(
        f"weights of teacher {weights.teacher}: Hugging Face {repo} cannot be downloaded ({problem}); is there a network?"
    )


def missing_weights(missing: Sequence[Weights], suite: str, folder: Path | None = None) -> ListedError:
    """One message for all weights that are missing: where they go, where to get them, and what trains them instead."""
    place = str(folder) if folder else "the folder that --data or --weights names"
    lines = []
    for weights in missing:
        wanted = f" (sha256 {weights.sha256})" if weights.sha256 else ""
        ours = [f"kdbench teachers {suite} --train {weights.teacher} (from scratch)"]
        if isinstance(weights.net.weights, WeightsFile) and "." in weights.net.timm:
            ours.insert(0, f"kdbench teachers {suite} --fine-tune {weights.teacher} (from timm's weights)")
        lines.append(
            f"{weights.teacher}: put {folder / weights.file if folder else weights.file}{wanted}; "
            f"from {weights.where_to_get}; or make it here: {' or '.join(ours)}"
        )
    return ListedError(
        f"the weights of {counted(len(missing), 'teacher')} are missing in {place}; "
        f"kdbench teachers {suite} --fetch downloads what has an address",
        lines,
    )
