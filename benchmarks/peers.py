"""Public PyTorch codes of ALI, run from a folder of the user's, to be timed beside ours.

Their source is read, not copied. Two are recognised by their files:

- `ali.py` of MaximeVandegar/Papers-in-100-Lines-of-Code, `Adversarially_Learned_Inference/`: its
  data loading is given random images; nothing else is touched.
- `main.py` and `model.py` of 9310gaurav/ali-pytorch: two places that current torch refuses are
  changed (`loss.data[0]`; D's update between the two backward passes through it, which moves after
  them), and its loader gets random images. Its printing and picture files are left out.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

IMAGES = 2000


def load(folder: Path, batch_size: int, device: torch.device) -> Callable[[], None]:
    """A function that takes one training step of the code in `folder`, on 32×32 images."""
    if (folder / "ali.py").exists():
        return _papers_in_100_lines(folder / "ali.py", batch_size, device)
    if (folder / "main.py").exists() and (folder / "model.py").exists():
        return _ali_pytorch(folder, batch_size, device)
    raise SystemExit(f"{folder} holds neither ali.py nor main.py and model.py: see {__file__}")


def _papers_in_100_lines(path: Path, batch_size: int, device: torch.device) -> Callable[[], None]:
    import scipy.io
    import tqdm

    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, IMAGES), np.uint8)
    peer: Any = ModuleType("peer")
    data = replaced(scipy.io, "loadmat", lambda name: {"X": images})
    with data, replaced(tqdm, "tqdm", lambda steps: steps):
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), peer.__dict__)
    nets = [peer.GeneratorZ(), peer.GeneratorX(), peer.Discriminator()]
    for net in nets:
        net.apply(peer.init_weights)
        net.to(device)
    adams = [torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.5, 0.999)) for net in nets]
    g_z, g_x, d = nets
    return lambda: peer.Ali(g_x, g_z, d, adams, 1, batch_size, device)


def _ali_pytorch(folder: Path, batch_size: int, device: torch.device) -> Callable[[], None]:
    """Its script is one loop: it is turned into a generator that stops after every batch."""
    text = (folder / "main.py").read_text(encoding="utf-8").replace(".data[0]", ".item()")
    early = "            optimizerD.step()\n"
    late = "        optimizerG.step()\n"
    if early not in text or late not in text:
        raise SystemExit(f"{folder}/main.py is not the known version of 9310gaurav/ali-pytorch")
    text = text.replace(early, "").replace(late, late + "        optimizerD.step()\n")
    text = text.replace("batch_size = 100", f"batch_size = {batch_size}")
    text = text.replace("if i % 50 == 0:", "if False:").replace("print(", "(lambda *_: None)(")
    loop = text.index("for epoch in range(num_epochs):")
    body = "def steps():\n" + "".join(f"    {line}\n" for line in text[loop:].splitlines())
    body = body.replace("        i += 1\n", "        i += 1\n            yield\n")

    class RandomImages(torch.utils.data.Dataset):
        def __init__(self, **_: Any) -> None:
            made = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
            self.x = torch.from_numpy(made).permute(0, 3, 1, 2).float() / 255

        def __len__(self) -> int:
            return IMAGES

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return self.x[i], 0

    import torchvision.datasets

    peer: dict[str, Any] = {"__name__": "peer"}
    cuda = str(device.type == "cuda")
    argv = ["main.py", "--dataset", "svhn", "--dataroot", "", "--use_cuda", cuda]
    argv += ["--save_model_dir", "", "--save_image_dir", ""]
    with contextlib.ExitStack() as changed:
        changed.enter_context(replaced(torchvision.datasets, "SVHN", RandomImages))
        changed.enter_context(replaced(sys, "argv", argv))
        changed.enter_context(replaced(sys, "path", [str(folder), *sys.path]))
        changed.enter_context(contextlib.redirect_stdout(io.StringIO()))
        exec(compile(text[:loop] + body, str(folder / "main.py"), "exec"), peer)
    steps = peer["steps"]()
    return lambda: next(steps)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
