"""A claim has one holder; a holder that gives no sign of life loses it."""

import os
import threading

import pytest

from experiments.search.shared.claims import DIED, Claims


@pytest.fixture
def claims(tmp_path):
    return Claims(tmp_path / "claims", "first", heartbeat=10.0)


def take(claims: Claims, key: str = "0"):
    return claims.take(key, claims.latest().get(key), claims.now())


def age(claims: Claims, seconds: float) -> None:
    """Move the last touch of every claim into the past."""
    for claim in claims.latest().values():
        os.utime(claim.path, (claim.touched - seconds,) * 2)


def test_one_of_many_wins_a_claim(claims):
    others = [Claims(claims.folder, f"w{i}", 10.0) for i in range(16)]
    start, won = threading.Barrier(len(others)), []

    def run(mine: Claims) -> None:
        start.wait()
        if take(mine):
            won.append(mine.worker)

    threads = [threading.Thread(target=run, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_claim_that_nobody_touches_passes_on_and_counts_as_a_death(claims):
    assert take(claims).attempt == 0
    other = Claims(claims.folder, "second", 10.0)
    age(claims, 9)
    assert take(other) is None
    age(claims, 2)
    assert take(other).attempt == 1
    assert other.deaths("0") == 1


def test_a_claim_that_is_given_back_is_free_at_once_and_nobody_died(claims):
    claim = take(claims)
    claims.release(claim)
    other = Claims(claims.folder, "second", 10.0)
    assert take(other).attempt == 1
    assert other.deaths("0") == 0


def test_the_claims_of_a_dead_worker_are_free_at_once(claims):
    take(claims, "0")
    other = Claims(claims.folder, "second", 10.0)
    take(other, "1")
    assert other.free_claims_of("first") == ["0"]
    assert claims.latest()["0"].touched == DIED
    assert take(other, "0").attempt == 1
    assert take(claims, "1") is None


def test_a_heartbeat_holds_a_claim_and_notices_its_loss(tmp_path):
    claims = Claims(tmp_path / "claims", "first", heartbeat=0.5)
    claim, lost = take(claims), threading.Event()
    with claims.touched(lambda: None):
        claims.hold(claim, lost.set)
        assert not lost.wait(1.0)
        assert claims.now() - claims.latest()["0"].touched < 0.5
        claim.next_path.touch()  # somebody else
        assert lost.wait(2.0)
