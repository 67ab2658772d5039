"""What a teacher computed for every batch, kept on disk for later cells that see the same batches.

A batch is a pure function of (seed, epoch, step), augmentation included, so cells of the same suite, recipe and seed that are
trained at another time (other methods, other hyper-parameters, a cohort that was split) see it again, bit for bit. What is kept
is keyed by batch and not by image: another company in the batch would change the last bits of what a net computes. The key
covers everything that the outputs depend on; on top of it, the first batch of every epoch is computed and compared before
anything of that epoch is used. What is damaged, or differs, is not used.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.engine.checkpoint import load_checkpoint, save_checkpoint
from kdbench.method import Outputs
from kdbench.nets.tapped import TappedNet
from kdbench.store.files import DamagedFileError
from kdbench.store.layout import TEACHER_OUTPUTS_FOLDER

#: Outputs that are small enough to be kept; the classifier is the net's own and costs nothing.
KEPT = ("logits", "embedding")
CACHEABLE = frozenset({*KEPT, "classifier", "index"})
#: An epoch is held in memory while it is made and read, so it must not be larger.
MOST_PER_EPOCH = 2**30
#: Parts of the package whose code decides what a batch and a net are.
_CODE = ("data", "datasets", "nets", "suite/net.py", "seeding.py", "suite/recipe.py", "engine/shared.py")


@functools.lru_cache(maxsize=1)
def code_hash() -> str:
    """A checksum over the source that makes batches and nets."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for part in _CODE:
        path = root / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


class TeacherCache:
    """The outputs of one teacher for the batches of one recipe and seed.

    Args:
        root: the run directory.
        key: everything that the outputs depend on.
        steps: of an epoch.
        limit: bytes that all caches of the run directory may take together.
        say: receives a sentence where nothing is kept, and why.
    """

    def __init__(
        self, root: Path, key: Mapping[str, Any], steps: int, limit: float, say: Callable[[str], None]
    ) -> None:
        text = json.dumps({**key, "code": code_hash()}, sort_keys=True, default=str)
        self.folder = root / TEACHER_OUTPUTS_FOLDER / hashlib.sha256(text.encode()).hexdigest()[:20]
        self.parent, self.steps, self.limit, self.say = root / TEACHER_OUTPUTS_FOLDER, steps, limit, say
        self.hits = self.misses = 0
        self._epoch = -1
        self._known: dict[str, Tensor] = {}
        self._made: dict[int, dict[str, Tensor]] = {}
        self._full = False

    def get(
        self, epoch: int, step: int, needs: frozenset[str], net: TappedNet, compute: Callable[[], Outputs]
    ) -> Outputs:
        """The teacher's outputs for a batch: as kept, or computed, and then kept."""
        wanted = [name for name in KEPT if name == "logits" or name in needs]
        if not needs <= CACHEABLE:
            return compute()
        if epoch != self._epoch:
            self._begin(epoch, wanted, compute, step)
        if self._known:
            self.hits += 1
            # copies, since a method that writes into them must not change what is kept
            found = {name: self._known[name][step].clone() for name in wanted}
            classifier = net.classifier if "classifier" in needs else None
            return Outputs(found["logits"], embedding=found.get("embedding"), classifier=classifier)
        outputs = compute()
        self.misses += 1
        self._made[step] = {name: getattr(outputs, name) for name in wanted}
        if len(self._made) == self.steps:
            self._keep(epoch, wanted)
        return outputs

    def _path(self, epoch: int, wanted: list[str]) -> Path:
        return self.folder / f"{'-'.join(wanted)}-{epoch:05d}.ckpt"

    def _begin(self, epoch: int, wanted: list[str], compute: Callable[[], Outputs], step: int) -> None:
        """Read an epoch, and compare the batch that comes first with what the teacher computes now."""
        self._epoch, self._known, self._made = epoch, {}, {}
        path = self._path(epoch, wanted)
        if not path.is_file():
            return
        try:
            known = load_checkpoint(path)["outputs"]
        except (DamagedFileError, KeyError) as error:
            self.say(f"cached outputs of the teacher are not used: {error}")
            path.unlink(missing_ok=True)
            return
        outputs = compute()
        now = {name: getattr(outputs, name) for name in wanted}
        same = all(
            len(known[name]) == self.steps and torch.equal(known[name][step].to(value.device), value)
            for name, value in now.items()
        )
        if not same:
            self.say(f"cached outputs of the teacher for epoch {epoch + 1} differ from what it computes: not used")
            path.unlink(missing_ok=True)
            return
        self._known = {name: known[name].to(value.device) for name, value in now.items()}

    def _keep(self, epoch: int, wanted: list[str]) -> None:
        made, self._made = self._made, {}
        size = self.steps * sum(value.numel() * value.element_size() for value in made[0].values())
        if size > MOST_PER_EPOCH:
            self._say_once(f"the teacher's outputs of an epoch take {size / 1e9:.1f} GB: too much to be cached")
        elif size + _size(self.parent) > self.limit:
            self._say_once(f"the cache of teachers' outputs is full ({self.limit / 1e9:g} GB)")
        else:
            outputs = {name: torch.stack([made[step][name] for step in range(self.steps)]).cpu() for name in wanted}
            path = self._path(epoch, wanted)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_checkpoint(path, {"outputs": outputs})
            except OSError as error:
                self._say_once(f"the teacher's outputs cannot be cached: {error.strerror}")

    def _say_once(self, text: str) -> None:
        if not self._full:
            self.say(text)
        self._full = True


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.ckpt"))
