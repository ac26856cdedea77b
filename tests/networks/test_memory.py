# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread

import pytest
import torch

from monai_kdsam.networks.memory import AnswerMemory, BoundedCache


def value(number: int, bytes_: int = 8) -> torch.Tensor:
    return torch.full((bytes_ // 4,), float(number))


def test_the_least_recently_used_go_first():
    cache = BoundedCache(max_bytes=16)
    for number in (0, 1):
        cache.recall(number, lambda number=number: value(number))
    cache.recall(0, pytest.fail)
    cache.recall(2, lambda: value(2))
    cache.recall(0, pytest.fail)
    assert cache.recall(1, lambda: value(7))[0] == 7
    assert (len(cache), cache.nbytes) == (2, 16)


@pytest.mark.parametrize("max_bytes", [0, 7])
def test_what_is_larger_than_the_bound_is_given_but_not_kept(max_bytes):
    cache = BoundedCache(max_bytes)
    assert cache.recall("a", lambda: value(1))[0] == 1
    assert (len(cache), cache.nbytes) == (0, 0)


def test_threads_that_ask_together_share_the_work():
    cache, together, made = BoundedCache(max_bytes=64), Barrier(4), []

    def make(key):
        made.append(key)
        Event().wait(0.05)
        return value(key)

    def ask(key):
        together.wait()
        return cache.recall(key, lambda: make(key))

    with ThreadPoolExecutor(4) as pool:
        found = [int(v[0]) for v in pool.map(ask, [1, 2, 1, 2])]
    assert found == [1, 2, 1, 2]
    assert sorted(made) == [1, 2]


def test_a_failure_reaches_all_who_wait_and_is_not_kept():
    cache, begun, go_on = BoundedCache(max_bytes=64), Event(), Event()

    def fail():
        begun.set()
        go_on.wait(5)
        raise ValueError("no such image")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.recall, "a", fail)
        begun.wait(5)
        second = pool.submit(cache.recall, "a", fail)
        go_on.set()
        for asked in (first, second):
            with pytest.raises(ValueError, match="no such image"):
                asked.result()
    assert cache.recall("a", lambda: value(3))[0] == 3


def test_a_failure_keeps_nothing_in_memory():
    cache, begun, go_on, kept = BoundedCache(max_bytes=64), Event(), Event(), []

    def fail():
        image = value(1)
        kept.append(weakref.ref(image))
        begun.set()
        go_on.wait(5)
        raise ValueError("no such image")

    def ask():
        image = value(2)
        kept.append(weakref.ref(image))
        with pytest.raises(ValueError, match="no such image"):
            cache.recall("a", fail)

    gc.disable()
    try:
        threads = [Thread(target=ask) for _ in range(2)]
        threads[0].start()
        begun.wait(5)
        threads[1].start()
        while len(kept) < 3:
            Event().wait(0.01)
        go_on.set()
        for thread in threads:
            thread.join()
        assert all(image() is None for image in kept)
    finally:
        gc.enable()


FIRST = ([[5, 5], [9, 2]], [1, 0])


@pytest.mark.parametrize(
    ("points", "labels", "goes_on"),
    [
        ([[5, 5], [7, 7], [9, 2]], [1, 1, 0], True),
        ([[5, 5], [9, 2], [3, 3], [4, 4]], [1, 0, 0, -1], True),
        (*FIRST, False),  # asked again
        ([[5, 5]], [1], False),  # a click was taken back
        ([[7, 7], [5, 5], [9, 2]], [1, 1, 0], False),  # another order
        ([[5, 6], [7, 7], [9, 2]], [1, 1, 0], False),  # a click was moved
        ([[9, 2], [5, 5], [7, 7]], [1, 0, 0], False),  # foreground and background exchanged
        ([[5, 5], [9, 2], [1, 1], [8, 8]], [1, 0, 2, 3], False),  # and a box
    ],
)
def test_a_prompt_goes_on_from_the_last_answer_if_it_extends_its_prompt(points, labels, goes_on):
    memory, embedding, logits = AnswerMemory(), torch.zeros(2), torch.ones(3)
    asked = torch.tensor([points]).float(), torch.tensor([labels])
    for who, about in (("me", embedding), ("me", embedding.clone()), ("you", embedding)):
        memory.keep(who, about, torch.zeros(1, 1, 2), torch.tensor([[-1]]), None, torch.full((3,), 7.0))
    memory.keep("me", embedding, torch.tensor(FIRST[0])[None].float(), torch.tensor(FIRST[1])[None], None, logits)
    assert memory.before("me", embedding, *asked) is (logits if goes_on else None)
    assert memory.before("you", embedding, *asked) is None
    assert memory.before("me", embedding.clone(), *asked) is None
    assert copy.deepcopy(memory).before("me", embedding, *asked) is None


def test_the_longest_prompt_counts_a_repetition_goes_on_as_it_did_and_the_memory_is_bounded():
    memory, embedding = AnswerMemory(most=3), torch.zeros(2)
    prompts = [(torch.arange(2.0 * n).reshape(1, n, 2), torch.ones(1, n)) for n in range(1, 5)]
    answers = [torch.tensor(float(n)) for n in range(4)]
    for number, prompt in enumerate(prompts[:3]):
        before = memory.before("me", embedding, *prompt)
        assert before is (answers[number - 1] if number else None)
        memory.keep("me", embedding, *prompt, before, answers[number])
    for number, prompt in enumerate(prompts):
        assert memory.before("me", embedding, *prompt) is (answers[number - 1] if number else None)
    memory.keep("you", embedding, *prompts[0], None, answers[0])  # the first one goes
    assert memory.before("me", embedding, *prompts[1]) is answers[0]
    memory.keep("you", embedding, *prompts[0], None, answers[0])
    assert memory.before("me", embedding, *prompts[1]) is None
