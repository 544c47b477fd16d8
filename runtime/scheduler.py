"""What runs next: the whole policy, as functions of the state. No threads, no sessions, no clock.

Two lanes work side by side. One encodes images, a vision pass at a turn. The other feeds prompts, a chunk at a turn,
and decodes, one step for all rows at a turn; a chunk and a step take turns with each other, so that nobody waits for
somebody else's whole page.

Among those who wait for a lane, the client that was served longest ago comes first, and of its requests the one with
the least left, so that a small picture is not behind a large document. The one that came first is passed over
``PATIENCE`` times in a row and no more often, so that the large document is read however many small pictures come.

Short prompts that follow one another so go through the decoder in one turn, where the device gains by that: the same
order, with nobody's longer than a chunk, and no steps between them.

Where nobody looks at an answer while it grows, steps wait until all rows are taken or nobody is left to take one: a
step of eight rows costs little more than one of a single row, and meanwhile passes have the processors to themselves.

Passes and prompts share the machine, and a request is nearer to its first token with its prompt: a pass does not begin
while a prompt is being fed, for ``PATIENCE`` chunks and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

PATIENCE = 3  # turns in a row that may go to others
_MOST_PADDING = 1 / 4  # of a turn of several prompts: what is computed for nobody


class Scheduled(Protocol):
    """One request, as far as the policy looks at it."""

    client: str  # whose share it counts to
    arrival: int  # how many came before it

    @property
    def passes_left(self) -> int:
        """Vision passes that have not begun."""

    @property
    def encoded(self) -> bool:
        """Whether the features of all its images are there."""

    @property
    def prompt_left(self) -> int:
        """Tokens of the prompt that are not in the KV cache yet; 0: it decodes."""

    @property
    def joins(self) -> bool:
        """Whether its prompt may go through the decoder beside others': a step can feed its last token."""

    @property
    def patient(self) -> bool:
        """Whether its answer may come late if that of all is the earlier for it."""


J = TypeVar("J", bound=Scheduled)


@dataclass(frozen=True)
class Chunk(Generic[J]):
    """The next tokens of a prompt go into the cache; a request without a row takes the one behind the last.

    beside : others whose whole prompts go with this one's, in the rows that follow.
    """

    job: J
    tokens: int
    beside: tuple[J, ...] = ()

    @property
    def jobs(self) -> tuple[J, ...]:
        """All that are fed in one run."""
        return (self.job, *self.beside)


@dataclass(frozen=True)
class Step:
    """Every row that decodes gets a token."""


@dataclass
class Lane:
    """Whom a lane has served, as far as its next turn depends on it."""

    last: dict[str, int] = field(default_factory=dict)  # client -> the last turn that it had here
    passed_over: dict[str, int] = field(default_factory=dict)  # client -> turns since its first request had one

    def copy(self) -> Lane:
        return Lane(dict(self.last), dict(self.passed_over))


@dataclass
class State(Generic[J]):
    """All that the policy looks at. ``waiting`` stands in the order of arrival, ``rows`` in that of the KV cache."""

    slots: int
    chunk: int  # most tokens of a prompt in one turn
    together: int = 0  # most tokens of several prompts in one turn, each as long as the longest; 0: one at a time
    waiting: list[J] = field(default_factory=list)
    rows: list[J] = field(default_factory=list)
    arrivals: int = 0
    turns: int = 0  # passes and chunks
    passes: Lane = field(default_factory=Lane)
    chunks: Lane = field(default_factory=Lane)
    chunk_is_due: bool = True  # the last turn of prefill and decode was a step
    chunks_since_pass: int = 0

    def add(self, job: J) -> None:
        """A request has come."""
        job.arrival = self.arrivals
        self.arrivals += 1
        self.waiting.append(job)

    def begin_pass(self, job: J) -> None:
        """Note that the turn which ``next_pass`` gave is taken. Called before the job's ``passes_left`` changes."""
        self.chunks_since_pass = 0
        self._serve(self.passes, job, _wanting_passes(self))

    def begin_turn(self, turn: Chunk[J] | Step) -> None:
        """Note that the turn which ``next_turn`` gave is taken, with a row of the cache where it needs one."""
        self.chunk_is_due = isinstance(turn, Step)
        if isinstance(turn, Chunk):
            self.chunks_since_pass += 1
            for count, job in enumerate(turn.jobs):
                self.begin_prompt(job, turn.jobs[:count])

    def begin_prompt(self, job: J, fed: Sequence[J]) -> None:
        """One of a turn's prompts is fed; ``fed`` : those before it in the turn."""
        self._serve(self.chunks, job, _wanting_chunks(self, fed))
        if job in self.waiting:
            self.waiting.remove(job)
            self.rows.append(job)

    def _serve(self, lane: Lane, job: J, wanting: Sequence[J]) -> None:
        self.turns += 1
        first = _first([one for one in wanting if one.client == job.client])
        lane.passed_over[job.client] = 0 if job is first else lane.passed_over.get(job.client, 0) + 1
        lane.last[job.client] = self.turns
        present = {one.client for one in (*self.waiting, *self.rows)}
        for gone in lane.last.keys() - present:
            del lane.last[gone], lane.passed_over[gone]


def next_pass(state: State[J]) -> J | None:
    """Whose vision pass begins now."""
    waits = state.chunks_since_pass < PATIENCE and _wanting_chunks(state)
    return None if waits else upcoming_pass(state)


def upcoming_pass(state: State[J]) -> J | None:
    """Whose pass is next. Any request may begin before it has a row: features take less room than pictures."""
    return _choose(_wanting_passes(state), state.passes, lambda job: job.passes_left)


def next_turn(state: State[J]) -> Chunk[J] | Step | None:
    """What prefill and decode do next; None while there is nothing to do."""
    decoding = any(not job.prompt_left for job in state.rows) and not _steps_wait(state)
    if state.chunk_is_due or not decoding:
        job = _next_prompt(state)
        if job is not None:
            return Chunk(job, min(job.prompt_left, state.chunk), _company(state, job))
    return Step() if decoding else None


def _company(state: State[J], first: J) -> tuple[J, ...]:
    """Whose turns would follow, as far as their prompts go through the decoder together with the first one's."""
    together: tuple[J, ...] = ()
    ahead = replace(state, waiting=[*state.waiting], rows=[*state.rows], chunks=state.chunks.copy())
    job: J | None = first
    # Rows that have begun are somewhere, and those that go together stand one behind the other.
    while job is not None and job.joins and job in ahead.waiting and _fits(state, (*together, job)):
        ahead.begin_prompt(job, together)
        together = (*together, job)
        job = _next_prompt(ahead, together)
    return together[1:]


def _fits(state: State[J], jobs: Sequence[J]) -> bool:
    """Whether prompts are no larger a turn than it may be when each is as long as any."""
    longest = max(job.prompt_left for job in jobs)
    tokens = max(2, len(jobs)) * longest  # one alone makes no such turn
    padding = len(jobs) * longest - sum(job.prompt_left for job in jobs)
    return tokens <= state.together and padding <= _MOST_PADDING * tokens


def _next_prompt(state: State[J], fed: Sequence[J] = ()) -> J | None:
    return _choose(_wanting_chunks(state, fed), state.chunks, lambda job: job.prompt_left)


def _steps_wait(state: State[J]) -> bool:
    """Whether more rows are to decode soon, and everybody has the patience."""
    more = any(job.prompt_left for job in state.rows) or (state.waiting and len(state.rows) < state.slots)
    return bool(more) and all(job.patient for job in (*state.rows, *state.waiting))


def _wanting_passes(state: State[J]) -> list[J]:
    return [job for job in state.waiting if job.passes_left]


def _wanting_chunks(state: State[J], fed: Sequence[J] = ()) -> list[J]:
    """Those whose prompt is half in the cache, and who gets the next free row: of the client with the fewest rows.

    fed : those whose prompt goes there in this turn.
    """
    begun = [job for job in state.rows if job.prompt_left and job not in fed]
    ready = [job for job in state.waiting if job.encoded] if len(state.rows) < state.slots else []
    if not ready:
        return begun
    clients = [job.client for job in state.rows]
    return [*begun, min(ready, key=lambda job: clients.count(job.client))]


def _choose(wanting: Sequence[J], lane: Lane, left: Callable[[J], int]) -> J | None:
    if not wanting:
        return None
    client = min(wanting, key=lambda job: lane.last.get(job.client, -1)).client
    mine = [job for job in wanting if job.client == client]
    if lane.passed_over.get(client, 0) >= PATIENCE:
        return _first(mine)
    return min(mine, key=lambda job: (left(job), job.arrival))


def _first(jobs: Sequence[J]) -> J:
    return min(jobs, key=lambda job: job.arrival)
