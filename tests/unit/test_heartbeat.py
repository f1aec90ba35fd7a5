"""Who is named when ranks stand still, and when nobody is."""

from train.heartbeat import Beat, verdict

LIMIT_S = 60.0


def beat(rank: int, phase: str, position: int, for_s: float, ago_s: float = 0.0) -> Beat:
    """What a rank said `ago_s` seconds ago, on a clock that now shows 1,000."""
    return Beat(
        rank=rank, host=f"node-{rank}", phase=phase, step=7, position=position, for_s=for_s, heard_at=1000.0 - ago_s
    )


def judge(*beats: Beat) -> str | None:
    return verdict({one.rank: one for one in beats}, 1000.0, LIMIT_S, {"data": 600.0})


def test_ranks_within_their_limits_are_left_alone() -> None:
    assert judge(beat(0, "forward", 12, 59.0), beat(1, "backward", 13, 3.0)) is None


def test_the_rank_that_is_furthest_behind_is_named_with_host_phase_and_step() -> None:
    text = judge(beat(0, "waiting for the others", 15, 70.0), beat(1, "backward", 13, 61.0), beat(2, "step", 14, 65.0))
    assert text is not None
    first, *lines = text.splitlines()
    assert first == "stalled: rank 1 on node-1 has been in 'backward' of step 7 for 61 s"
    assert [line.split()[1] for line in lines] == ["0", "1", "2"]


def test_those_who_wait_for_one_that_may_take_longer_are_no_stall() -> None:
    assert judge(beat(0, "waiting for the others", 15, 500.0), beat(1, "data", 14, 500.0)) is None
    text = judge(beat(0, "waiting for the others", 15, 601.0), beat(1, "data", 14, 601.0))
    assert text is not None
    assert "rank 1 on node-1 has been in 'data'" in text.splitlines()[0]


def test_a_rank_that_says_nothing_is_named_whatever_it_did_last() -> None:
    text = judge(beat(0, "waiting for the others", 15, 61.0), beat(1, "data", 14, 1.0, ago_s=61.0))
    assert text is not None
    assert text.startswith("stalled: rank 1 on node-1 has given no sign of life for 61 s, in 'data' of step 7")


def test_all_are_named_where_all_stand_at_one_place() -> None:
    text = judge(beat(0, "forward", 15, 61.0), beat(1, "forward", 15, 62.0))
    assert text is not None
    assert "rank 0" in text.splitlines()[0]
    assert "rank 1" in text.splitlines()[0]
