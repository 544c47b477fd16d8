"""A layout detector, loaded: pictures of pages in, regions out."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from models.layout.boxes import regions
from models.layout.decode import decode
from models.layout.labels import LABELS
from models.layout.manifest import LayoutManifest
from models.layout.regions import Region
from models.layout.resize import pixel_values
from models.layout.rules import DetectionRules
from models.model_errors import ManifestError
from models.pixels import to_rgb
from runtime.providers import find_device, ort
from runtime.runtime_errors import EngineClosed

from .locate import detector_folder

_OUTPUTS = ("logits", "pred_boxes", "order_logits")


class LayoutModel:
    """One detector. ``detect`` may be called from any thread; pages run one after the other, each on all cores."""

    def __init__(self, folder: Path, manifest: LayoutManifest, device: str, threads: int | None) -> None:
        if manifest.labels != LABELS:
            raise ManifestError(f"{folder} names other labels than this version knows; export the detector again")
        self.manifest = manifest
        self.device = find_device(device, threads)
        # A page takes 250 MB beside the weights. Giving them back after each costs 5 % of the time.
        self._session: ort.InferenceSession | None = self.device.session(
            folder, manifest.layout, encoder=True, keeps=False
        )
        self._turn = threading.Lock()

    @classmethod
    def open(cls, detector: str | os.PathLike[str], device: str = "auto", threads: int | None = None) -> Self:
        """Load a detector.

        Parameters
        ----------
        detector
            the folder that ``ocr-onnx export`` published, or a name: v2, v3, pp-doclayout-v3.
        device
            cpu, cuda (cuda:1 ...), coreml, or auto for the best one that is there.
        threads
            CPU threads of one operator; None takes one for each physical core, or as many as a container may use.

        Raises
        ------
        ManifestError
            when there is no whole export that this version can read; the message has the command that makes one.
        ConfigError
            for a name that means no detector.
        RuntimeUnavailable
            when the device is not there.
        """
        folder = detector_folder(detector)
        return cls(folder, LayoutManifest.load(folder), device, threads)

    def detect(self, image: Image.Image, rules: DetectionRules | None = None) -> list[Region]:
        """The regions of one page, in reading order.

        image : the upright page; boxes are in its pixels. rules : which boxes stay; None: the rules of the detector's
        manifest, its vendor's own.

        Raises
        ------
        EngineClosed
            after ``close``.
        """
        outputs = self.run(pixel_values(to_rgb(image), self.manifest.image.height, self.manifest.image.width))
        return regions(decode(outputs, *image.size), rules or self.manifest.rules, *image.size)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The graph's outputs for a prepared page, [1, 3, height, width] float32."""
        with self._turn:
            if self._session is None:
                raise EngineClosed("the layout detector was closed")
            values = self._session.run(list(_OUTPUTS), {"pixel_values": pixels})
        return dict(zip(_OUTPUTS, values, strict=True))

    def close(self) -> None:
        """Free the memory once the page in flight is done."""
        with self._turn:
            self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
