"""Builds on demand (`[nix] allow_build`): what no cache has and whose derivation the store knows, on real stores."""

from __future__ import annotations

import threading

import psutil
import pytest
from lab.nix import Closure
from lab.processes import run, wait_until
from lab.recipes import Recipe, add_recipe
from storebed import Bed

from nixsnap.errors import CancelledError, NotFoundError, UnavailableError
from nixsnap.nix.caller import Caller
from nixsnap.nix.realise import ClosureRequest
from nixsnap.nix.storepath import StorePath


def request_of(*store_paths: str) -> ClosureRequest:
    """An image that names these."""
    return ClosureRequest(store_paths=tuple(map(StorePath.parse, store_paths)))


def build(bed: Bed, *store_paths: str, roots: str = "roots", **nix: object) -> None:
    """Realise them where builds are allowed."""
    request = request_of(*store_paths)
    bed.realiser(**{"allow_build": True, **nix}).realise(request, gcroots=bed.roots(roots))


def nothing_is_made(bed: Bed, recipe: Recipe) -> None:
    """The output is not there, whole or in part, and no root leads to it."""
    assert not bed.has(recipe.output)
    assert recipe.output in bed.nix_store("--check-validity", "--print-invalid", recipe.output)
    assert not any(path.is_symlink() for path in bed.roots().rglob("*"))


def test_build_of_what_no_cache_has(bed: Bed):
    """The path is built, what it needs before it, and one root keeps both."""
    recipe = add_recipe(bed.store_root)
    build(bed, recipe.output)
    assert bed.has(recipe.output)
    assert bed.has(recipe.needs)
    assert {recipe.output, recipe.needs} <= bed.live()
    assert [str(root.readlink()) for root in bed.roots().iterdir()] == [recipe.output]


def test_caches_are_asked_first(bed: Bed):
    """What a build needs is fetched from the cache that has it, and not built."""
    elsewhere = bed.directory / "elsewhere"
    made = add_recipe(elsewhere)
    run("nix-store", "--store", elsewhere, "--realise", f"{made.needs_derivation}!out")
    bed.cache.publish([made.needs], secret_key=bed.secret_key, store_root=elsewhere)
    recipe = add_recipe(bed.store_root)
    assert recipe == made
    build(bed, recipe.output)
    assert bed.has(recipe.output)
    assert len(bed.cache.nars) == 1


def test_a_part_is_fetched_and_a_part_is_built(bed: Bed, small: Closure):
    """Of what an image names, the cache has one path and the store can make the other."""
    bed.publish(small)
    recipe = add_recipe(bed.store_root)
    build(bed, recipe.output, small.top)
    assert all(map(bed.has, (recipe.output, *small.paths)))


@pytest.mark.parametrize("release", ["machine"], indirect=True)
def test_build_on_another_machine(bed: Bed):
    """Nix has `builders` and may build nothing here: it is built there, copied back, and rooted.

    The other machine is another store, which Nix reaches by its directory as it would by ssh.
    """
    other = bed.directory / "other"
    recipe = add_recipe(bed.store_root)
    options = {"builders": f"{other} -", "max-jobs": "0"}
    with pytest.raises(UnavailableError):
        build(bed, recipe.output, extra_options={"builders": "", "max-jobs": "0"})
    nothing_is_made(bed, recipe)
    build(bed, recipe.output, extra_options=options)
    assert (other / recipe.output.lstrip("/") / "share/f").read_text() == "built\n"
    assert bed.has(recipe.output)
    assert {recipe.output, recipe.needs} <= bed.live()


def test_built_path_deleted_by_force_is_built_again(bed: Bed):
    """Nix has it on record, but somebody removed its files, and no cache has them."""
    recipe = add_recipe(bed.store_root)
    build(bed, recipe.output)
    bed.remove_by_force(recipe.output)
    build(bed, recipe.output, roots="again")
    assert bed.has(recipe.output)


def test_not_allowed(bed: Bed):
    """Without `allow_build` nothing is built, and the error says what would have it built."""
    recipe = add_recipe(bed.store_root)
    with pytest.raises(NotFoundError, match=f"no cache has {recipe.output}") as raised:
        build(bed, recipe.output, allow_build=False)
    assert "[nix] allow_build = true" in (raised.value.hint or "")
    nothing_is_made(bed, recipe)
    assert not bed.has(recipe.needs)


def test_no_derivation(bed: Bed):
    """What no cache has and no derivation makes is NotFound, and nothing is built for the sake of the rest."""
    recipe = add_recipe(bed.store_root)
    absent = f"/nix/store/{'a' * 32}-made"
    with pytest.raises(NotFoundError, match=rf"no cache has {absent}( |:)") as raised:
        build(bed, recipe.output, absent)
    assert "nix copy" in (raised.value.hint or "")
    assert "allow_build" not in (raised.value.hint or "")
    nothing_is_made(bed, recipe)


def test_build_that_fails(bed: Bed):
    """Unavailable, with the derivation, its exit status and the last words of its builder; nothing half made."""
    recipe = add_recipe(bed.store_root, script="mkdir $out; echo half > $out/half; echo it rains; exit 3")
    with pytest.raises(UnavailableError) as raised:
        build(bed, recipe.output)
    for word in (f"cannot realise {recipe.output}", recipe.derivation, "exit code 3", "it rains"):
        assert word in raised.value.message
    assert "nix log" in (raised.value.hint or "")
    nothing_is_made(bed, recipe)


def test_build_of_what_is_needed_fails(bed: Bed):
    """It is the derivation of that which is named, beside the path that was wanted."""
    recipe = add_recipe(bed.store_root, before="echo no flour; exit 4")
    with pytest.raises(UnavailableError) as raised:
        build(bed, recipe.output)
    for word in (recipe.output, recipe.needs_derivation, "exit code 4", "no flour"):
        assert word in raised.value.message
    nothing_is_made(bed, recipe)


def test_build_that_hangs(bed: Bed):
    """Nobody waits any more and the time of grace is over: the builder is ended, and a retry builds anew."""
    recipe = add_recipe(bed.store_root, script="mkdir $out; sleep 4711")
    caller = Caller()
    request = request_of(recipe.output)
    realiser = bed.realiser(allow_build=True, grace_seconds=0.1)
    errors: list[BaseException] = []

    def realise() -> None:
        try:
            realiser.realise(request, gcroots=bed.roots(), caller=caller)
        except CancelledError as exc:
            errors.append(exc)

    thread = threading.Thread(target=realise)
    thread.start()
    wait_until(lambda: len(sleepers()) == 1, what="the builder")
    caller.leave()
    thread.join()
    assert errors
    wait_until(lambda: not sleepers(), what="the builder's end")
    nothing_is_made(bed, recipe)
    with pytest.raises(UnavailableError, match="nothing was heard of Nix for 1 seconds") as raised:
        build(bed, recipe.output, stall_seconds=1)
    assert "stall_seconds" in (raised.value.hint or "")
    wait_until(lambda: not sleepers(), what="the second builder's end")


def sleepers() -> list[psutil.Process]:
    """The builders that hang."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [])[-2:] == ["sleep", "4711"]
    ]
