import pytest

from docs import arena_store
from remind_jax.errors import UserError
from remind_jax.studies import arena_page
from tests.studies import arena_rows


def test_the_page_of_an_arena_is_kept_and_its_links_hold(tmp_path):
    arena, docs = tmp_path / "arena", tmp_path / "docs"
    arena_page.write(arena, arena_rows.rows(), arena_rows.differences(), [])
    (arena / "arena.csv").write_text("data,protocol\n", encoding="utf-8")
    arena_store.main([f"--store={arena}", f"--docs={docs}"])
    text = (docs / "arena.md").read_text(encoding="utf-8")
    assert "[Every run](results/arena/arena.csv)" in text
    assert (docs / "results/arena/arena.csv").read_text(encoding="utf-8") == "data,protocol\n"
    for name in ("ranks.svg", "cost.svg"):
        assert f"]({name})" in text
        assert (docs / name).read_bytes() == (arena / name).read_bytes()


def test_an_arena_that_is_not_finished_is_refused_and_nothing_is_written(tmp_path):
    (tmp_path / "arena.md").write_text("# Arena\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"it has no arena.csv, cost.svg, ranks.svg"):
        arena_store.store(tmp_path, tmp_path / "docs")
    assert not (tmp_path / "docs").exists()
