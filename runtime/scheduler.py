"""What runs next: the whole policy, as functions of the state. No threads, no sessions, no clock.

Two lanes work side by side. The encode lane runs one vision pass a turn. The decode lane feeds a chunk of a prompt, or
runs one step for all rows; chunks and steps alternate, so that no request waits for another's whole page.

Among requests that wait for a lane, the client that was served longest ago comes first, and of its requests the one
with the least left, so that a small picture does not wait for a large document. The oldest request is passed over at
most ``PATIENCE`` times in a row, so that the large document is read however many small pictures come.

Where the device gains by batching, short prompts that follow one another in this order are fed in one turn, each no
longer than a chunk, without steps between them.

Where nobody watches the answers grow (patient requests), steps wait until all rows are taken or no request is left to
take one: a step of eight rows costs little more than a step of one, and meanwhile passes have the processors to
themselves.

Passes and prompts share the machine, and a prompt is nearer to its first token than a pass: no pass begins while a
prompt is being fed, for at most ``PATIENCE`` chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

PATIENCE = 3  # turns in a row that may go to other requests
_MOST_PADDING = 1 / 4  # largest share of padding in a turn of several prompts


class Scheduled(Protocol):
    """One request, as the policy sees it."""

    client: str  # turns are shared evenly among clients
    arrival: int  # number of earlier requests

    @property
    def passes_left(self) -> int:
        """Vision passes that have not begun."""

    @property
    def encoded(self) -> bool:
        """Whether all images are encoded."""

    @property
    def prompt_left(self) -> int:
        """Tokens of the prompt that are not in the KV cache yet; 0: the request decodes."""

    @property
    def joins(self) -> bool:
        """Whether the prompt may be fed together with others: a step can feed its last token."""

    @property
    def patient(self) -> bool:
        """Whether only the total time of many requests counts, and not this one's."""


J = TypeVar("J", bound=Scheduled)


@dataclass(frozen=True)
class Chunk(Generic[J]):
    """Feed the next tokens of a prompt into the cache; a request without a row takes the row behind the last.

    beside : requests whose whole prompts are fed in the same run, in the rows that follow.
    """

    job: J
    tokens: int
    beside: tuple[J, ...] = ()

    @property
    def jobs(self) -> tuple[J, ...]:
        """All requests fed in one run."""
        return (self.job, *self.beside)


@dataclass(frozen=True)
class Step:
    """Decode one token for every row whose prompt is in the cache."""


@dataclass
class Lane:
    """Whom a lane has served: what its next turn depends on."""

    last: dict[str, int] = field(default_factory=dict)  # client -> its last turn in this lane
    passed_over: dict[str, int] = field(default_factory=dict)  # client -> turns since its oldest request had one

    def copy(self) -> Lane:
        return Lane(dict(self.last), dict(self.passed_over))


@dataclass
class State(Generic[J]):
    """All that the policy looks at: ``waiting`` in the order of arrival, ``rows`` in the order of the KV cache."""

    slots: int
    chunk: int  # most tokens of a prompt in one turn
    together: int = 0  # most tokens of several prompts in one turn, padding included; 0: one prompt at a time
    waiting: list[J] = field(default_factory=list)
    rows: list[J] = field(default_factory=list)
    arrivals: int = 0
    turns: int = 0  # turns: passes and chunks
    passes: Lane = field(default_factory=Lane)
    chunks: Lane = field(default_factory=Lane)
    chunk_is_due: bool = True  # the decode lane's last turn was a step
    chunks_since_pass: int = 0

    def add(self, job: J) -> None:
        """Take a request that has arrived."""
        job.arrival = self.arrivals
        self.arrivals += 1
        self.waiting.append(job)

    def begin_pass(self, job: J) -> None:
        """Note that the pass from ``next_pass`` begins. Called before the job's ``passes_left`` changes."""
        self.chunks_since_pass = 0
        self._serve(self.passes, job, _wanting_passes(self))

    def begin_turn(self, turn: Chunk[J] | Step) -> None:
        """Note that the turn from ``next_turn`` begins, and give its requests rows of the cache."""
        self.chunk_is_due = isinstance(turn, Step)
        if isinstance(turn, Chunk):
            self.chunks_since_pass += 1
            for count, job in enumerate(turn.jobs):
                self.begin_prompt(job, turn.jobs[:count])

    def begin_prompt(self, job: J, fed: Sequence[J]) -> None:
        """Note that one of a turn's prompts is fed; ``fed`` : the prompts before it in the turn."""
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
    """The request whose vision pass begins now."""
    waits = state.chunks_since_pass < PATIENCE and _wanting_chunks(state)
    return None if waits else upcoming_pass(state)


def upcoming_pass(state: State[J]) -> J | None:
    """The request whose pass is next. The request needs no row yet: features take less memory than pictures."""
    return _choose(_wanting_passes(state), state.passes, lambda job: job.passes_left)


def next_turn(state: State[J]) -> Chunk[J] | Step | None:
    """The decode lane's next turn; None while there is nothing to do."""
    decoding = any(not job.prompt_left for job in state.rows) and not _steps_wait(state)
    if state.chunk_is_due or not decoding:
        job = _next_prompt(state)
        if job is not None:
            return Chunk(job, min(job.prompt_left, state.chunk), _company(state, job))
    return Step() if decoding else None


def _company(state: State[J], first: J) -> tuple[J, ...]:
    """Requests whose turns would follow and whose prompts can be fed together with the first one's."""
    together: tuple[J, ...] = ()
    ahead = replace(state, waiting=[*state.waiting], rows=[*state.rows], chunks=state.chunks.copy())
    job: J | None = first
    # A prompt that has begun has its row already, while prompts fed together need adjacent rows.
    while job is not None and job.joins and job in ahead.waiting and _fits(state, (*together, job)):
        ahead.begin_prompt(job, together)
        together = (*together, job)
        job = _next_prompt(ahead, together)
    return together[1:]


def _fits(state: State[J], jobs: Sequence[J]) -> bool:
    """Whether the prompts, padded to the longest, are within the limits of a turn."""
    longest = max(job.prompt_left for job in jobs)
    tokens = max(2, len(jobs)) * longest  # a single prompt is fed alone
    padding = len(jobs) * longest - sum(job.prompt_left for job in jobs)
    return tokens <= state.together and padding <= _MOST_PADDING * tokens


def _next_prompt(state: State[J], fed: Sequence[J] = ()) -> J | None:
    return _choose(_wanting_chunks(state, fed), state.chunks, lambda job: job.prompt_left)


def _steps_wait(state: State[J]) -> bool:
    """Whether more rows will decode soon, and all requests are patient."""
    more = any(job.prompt_left for job in state.rows) or (state.waiting and len(state.rows) < state.slots)
    return bool(more) and all(job.patient for job in (*state.rows, *state.waiting))


def _wanting_passes(state: State[J]) -> list[J]:
    return [job for job in state.waiting if job.passes_left]


def _wanting_chunks(state: State[J], fed: Sequence[J] = ()) -> list[J]:
    """Requests half in the cache, and the one that gets the next free row: of the client with the fewest rows.

    fed : requests whose prompt goes into the cache in this turn.
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
