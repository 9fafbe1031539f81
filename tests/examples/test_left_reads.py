"""What Orbax leaves running when one of its reads fails."""

import asyncio
import gc
import sys
import threading

from examples.lm import checkpoints


def test_reads_that_orbax_leaves_are_waited_for_and_not_reported(monkeypatch):
    reported, under_way = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda x: reported.append(x.exc_value))

    async def read(bytes_read: asyncio.Future) -> None:
        try:
            await bytes_read
        except GeneratorExit:
            raise OSError("cannot be read") from None

    with checkpoints._other_reads_ended():
        loop = asyncio.new_event_loop()
        under_way.append(loop.create_future())
        under_way.append(loop.create_task(read(under_way[0])))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        threading.Timer(0.2, under_way.clear).start()
    assert not under_way
    gc.collect()
    assert not reported
