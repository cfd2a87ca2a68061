"""How many tensors wait to be written."""

import threading

from quant.files.behind import SMALL, WAITING, Room


def test_many_small_tensors_wait_and_few_large_ones() -> None:
    room = Room()
    for _ in range(100):
        room.take(SMALL // 100)
    for _ in range(100):
        room.give(SMALL // 100)
    for _ in range(WAITING):
        room.take(SMALL)
    fifth = threading.Thread(target=room.take, args=(SMALL,))
    fifth.start()
    fifth.join(0.1)
    assert fifth.is_alive()
    room.give(SMALL)
    fifth.join(10)
    assert not fifth.is_alive()
