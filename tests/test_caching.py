"""What is remembered is what would be found, and no more of it is kept than the bounds say."""

from lora_inspect import caching as module
from lora_inspect.caching import Remembered, remembering, remembering_names


def counting():
    asked = []

    def find(name, other):
        asked.append((name, other))
        return None if name == "none" else f"{name} {other}"

    return remembering(find), asked


def test_a_name_is_asked_for_once():
    find, asked = counting()
    assert [find("a", 1), find("a", 1), find("a", 2), find("b", 1)] == ["a 1", "a 1", "a 2", "b 1"]
    assert asked == [("a", 1), ("a", 2), ("b", 1)]


def test_that_nothing_is_found_is_remembered_too():
    find, asked = counting()
    assert [find("none", 1), find("none", 1)] == [None, None]
    assert len(asked) == 1


def test_long_names_are_not_kept():
    find, asked = counting()
    longest, longer = "a" * module.LONGEST_NAME, "a" * (module.LONGEST_NAME + 1)
    for name in (longest, longest, longer, longer):
        find(name, 1)
    assert [name for name, _ in asked] == [longest, longer, longer]


def test_of_names_alone_as_many_are_kept_as_the_bounds_say(monkeypatch):
    monkeypatch.setattr(module, "MOST_NAMES", 3)
    monkeypatch.setattr(module, "_STEP", 1)
    monkeypatch.setattr(module, "_open_files", module._OpenFiles())  # other tests may have left files open
    asked = []
    find = remembering_names(lambda name: asked.append(name))
    longer = "a" * (module.LONGEST_NAME + 1)
    assert [find(name) for name in ("a", "a", longer, longer)] == [None] * 4
    assert asked == ["a", longer, longer]
    for name in ("b", "c", "d", "d", "a"):
        find(name)
    assert asked[3:] == ["b", "c", "d", "a"]
    assert len(find.__self__) <= 3


def test_what_was_asked_for_longest_ago_is_forgotten():
    found = Remembered(2)
    found.put("a", 1)
    found.put("b", 2)
    assert found.get("a") == 1
    found.put("c", 3)
    assert [found.get(key) for key in "abc"] == [1, None, 3]
    assert len(found) == 2


def test_what_is_found_again_takes_the_place_of_what_was():
    found = Remembered(2)
    found.put("a", 1)
    found.put("b", 2)
    found.put("a", 3)
    assert [found.get(key) for key in "ab"] == [3, 2]


def test_what_is_not_remembered_is_found_once_there_is_room():
    found, before = Remembered(1), []

    def make(value):
        before.append(len(found))
        return value

    assert [found.of(key, lambda key=key: make(key.upper())) for key in ("a", "a", "b", "b", "a")] == list("AABBA")
    assert before == [0, 0, 0]


def test_what_another_thread_drops_meanwhile_is_not_dropped_again():
    class Key:
        """Does what another thread might at the moment when the key is looked up."""

        def __init__(self):
            self.meanwhile = None

        def __hash__(self):
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile:
                meanwhile()
            return 1

    found, key = Remembered(1), Key()
    found.put(key, 1)
    key.meanwhile = lambda: found.put("b", 2)
    found.put("c", 3)
    assert (found.get(key), found.get("c")) == (None, 3)


def test_an_open_file_gives_room_until_it_is_closed(monkeypatch):
    monkeypatch.setattr(module, "MOST_NAMES", 3)
    monkeypatch.setattr(module, "_STEP", 1)
    monkeypatch.setattr(module, "_open_files", module._OpenFiles())
    first, second = module.Room(2), module.Room(1)
    assert [module.is_full(range(count)) for count in (3, 14, 15)] == [False, False, True]
    del first
    assert [module.is_full(range(count)) for count in (6, 7)] == [False, True]
    del second
    assert [module.is_full(range(count)) for count in (2, 3)] == [False, True]
