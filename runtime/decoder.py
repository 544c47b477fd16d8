"""The decoder's sessions with their bindings: embed, prefill into a row, one decode step for all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.manifest import Manifest

from .buffers import Buffer
from .candidates import HostScores, Scores
from .features import Rows, padded
from .kv_cache import KvCache, Window
from .picker import DeviceScores, Picker
from .providers import Device, ort
from .rotary import rotary_feeds
from .stop import Stop

# Tokens of a prompt that go through the decoder at once. A larger chunk needs more memory for activations, and prefill
# gains no speed from it.
PREFILL_CHUNK = 1024

# Numbers of rows that a step is recorded for, and multiples of the last number: few recordings serve all batches.
_RECORDED_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)


class Decoder:
    """Embeddings and decoder of one exported model, over a KV cache of ``slots`` rows. Used by one thread.

    slots : rows of the KV cache; None leaves the cache to ``allocate``, which is called when the weights are loaded and
    the memory that is left is known.
    resident : embeddings of prompts are made in the device's memory and stay there, as ``features.Rows``.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, device: Device, slots: int | None = None, *, resident: bool = False
    ) -> None:
        if manifest.decoder.compute[device.graph] == "float32" and device.name == "cuda":
            # Attention that is written out computes shapes on the host, which no recording takes.
            device = replace(device, replays=False)
        self._device, self._sizes, self._resident = device, manifest.sizes, resident
        self._embed = device.session(folder, manifest.embed)
        self._session = device.session(folder, manifest.decoder, replays=True)
        self._compute = manifest.decoder.compute[device.graph]
        self.dtype = np.dtype("float32" if self._compute == "bfloat16" else self._compute)  # of embeddings and angles
        self._total = np.zeros((), np.int32)  # kernels read the total on the host, on every device
        self._steps: dict[int, BoundStep] = {}
        self.recordings = 0
        if slots is not None:
            self.allocate(slots)

    def allocate(self, slots: int) -> None:
        """Make the cache and what else has a row for each slot. Called once, before anything is run."""
        device = self._device
        hidden, vocabulary = self._sizes.hidden_size, self._sizes.vocabulary
        self.cache = KvCache(self._sizes, slots, self._compute, device)
        self._rotary = rotary_feeds(self._sizes.rotary, slots, self.dtype, device)
        self._ids = Buffer((slots, 1), np.dtype(np.int64), device)
        self._embeddings = Buffer((slots, 1, hidden), self.dtype, device)
        self._seqlens = Buffer((slots,), np.dtype(np.int32), device)
        self._logits = Buffer((slots, vocabulary), np.dtype(np.float32), device)
        self._picker = Picker(self._logits, device) if device.picks else None
        self._filled = [0] * slots  # tokens in each row's cache, those of free rows among them

    def wrap_sessions(self, wrap: Callable[[Any], Any]) -> None:
        """Put something around both sessions, embed first: what times them, counts their runs or refuses one.

        wrap : from a session to what has the same methods.
        """
        self._embed, self._session = wrap(self._embed), wrap(self._session)

    def embed(self, token_ids: Sequence[int]) -> Any:
        """Embeddings of a prompt's tokens, [len(token_ids), hidden]: an array, or ``Rows`` where they are resident."""
        if self._resident:
            binding = self._embed.io_binding()
            binding.bind_cpu_input("input_ids", np.array([token_ids], np.int64))
            binding.bind_output("inputs_embeds", self._device.memory, self._device.index)
            with self._device.running():
                self._embed.run_with_iobinding(binding)
            return Rows(binding.get_outputs()[0], self._device)
        with self._device.running():
            (rows,) = self._embed.run(["inputs_embeds"], {"input_ids": np.array([token_ids], np.int64)})
        embeddings: np.ndarray = rows[0]
        return embeddings

    @property
    def capacity(self) -> int:
        """Tokens that a row's cache has room for now."""
        return self.cache.capacity

    def prefill(
        self, row: int, embeddings: np.ndarray | Rows, positions: np.ndarray | None = None, window: int | None = None
    ) -> np.ndarray:
        """Fill a row's cache with a whole prompt.

        embeddings : [tokens, hidden]. positions : of the tokens, [axes, tokens]; None: one after the other.
        The rows before this one are in use, those from it on are free.
        Returns the logits after the prompt's last token, [vocabulary].
        """
        self.make_room(len(embeddings) + 1, rows=row)
        positions = np.arange(len(embeddings))[None] if positions is None else positions
        for start in range(0, len(embeddings), PREFILL_CHUNK):
            logits = self.prefill_chunk(row, start, embeddings[start : start + PREFILL_CHUNK], positions, window=window)
        return logits

    def prefill_chunk(
        self, row: int, start: int, embeddings: np.ndarray | Rows, positions: np.ndarray, stop: Stop | None = None,
        window: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Add tokens of a prompt to a row's cache, for which ``make_room`` has made room.

        start : tokens of the prompt that are in the cache already. embeddings : of those that follow, [tokens, hidden].
        positions : of the whole prompt, [axes, tokens]. stop : ends the run, which then raises ONNX Runtime's error.
        window : how many tokens of the answer a token of the answer attends to, itself among them; None: all.
        Returns the logits after the last of the tokens, [vocabulary].
        """
        end = start + len(embeddings)
        if not start:
            self.cache.begin(row, None if window is None else Window(positions.shape[1], window))
        self._rotary.take_prompt(positions)
        logits = np.empty((1, self._sizes.vocabulary), np.float32)
        binding = self._session.io_binding()
        if isinstance(embeddings, Rows):
            embeddings.bind(binding, "inputs_embeds", (1,))
        else:
            binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeddings[None], self.dtype))
        binding.bind_cpu_input("seqlens_k", np.array([end - 1], np.int32))
        binding.bind_cpu_input("total_length", np.array(end, np.int32))
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._rotary.bind_prompt(binding, start, end)
        self.cache.bind(binding, 1, first=row)
        options = _recording(None)
        self._filled[row] = end
        with self._device.running():
            self._session.run_with_iobinding(binding, options if stop is None else stop.over(options))
        row_logits: np.ndarray = logits[0]
        return row_logits

    def prefill_together(
        self, row: int, prompts: Sequence[np.ndarray | Rows], positions: Sequence[np.ndarray],
        windows: Sequence[int | None] | None = None,
    ) -> None:  # fmt: skip
        """Fill rows with the beginnings of prompts, in one run; ``make_room`` has made room for the longest.

        The first prompt goes to ``row``, the others to the rows behind that. The graph takes all of them as long as the
        longest: padding stands behind a prompt's own tokens, none of which attends to it, and is overwritten by the
        row's next tokens.
        prompts : embeddings, [tokens, hidden] each. positions, windows : of each, as ``prefill_chunk`` takes them.
        """
        rows, longest = len(prompts), max(map(len, prompts))
        binding = self._session.io_binding()
        there = [prompt for prompt in prompts if isinstance(prompt, Rows)]
        if there:
            embeddings = padded(there)
            embeddings.bind(binding, "inputs_embeds", (rows,))
        else:
            filled_up = np.zeros((rows, longest, self._sizes.hidden_size), self.dtype)
            for index, prompt in enumerate(prompts):
                filled_up[index, : len(prompt)] = prompt
            binding.bind_cpu_input("inputs_embeds", filled_up)
        for index, (prompt, axes) in enumerate(zip(prompts, positions, strict=True)):
            window = None if windows is None else windows[index]
            self.cache.begin(row + index, None if window is None else Window(axes.shape[1], window))
            self._filled[row + index] = len(prompt)
        binding.bind_cpu_input("seqlens_k", np.full(rows, longest - 1, np.int32))
        binding.bind_cpu_input("total_length", np.array(longest, np.int32))
        binding.bind_output("logits", self._device.memory, self._device.index)  # also of padding; not read
        self._rotary.bind_prompts(binding, positions, longest)
        self.cache.bind(binding, rows, first=row)
        with self._device.running():
            self._session.run_with_iobinding(binding, _recording(None))

    def step(
        self, token_ids: Sequence[int], lengths: Sequence[int], positions: Sequence[int] | None = None
    ) -> np.ndarray:
        """Feed one token to each of the first rows.

        token_ids : the rows' newest tokens. lengths : tokens in each row's cache before this step; a row whose window
        is full stays at the prompt's length and one less than the window.
        positions : of the newest tokens; None: their numbers in the cache.
        Returns logits [rows, vocabulary]: memory that the next step overwrites.
        """
        return self._run_step(token_ids, lengths, positions).logits(len(token_ids))

    def score(self, token_ids: Sequence[int], lengths: Sequence[int], positions: Sequence[int] | None = None) -> Scores:
        """Like ``step``, but of a GPU's logits only the part is fetched that tokens are chosen by."""
        step = self._run_step(token_ids, lengths, positions)
        if self._picker is None:
            return HostScores(step.logits(len(token_ids)))
        with self._device.running():
            return DeviceScores(self._logits, self._picker.pick(len(token_ids)))

    def _run_step(self, token_ids: Sequence[int], lengths: Sequence[int], positions: Sequence[int] | None) -> BoundStep:
        rows = len(token_ids)
        self.make_room(max(lengths) + 1, rows)
        for row, length in enumerate(lengths):
            self._filled[row] = length + 1
        # Spare rows fill a step up to a recorded number of rows. A spare row writes behind the tokens in its cache, to
        # places that are not read.
        spare = [min(length, self.cache.capacity - 1) for length in self._filled[rows : self._padded(rows)]]
        unread = [0] * len(spare)
        ids, lengths = np.array([*token_ids, *unread], np.int64), [*lengths, *spare]
        positions = lengths if positions is None else [*positions, *unread]
        self._ids.write(ids[:, None])
        self._seqlens.write(np.array(lengths, np.int32))
        # A recorded step keeps the total that it was recorded with, so the total has to be right for every length.
        self._total[...] = self.cache.capacity if self._device.replays else max(lengths) + 1
        self._rotary.place(positions)
        step = self._steps.get(len(lengths))
        with self._device.running(first=step is None):
            step = step or self._bind(len(lengths))
            try:
                self._embed.run_with_iobinding(step.embed)
                self._session.run_with_iobinding(step.decode, step.recording)
            except Exception:
                self._steps.pop(len(lengths), None)  # perhaps not recorded: its next run is a first run again
                raise
            self.cache.close_ring(lengths[:rows])
        return step

    def recorded_rows(self) -> list[int]:
        """The numbers of rows that steps are recorded for; none where nothing is recorded."""
        return sorted({self._padded(rows + 1) for rows in range(len(self._filled))}) if self._device.replays else []

    def _padded(self, rows: int) -> int:
        """How many rows a step of so many has."""
        if not self._device.replays:
            return rows
        most = _RECORDED_ROWS[-1]
        counts = (*_RECORDED_ROWS, -(-rows // most) * most)
        return min(len(self._filled), next(count for count in counts if count >= rows))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's cache over another row's, so that the rows in use stay the first ones."""
        self._filled[target] = length
        with self._device.running():
            self.cache.move(source, target, length)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache at its present capacity."""
        return self.cache.nbytes

    def make_room(self, length: int, rows: int) -> None:
        """Let every row have ``length`` tokens, and keep the content of the first ``rows``; 0 rows: shrink as well.

        Raises whatever the device raises when its memory is full; the rows then have what they had before.
        """
        moved = True  # also when memory runs out half way: some buffers have moved by then
        try:
            moved = self.cache.fit(length, rows)
        finally:
            if moved:
                self._forget_steps()
                # Rows that are not kept hold whatever the device's memory held before, and no step may compute with it.
                self._filled[rows:] = [0] * (len(self._filled) - rows)
        # With a window, tokens are evicted from the cache while positions go on.
        self._rotary.fit(self.cache.capacity if self._sizes.window is None else self._sizes.max_length)

    def _forget_steps(self) -> None:
        """Drop bindings and recordings: they hold addresses of buffers that have moved."""
        for step in self._steps.values():
            if step.number is not None:
                self._session.release_captured_graph(step.number)
        self._steps.clear()

    def _bind(self, rows: int) -> BoundStep:
        """Bindings for a step of so many rows. A binding holds addresses only, so each is made once."""
        embed = self._embed.io_binding()
        self._ids.bind_input(embed, "input_ids", rows)
        self._embeddings.bind_output(embed, "inputs_embeds", rows)
        decode = self._session.io_binding()
        self._embeddings.bind_input(decode, "inputs_embeds", rows)
        self._seqlens.bind_input(decode, "seqlens_k", rows)
        decode.bind_input("total_length", "cpu", 0, np.int32, (), self._total.ctypes.data)
        self._rotary.bind_step(decode, rows)
        self._logits.bind_output(decode, "logits", rows)
        self.cache.bind(decode, rows)
        # Every recording has a number that none had before: a provider may keep a recording that it should release.
        # While steps are replayed the cache only grows, so there is one recording for each number of rows and capacity.
        self.recordings += 1
        number = self.recordings if self._device.replays else None
        self._steps[rows] = BoundStep(embed, decode, _recording(number), number, self._logits.view(rows))
        return self._steps[rows]


@dataclass(frozen=True)
class BoundStep:
    """A decode step of some number of rows, ready to run again and again.

    recording : run options that name the CUDA graph by ``number``, for a session that records steps. A recording needs
    bound memory that never moves and shapes that never change: both hold for a number of rows.
    view : of the logits, [rows, vocabulary], where they are in the host's memory.
    """

    embed: ort.IOBinding
    decode: ort.IOBinding
    recording: ort.RunOptions
    number: int | None
    view: np.ndarray | None

    def logits(self, rows: int) -> np.ndarray:
        """Logits of the last run, [rows, vocabulary]; from a GPU a copy of this step's rows only."""
        if self.view is not None and len(self.view) == rows:
            return self.view
        # The logits are the first output that was bound.
        logits: np.ndarray = self.decode.get_outputs()[0].numpy() if self.view is None else self.view
        return logits[:rows]


def _recording(number: int | None) -> ort.RunOptions:
    """Options for a run that is recorded under a number and replayed from then on; None: without recording."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1" if number is None else str(number))
    return options
