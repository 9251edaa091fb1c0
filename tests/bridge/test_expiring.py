from app.bridge.expiring import Expiring


def test_an_entry_is_there_until_its_life_is_over() -> None:
    memory: Expiring[str] = Expiring(life_s=10, limit=5)
    assert memory.put("a", "first", 100)
    assert memory.get("a", 109.9) == "first"
    assert memory.get("a", 110) is None


def test_a_key_put_again_starts_a_new_life_with_the_new_value() -> None:
    memory: Expiring[str] = Expiring(life_s=10, limit=1)
    memory.put("a", "first", 100)
    assert memory.put("a", "second", 105)
    assert memory.get("a", 114) == "second"


def test_a_full_memory_refuses_rather_than_forgets() -> None:
    memory: Expiring[str] = Expiring(life_s=10, limit=1)
    memory.put("a", "first", 100)
    assert not memory.put("b", "second", 105)
    assert memory.get("a", 105) == "first"
    assert memory.get("b", 105) is None


def test_entries_that_are_over_make_place() -> None:
    memory: Expiring[str] = Expiring(life_s=10, limit=2)
    memory.put("a", "first", 100)
    memory.put("b", "second", 101)
    assert memory.put("c", "third", 112)
    assert len(memory) == 1


def test_a_clock_set_back_keeps_entries_longer_and_loses_none() -> None:
    memory: Expiring[str] = Expiring(life_s=10, limit=5)
    memory.put("a", "first", 100)
    memory.put("b", "second", 50)
    assert memory.get("a", 55) == "first"
    assert memory.get("b", 55) == "second"
