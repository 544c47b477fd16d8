"""The policy on plain records: no threads, no arrays, no time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.scheduler import PATIENCE, Chunk, State, Step, next_pass, next_turn, upcoming_pass


@dataclass(eq=False)
class Page:
    """A request that needs so many passes, then so many prompt tokens."""

    passes_left: int = 0
    prompt_left: int = 100
    client: str = ""
    patient: bool = False
    arrival: int = 0
    joins: bool = True
    running: int = field(default=0)  # passes that have begun and not ended

    @property
    def encoded(self) -> bool:
        return not (self.passes_left or self.running)


def encode(state: State[Page]) -> Page | None:
    """Take a turn of the encoding lane, from its beginning to its end."""
    page = next_pass(state)
    if page is not None:
        state.begin_pass(page)
        page.passes_left -= 1
    return page


def turn(state: State[Page]) -> Chunk[Page] | Step | None:
    """Take a turn of the other lane."""
    taken = next_turn(state)
    if taken is not None:
        state.begin_turn(taken)
    if isinstance(taken, Chunk):
        taken.job.prompt_left -= taken.tokens
        for page in taken.beside:
            page.prompt_left = 0
    return taken


def state_of(*pages: Page, slots: int = 4, chunk: int = 100, together: int = 0) -> State[Page]:
    """slots : 0 for tests of passes alone, which then wait for no prompt."""
    state: State[Page] = State(slots, chunk, together)
    for page in pages:
        state.add(page)
    return state


def test_nothing_to_do_is_no_turn() -> None:
    state = state_of()
    assert next_pass(state) is None
    assert next_turn(state) is None


def test_asking_changes_nothing() -> None:
    state = state_of(Page(3), Page(1), Page())
    assert [upcoming_pass(state) for _ in range(5)] == [state.waiting[1]] * 5
    assert [next_pass(state) for _ in range(5)] == [None] * 5
    assert [next_turn(state) for _ in range(5)] == [Chunk(state.waiting[2], 100)] * 5
    assert (len(state.waiting), len(state.rows), state.turns) == (3, 0, 0)


@pytest.mark.parametrize("slots", [1, 8])
def test_a_small_picture_overtakes_a_large_document_at_the_next_pass(slots) -> None:
    document = Page(80)
    state = state_of(document, slots=slots)
    for _ in range(5):
        assert encode(state) is document
    picture = Page(1)
    state.add(picture)
    assert encode(state) is picture
    assert turn(state) == Chunk(picture, 100)


def test_a_large_document_gets_every_fourth_pass_however_many_small_pictures_come() -> None:
    document = Page(80)
    state = state_of(document, Page(1), slots=0)
    taken = []
    for _ in range(40):
        taken.append(encode(state))
        state.add(Page(1))
    assert [page is document for page in taken].count(True) == 40 // (PATIENCE + 1)


def test_documents_of_one_client_are_read_in_the_order_in_which_they_came() -> None:
    documents = [Page(20), Page(20), Page(20)]
    state = state_of(*documents, slots=0)
    assert [encode(state) for _ in range(61)] == [page for page in documents for _ in range(20)] + [None]


def test_clients_share_the_passes_whatever_each_of_them_asks_for() -> None:
    state = state_of(*[Page(1, client="many") for _ in range(60)], Page(30, client="one"), slots=0)
    assert {encode(state).client for _ in range(2)} == {"many", "one"}  # type: ignore[union-attr]
    taken = [encode(state) for _ in range(40)]
    assert [page.client for page in taken if page].count("one") == 20
    state.add(late := Page(9, client="late"))
    assert encode(state) is late


def test_a_client_that_was_away_has_saved_nothing_up() -> None:
    state = state_of(*[Page(40, client=name) for name in "ab"], slots=0)
    for _ in range(20):
        encode(state)
    state.add(Page(40, client="c"))
    assert encode(state).client == "c"  # type: ignore[union-attr]
    taken = [encode(state) for _ in range(30)]
    assert [page.client for page in taken if page].count("c") == 10


def test_a_chunk_and_a_step_take_turns() -> None:
    first, second = Page(prompt_left=50), Page(prompt_left=250)
    state = state_of(first)
    assert [turn(state) for _ in range(3)] == [Chunk(first, 50), Step(), Step()]
    state.add(second)
    found = [turn(state) for _ in range(7)]
    assert found == [Chunk(second, 100), Step(), Chunk(second, 100), Step(), Chunk(second, 50), Step(), Step()]
    assert state.rows == [first, second]


def test_steps_of_the_patient_wait_until_all_rows_are_taken_or_nobody_is_left() -> None:
    pages = [Page(2, 50, patient=True) for _ in range(5)]
    state = state_of(*pages, slots=3)
    for page in pages[:3]:
        assert [encode(state), encode(state), turn(state)] == [page, page, Chunk(page, 50)]
        # The last of the three has taken the last row; before that, nobody decodes.
        assert next_turn(state) == (Step() if page is pages[2] else None)
    state.rows.remove(pages[1])  # it is done
    assert [next_turn(state), encode(state), next_turn(state), encode(state)] == [None, pages[3], None, pages[3]]
    assert [turn(state), turn(state)] == [Chunk(pages[3], 50), Step()]
    state.waiting.clear()
    state.rows.pop()
    assert turn(state) == Step()


def test_a_long_prompt_of_the_patient_is_fed_without_steps_between() -> None:
    state = state_of(Page(0, 50, patient=True), long := Page(0, 250, patient=True), slots=2)
    assert isinstance(turn(state), Chunk)
    assert [turn(state) for _ in range(4)] == [Chunk(long, 100), Chunk(long, 100), Chunk(long, 50), Step()]


@pytest.mark.parametrize("decodes", [True, False])
def test_nobody_waits_for_the_patient_who_is_not(decodes) -> None:
    first = Page(0, 50, patient=not decodes)
    state = state_of(first, Page(3, 50, patient=decodes))
    assert [turn(state), turn(state)] == [Chunk(first, 50), Step()]


def test_without_a_row_that_decodes_chunk_follows_chunk() -> None:
    page = Page(prompt_left=250)
    state = state_of(page)
    assert [turn(state) for _ in range(3)] == [Chunk(page, 100), Chunk(page, 100), Chunk(page, 50)]


def test_a_short_prompt_is_not_behind_a_long_one_that_has_begun() -> None:
    long, short = Page(prompt_left=8000), Page(prompt_left=120)
    state = state_of(long)
    turn(state)
    state.add(short)
    assert [turn(state) for _ in range(2)] == [Chunk(short, 100), Chunk(short, 20)]
    assert state.rows == [long, short]
    assert [turn(state) for _ in range(3)] == [Step(), Chunk(long, 100), Step()]


def test_a_long_prompt_goes_on_however_many_short_ones_come() -> None:
    long = Page(prompt_left=3000)
    state = state_of(long, slots=100)
    turn(state)
    taken = []
    for _ in range(80):
        state.add(Page(prompt_left=90))
        taken.append(turn(state))
    chunks = [one for one in taken if isinstance(one, Chunk)]
    assert len(chunks) == 40
    assert [one.job is long for one in chunks].count(True) == 40 // (PATIENCE + 1)


def test_short_prompts_go_together_as_far_as_they_fit_into_one_turn() -> None:
    pages = [Page(prompt_left=tokens) for tokens in (20, 24, 30, 25, 33, 26)]
    state = state_of(*pages, slots=8, together=100)
    # Three of 30 tokens are a turn, and four of them are none.
    assert turn(state) == Chunk(pages[0], 20, (pages[1], pages[2]))
    assert turn(state) == Step()
    assert turn(state) == Chunk(pages[3], 25, (pages[4], pages[5]))
    assert state.rows == pages


@pytest.mark.parametrize(
    "lengths", [(60, 60), (40, 10), (101, 101)], ids=["too long", "too unlike", "a chunk and more"]
)
def test_prompts_that_would_be_too_large_a_turn_or_mostly_padding_go_alone(lengths) -> None:
    state = state_of(*[Page(prompt_left=tokens) for tokens in lengths], together=100)
    turns = [turn(state) for _ in range(8)]
    assert all(not one.beside for one in turns if isinstance(one, Chunk))


def test_a_prompt_that_cannot_join_is_fed_alone_in_its_turn() -> None:
    pages = [Page(prompt_left=20, joins=number != 1) for number in range(4)]
    state = state_of(*pages, together=100)
    assert [turn(state) for _ in range(5)] == [
        Chunk(pages[0], 20), Step(), Chunk(pages[1], 20), Step(), Chunk(pages[2], 20, (pages[3],)),
    ]  # fmt: skip


def test_prompts_go_together_into_the_rows_that_are_free_and_no_others() -> None:
    state = state_of(*[Page(prompt_left=10) for _ in range(9)], slots=3, together=1000)
    assert len(turn(state).beside) == 2  # type: ignore[union-attr]
    assert (len(state.rows), len(state.waiting)) == (3, 6)


@given(
    pages=st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from("abc"), st.integers(0, 20), st.booleans()), max_size=16
    ),
    slots=st.integers(1, 6),
    together=st.integers(1, 200),
)
def test_turns_that_are_shared_are_those_that_would_have_followed(pages, slots, together) -> None:
    """pages: prompt, client, after how many turns it comes, and whether it may join. Rows stay as they are fed."""
    plain, shared = ([Page(0, prompt, client, joins=joins) for prompt, client, _, joins in pages] for _ in range(2))
    one, several = state_of(slots=slots, chunk=200), state_of(slots=slots, chunk=200, together=together)
    coming = sorted(range(len(pages)), key=lambda number: pages[number][2])
    fed: list[int] = []
    for now in range(60):
        while coming and pages[coming[0]][2] <= now:
            number = coming.pop(0)
            one.add(plain[number])
            several.add(shared[number])
        before = several.chunk_is_due
        taken = turn(several)
        if isinstance(taken, Chunk):
            assert len(taken.jobs) * max(pages[shared.index(page)][0] for page in taken.jobs) <= max(together, 200)
            for page in taken.jobs:  # as if the steps between them were left out
                one.chunk_is_due = True
                alone = turn(one)
                assert isinstance(alone, Chunk)
                assert plain.index(alone.job) == shared.index(page)
                fed.append(shared.index(page))
            assert before or not any(not page.prompt_left for page in several.rows[: -len(taken.jobs)])
        one.chunk_is_due = several.chunk_is_due
        assert (one.chunks.last, one.chunks.passed_over) == (several.chunks.last, several.chunks.passed_over)
    assert len(fed) == min(slots, len(pages))


def test_a_pass_waits_for_three_chunks_of_a_prompt_and_no_longer() -> None:
    document = Page(80)
    state = state_of(document)
    encode(state)
    state.add(Page(prompt_left=1000))
    for _ in range(3):
        for _ in range(PATIENCE):
            assert encode(state) is None
            assert isinstance(turn(state), Chunk)
        assert encode(state) is document
    state.rows.clear()
    assert [encode(state) for _ in range(5)] == [document] * 5


def test_a_pass_waits_for_no_prompt_that_has_no_row_to_go_to() -> None:
    document = Page(80)
    state = state_of(Page(), document, Page(), slots=1)
    turn(state)
    assert [encode(state) for _ in range(5)] == [document] * 5


def test_the_next_free_row_is_for_the_client_with_the_fewest_rows() -> None:
    state = state_of(*[Page(client="many") for _ in range(6)], slots=4)
    while len(state.rows) < 3:
        turn(state)
    state.add(one := Page(client="one"))
    while len(state.rows) < 4:
        turn(state)
    assert state.rows[3] is one


def test_nobody_gets_a_row_beyond_the_slots_or_before_all_views_are_encoded() -> None:
    page = Page(1)
    state = state_of(page, slots=1)
    encode(state)
    page.running = 1
    state.add(Page())
    state.add(Page())
    for _ in range(6):
        turn(state)
    assert len(state.rows) == 1
    assert state.rows[0] is not page
    state.rows.clear()
    state.waiting[:] = [page]
    assert next_turn(state) is None
    page.running = 0
    assert turn(state) == Chunk(page, 100)


def test_clients_that_are_gone_are_forgotten() -> None:
    state: State[Page] = State(4, 100)
    for number in range(100):
        state.add(Page(1, client=str(number)))
        encode(state)
        turn(state)
        state.waiting.clear()
        state.rows.clear()
    assert max(len(lane.last) for lane in (state.passes, state.chunks)) <= 2


@given(
    pages=st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 500), st.sampled_from("abc"), st.integers(0, 40)), max_size=12
    ),
    slots=st.integers(1, 4),
    chunk=st.integers(1, 300),
)
def test_every_request_is_encoded_and_fed_to_its_end(pages, slots, chunk) -> None:
    """pages: passes, prompt, client, and after how many turns it comes. A row that is fed makes room at once."""
    coming = sorted(pages, key=lambda page: page[3])
    state: State[Page] = State(slots, chunk)
    left = sum(page[0] + page[1] for page in pages)
    for now in range(40 + 2 * left + 1):
        while coming and coming[0][3] <= now:
            passes, prompt, client, _ = coming.pop(0)
            state.add(Page(passes, prompt, client))
        encode(state)
        turn(state)
        assert len(state.rows) <= slots
        state.rows[:] = [page for page in state.rows if page.prompt_left]
    assert not state.waiting
    assert not state.rows
