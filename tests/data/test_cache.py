"""A case on disk is the case in memory, whatever happens to the file, and memory does not grow with the cohort."""

import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from harness.one_case import check_case

from sahfl.config import ViewsConfig
from sahfl.data import cache
from sahfl.data.cache import SliceCache
from sahfl.data.ct import Scan, read_scan
from sahfl.data.manifest import Case
from sahfl.data.sampler import SliceSampler
from sahfl.data.views import make_views
from sahfl.errors import DataError, StorageError

CONFIG = ViewsConfig(spacing_mm=4.0, size=(32, 48, 32))
VIEWS = ("axial", "coronal", "sagittal")


def write_case(folder, index=0, shape=(40, 44, 12), spacing=(4.0, 4.0, 9.0)):
    """A head of random tissue in a skull, with blood off the centre; another index gives another head."""
    random = np.random.default_rng(index)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    distance = x**2 + y**2 + (z * 0.9) ** 2
    image = np.where(distance < 0.8, 900, -1000).astype(np.int16)
    image[distance < 0.6] = random.integers(20, 40, (distance < 0.6).sum())
    label = ((x - 0.2) ** 2 + (y + 0.1) ** 2 + (z - 0.1) ** 2 < 0.08).astype(np.uint8)
    image[label > 0] += 40
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{index}.nii", folder / f"{index}-label.nii"
    for path, volume in zip(paths, (image, label), strict=True):
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([*spacing, 1.0])), path)
    return Case(f"bern-{index:04d}", *paths, f"patient-{index}")


@pytest.fixture
def item(tmp_path):
    return check_case(write_case(tmp_path / "scans"))


@pytest.fixture
def slices(tmp_path):
    return SliceCache(tmp_path / "cache")


def load(slices, item, config):
    (views,) = slices.load([item], config)
    return views


def entry_of(tmp_path, item):
    (path,) = (tmp_path / "cache").glob(f"*/{item.content}.slices")
    return path


def everything(views):
    """All that a case holds, as plain values and bytes."""
    stacks = [
        (view, array.shape, array[:].dtype, array[:].tobytes(), stack.with_blood.tolist())
        for view, stack in views.stacks.items()
        for array in (stack.image, stack.label)
    ]
    return stacks, views.placement, views.slice_spacing_mm, views.start_z


def fresh(item, config=CONFIG):
    return everything(make_views(read_scan(item.case), config))


# --- the same as without --------------------------------------------------------------------------------------------


def test_a_cached_case_is_bit_for_bit_what_preprocessing_gives_cold_and_warm(slices, item):
    assert everything(load(slices, item, CONFIG)) == fresh(item)
    assert everything(load(slices, item, CONFIG)) == fresh(item)


@pytest.mark.parametrize("key", [slice(0, 0), slice(3, 6), slice(9, 99), slice(-2, None), slice(5, 3)], ids=str)
def test_slices_on_disk_are_indexed_as_an_array_is(slices, item, key):
    stored, array = (
        views.stacks["axial"] for views in (load(slices, item, CONFIG), make_views(read_scan(item.case), CONFIG))
    )
    np.testing.assert_array_equal(stored.image[key], array.image[key])
    np.testing.assert_array_equal(stored.label[key], array.label[key])


def test_a_step_between_slices_is_refused(slices, item):
    with pytest.raises(ValueError, match="slices on disk: got step 2, expected 1"):
        load(slices, item, CONFIG).stacks["axial"].image[::2]


def test_training_batches_are_the_same_from_memory_from_a_new_entry_and_from_an_old_one(slices, tmp_path):
    items = [check_case(write_case(tmp_path / "scans", index)) for index in range(3)]
    sources = [
        [make_views(read_scan(item.case), CONFIG) for item in items],
        slices.load(items, CONFIG),
        SliceCache(tmp_path / "cache").load(items, CONFIG),
    ]
    runs = []
    for cases in sources:
        sampler = SliceSampler(cases, CONFIG, batch_size=4, foreground_share=0.5, seed=5)
        runs.append([sampler.batch() for _ in range(8)])
    for batches in zip(*runs, strict=True):
        for image, label, view in batches[1:]:
            assert view == batches[0][2]
            assert torch.equal(image, batches[0][0])
            assert torch.equal(label, batches[0][1])


def test_a_case_that_is_cached_is_not_read_again(slices, item):
    expected = everything(load(slices, item, CONFIG))
    item.case.image.unlink()
    item.case.label.unlink()
    assert everything(load(slices, item, CONFIG)) == expected


def test_views_come_in_the_order_of_the_study(slices, item):
    for order in (VIEWS, VIEWS[::-1]):
        config = CONFIG.model_copy(update={"weights": dict.fromkeys(order, 1.0)})
        assert tuple(load(slices, item, config).stacks) == order
    assert len(list(slices._folder.glob("*/*.slices"))) == 1


def test_a_case_with_none_of_the_configured_views_is_refused_each_time_and_not_kept(slices, tmp_path):
    item = check_case(write_case(tmp_path / "scans", shape=(40, 44, 5)))
    config = CONFIG.model_copy(update={"weights": {"coronal": 1.0}})
    for _ in range(2):
        with pytest.raises(DataError, match="has only an axial view"):
            load(slices, item, config)
    assert not list((tmp_path / "cache").glob("*/*"))


# --- what an entry belongs to ---------------------------------------------------------------------------------------

SAME = {"weights": dict.fromkeys(VIEWS, 0.3), "neighbours": 3, "windows_hu": ((0.0, 100.0),)}
OTHER = {"weights": {"axial": 1.0}, "spacing_mm": 3.0, "size": (32, 48, 48)}


@pytest.mark.parametrize("name", SAME)
def test_settings_that_come_after_preprocessing_share_an_entry(slices, item, name):
    load(slices, item, CONFIG)
    load(slices, item, CONFIG.model_copy(update={name: SAME[name]}))
    assert len(list(slices._folder.glob("*/*.slices"))) == 1


@pytest.mark.parametrize("name", OTHER)
def test_settings_of_preprocessing_have_entries_of_their_own(slices, item, name):
    load(slices, item, CONFIG)
    config = CONFIG.model_copy(update={name: OTHER[name]})
    assert everything(load(slices, item, config)) == fresh(item, config)
    assert len(list(slices._folder.glob("*/*.slices"))) == 2


@pytest.mark.parametrize(("owner", "name", "value"), [(cache, "FORMAT", 99), (torch, "__version__", "9.9")])
def test_another_format_or_torch_has_entries_of_its_own(slices, item, monkeypatch, owner, name, value):
    load(slices, item, CONFIG)
    monkeypatch.setattr(owner, name, value)
    load(slices, item, CONFIG)
    assert len(list(slices._folder.glob("*/*.slices"))) == 2


WEIGHTED_MEANS = {"axial": (14.5961, -0.00823), "coronal": (50.8393, 0.01253), "sagittal": (46.6952, 0.01569)}


def test_what_preprocessing_gives_is_that_of_the_format_s_number():
    """Other numbers here are other content under an old key: raise ``cache.FORMAT`` with any change of them."""
    x, y, z = np.meshgrid(np.arange(50), np.arange(60), np.arange(40), indexing="ij")
    head = (abs(x - 22) < 18) & (abs(y - 30) < 25) & (z > 12) & (z < 38)
    image = np.where(head, (x * 7 + y * 3 + z * 11) % 500, -1000).astype(np.float32)
    views = make_views(Scan(image, image > 250, np.diag([3.1, 3.3, 4.7, 1.0])), CONFIG)
    found = {}
    for view, stack in views.stacks.items():
        weights = np.cos(np.arange(np.prod(stack.image.shape)) / 1000)  # no two places weigh the same
        found[view] = tuple(float((array[:].ravel() * weights).mean()) for array in (stack.image, stack.label))
    assert cache.FORMAT == 1
    for view, (image_mean, label_mean) in WEIGHTED_MEANS.items():
        assert found[view] == pytest.approx((image_mean, label_mean), abs=1e-3), found


def test_a_changed_scan_is_another_entry(slices, item, tmp_path):
    load(slices, item, CONFIG)
    write_case(tmp_path / "scans", 0, spacing=(4.0, 4.0, 8.0))
    changed = check_case(item.case)
    assert changed.content != item.content
    assert everything(load(slices, changed, CONFIG)) == fresh(changed)


def test_D05_a_scan_that_changed_after_its_check_is_not_cached_under_the_old_hash(slices, item, tmp_path):
    write_case(tmp_path / "scans", 0, spacing=(4.0, 4.0, 8.0))
    os.utime(item.case.image, ns=(1, 1))
    with pytest.raises(DataError, match="case bern-0000: its files changed after they were checked"):
        load(slices, item, CONFIG)
    assert not list((tmp_path / "cache").glob("*/*"))


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(position):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[position(content)] ^= 4
        path.write_bytes(content)

    return damage


def replace(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def header_bytes(content):
    return content.index(b"\n") + 1


DAMAGE = {
    "header-hash": flip(lambda content: 10),
    "header": flip(lambda content: 100),
    "end-of-header": flip(lambda content: header_bytes(content) - 1),
    "first-voxel": flip(header_bytes),
    "middle": flip(lambda content: len(content) // 2),
    "last-checksum": flip(lambda content: len(content) - 1),
    "truncated": replace(lambda content: content[:-1000]),
    "header-only": replace(lambda content: content[: header_bytes(content)]),
    "half-a-header": replace(lambda content: content[:90]),
    "empty": replace(lambda content: b""),
    "zeros": replace(lambda content: bytes(len(content))),
    "zero-block": replace(lambda content: content[:8192] + bytes(4096) + content[8192 + 4096 :]),
    "longer": replace(lambda content: content + b"more"),
    "text": replace(lambda content: b"not what you think\n" * 500),
    "pickle": replace(
        lambda content: b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04exit\x94\x85\x94R\x94."
    ),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_made_again(slices, item, tmp_path, damage):
    load(slices, item, CONFIG)
    path = entry_of(tmp_path, item)
    whole = path.read_bytes()
    damage(path)
    assert everything(load(slices, item, CONFIG)) == fresh(item)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_an_entry_that_is_damaged_while_it_is_in_use_is_made_again(slices, item, tmp_path, damage):
    views = load(slices, item, CONFIG)
    damage(entry_of(tmp_path, item))
    assert everything(views) == fresh(item)


def test_no_random_damage_gives_another_picture(slices, item, tmp_path):
    """Bytes changed, left out, doubled or cut off anywhere, 100 times."""
    views, path, expected = load(slices, item, CONFIG), entry_of(tmp_path, item), fresh(item)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        start, length = int(random.integers(len(whole))), int(random.integers(1, 5000))
        middle = [random.bytes(length), b"", whole[start : start + length] * 2][random.integers(3)]
        path.write_bytes(whole[:start] + middle + whole[start + length :])
        assert everything(load(slices, item, CONFIG)) == everything(views) == expected


def test_slices_that_traded_places_are_noticed(slices, item, tmp_path):
    views, path = load(slices, item, CONFIG), entry_of(tmp_path, item)
    whole = path.read_bytes()
    start, record = header_bytes(whole), 32 * 48 * 2 + 4
    first, second = whole[start : start + record], whole[start + record : start + 2 * record]
    path.write_bytes(whole[:start] + second + first + whole[start + 2 * record :])
    assert everything(views) == fresh(item)
    assert path.read_bytes() == whole


def test_a_damaged_entry_whose_scan_is_gone_is_an_error_not_a_wrong_picture(slices, item, tmp_path):
    views = load(slices, item, CONFIG)
    DAMAGE["middle"](entry_of(tmp_path, item))
    item.case.image.unlink()
    with pytest.raises(DataError, match="case bern-0000: the image file is missing"):
        everything(views)


def test_an_entry_is_a_line_of_text_and_raw_voxels(slices, item, tmp_path):
    load(slices, item, CONFIG)
    line, payload = entry_of(tmp_path, item).read_bytes().split(b"\n", 1)
    digest, text = line.split(b" ", 1)
    assert hashlib.sha256(text + b"\n").hexdigest() == digest.decode()
    parts = json.loads(text)["parts"]
    assert [parts[view]["shape"] for view in VIEWS] == [[12, 32, 48], [48, 32, 32], [32, 48, 32]]
    expected = make_views(read_scan(item.case), CONFIG).stacks["axial"].image
    np.testing.assert_array_equal(np.frombuffer(payload, "<i2", 32 * 48).reshape(32, 48), expected[0])


# --- writing --------------------------------------------------------------------------------------------------------


def test_A12_a_full_disk_is_a_typed_error_and_leaves_the_other_entries(slices, tmp_path):
    first, second = (check_case(write_case(tmp_path / "scans", index)) for index in range(2))
    load(slices, first, CONFIG)
    before = {path: path.read_bytes() for path in (tmp_path / "cache").glob("*/*")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cache/\w{16}: 0.4 MB cannot be written \(File too large\); make room"):
            load(slices, second, CONFIG)
        assert everything(load(slices, first, CONFIG)) == fresh(first)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in (tmp_path / "cache").glob("*/*")} == before
    assert everything(load(slices, second, CONFIG)) == fresh(second)


def test_A12_a_folder_that_cannot_be_made_is_a_typed_error(item, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cache: cannot be written"):
        load(SliceCache(tmp_path / "cache"), item, CONFIG)


def test_a_disk_that_does_not_give_back_what_was_written_is_a_typed_error(slices, item, monkeypatch):
    def failing_disk(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(len(content)))

    monkeypatch.setattr(cache, "write_atomic", failing_disk)
    with pytest.raises(StorageError, match="what was just written cannot be read back; a failing disk"):
        load(slices, item, CONFIG)


def load_all(folder, items, start, results):
    torch.set_num_threads(1)
    start.wait()
    views = SliceCache(folder).load(items, CONFIG)
    results.put(hashlib.sha256(repr([everything(view) for view in views]).encode()).hexdigest())


def processes(folder, items, n):
    spawning = multiprocessing.get_context("spawn")
    start, results = spawning.Event(), spawning.Queue()
    started = [spawning.Process(target=load_all, args=(folder, items, start, results)) for _ in range(n)]
    for process in started:
        process.start()
    return started, start, results


@pytest.mark.slow
def test_processes_that_make_the_same_entries_at_once_all_get_whole_ones(tmp_path):
    items = [check_case(write_case(tmp_path / "scans", index)) for index in range(8)]
    started, start, results = processes(tmp_path / "cache", items, 2)
    start.set()
    found = {results.get(timeout=300) for _ in started}
    for process in started:
        process.join()
    assert found == {hashlib.sha256(repr([fresh(item) for item in items]).encode()).hexdigest()}
    assert sorted(path.name for path in (tmp_path / "cache").glob("*/*")) == sorted(
        f"{i.content}.slices" for i in items
    )


@pytest.mark.slow
def test_a_process_killed_while_it_makes_entries_leaves_whole_entries_and_no_lock(tmp_path):
    items = [check_case(write_case(tmp_path / "scans", index)) for index in range(60)]
    (process,), start, _ = processes(tmp_path / "cache", items, 1)
    start.set()
    end = time.monotonic() + 300
    while len(list((tmp_path / "cache").glob("*/*.slices"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.001)
    process.kill()
    process.join()
    found = {path.name for path in (tmp_path / "cache").glob("*/*.slices")}
    assert 3 <= len(found) < 60
    for item in items[:6]:
        assert everything(load(SliceCache(tmp_path / "cache"), item, CONFIG)) == fresh(item)


# --- room -----------------------------------------------------------------------------------------------------------


def with_spacing(spacing_mm):
    return CONFIG.model_copy(update={"spacing_mm": spacing_mm})


def test_a_folder_keeps_the_entries_of_the_two_settings_used_last(slices, item, tmp_path):
    for spacing_mm in (2.0, 3.0, 2.0, 4.0):
        load(slices, item, with_spacing(spacing_mm))
    kept = {cache._settings_key(with_spacing(spacing_mm)) for spacing_mm in (2.0, 4.0)}
    assert {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()} == kept


def test_a_study_whose_entries_were_removed_while_it_reads_them_goes_on(slices, item):
    views = load(slices, item, with_spacing(2.0))
    for spacing_mm in (3.0, 4.0):
        load(slices, item, with_spacing(spacing_mm))
    assert everything(views) == fresh(item, with_spacing(2.0))


def test_entries_of_scans_that_are_gone_and_half_written_files_are_removed(slices, tmp_path):
    items = [check_case(write_case(tmp_path / "scans", index)) for index in range(3)]
    slices.load(items, CONFIG)
    kept = entry_of(tmp_path, items[1])
    kept.with_name(kept.name + ".123.tmp").write_bytes(b"half")
    slices.keep_only({items[1].content})
    assert [path for path in (tmp_path / "cache").glob("*/*")] == [kept]
    assert everything(load(slices, items[1], CONFIG)) == fresh(items[1])


def test_a_site_without_a_cache_has_nothing_to_remove(slices, tmp_path):
    slices.keep_only(set())
    assert not (tmp_path / "cache").exists()


# --- memory ---------------------------------------------------------------------------------------------------------

PEAKS = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from sahfl.config import ViewsConfig
from sahfl.data.cache import SliceCache
from sahfl.data.checks import check_cases
from sahfl.data.manifest import Case
from sahfl.data.sampler import SliceSampler

torch.set_num_threads(1)
folder = Path(sys.argv[1])
(item,) = check_cases([Case("bern-0000", folder / "0.nii", folder / "0-label.nii", "p")])
config = ViewsConfig(weights={"axial": 1.0, "coronal": 0.5}, size=(96, 112, 32))
for n_cases in (20, 200):
    items = [replace(item, content=f"{index:064d}") for index in range(n_cases)]
    cases = SliceCache(folder / "cache").load(items, config)
    sampler = SliceSampler(cases, config, batch_size=8, foreground_share=0.5, seed=0)
    for _ in range(20):
        sampler.batch()
    for case in cases:  # every byte of every case is looked at
        for stack in case.stacks.values():
            assert stack.image[:].any() and stack.label[:].any()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_the_memory_of_a_process_does_not_grow_with_the_cohort(tmp_path):
    """200 cases hold 360 MB of slices, 20 hold 36 MB; the peak may differ by 20 MB, for what an allocator keeps."""
    write_case(tmp_path, 0, shape=(96, 112, 24), spacing=(2.0, 2.0, 2.0))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAKS, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    few, many = map(int, result.stdout.split())
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*")) > 350e6
    assert many - few < 20, (few, many)
