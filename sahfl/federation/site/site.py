"""The data of one site: scans, checks, folds and the stored base network. Nothing in this module sends anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from sahfl.adapters import AdapterState, digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.atomic import write_atomic, writing
from sahfl.config import SiteConfig, ViewsConfig
from sahfl.data.cache import CACHE, SliceCache
from sahfl.data.checks import (
    MANIFEST,
    CheckedCase,
    OnScan,
    check_cases,
    count_findings,
    data_key,
    patient_keys,
    read_manifest,
    scan_keys,
    usable_cases,
    verify_unchanged,
    write_manifest,
)
from sahfl.data.ct import Scan
from sahfl.data.manifest import assign_folds, declared_folds, ordered_by_chance
from sahfl.data.measures import Measures
from sahfl.data.repeat_scans import warn_of_repeat_scans
from sahfl.data.views import CaseViews
from sahfl.errors import AdapterError, DataError, PolicyRefused
from sahfl.events import Warned, emit
from sahfl.federation.site.secret import commitment
from sahfl.federation.site.withdrawn import read_withdrawn
from sahfl.run.software import software_hash
from sahfl.task import SiteDescription, held_out_folds


class Site:
    """One hospital's data, with the operations that tasks need."""

    def __init__(self, config: SiteConfig) -> None:
        self.config = config

    # ------------------------------------------------------------------------------------------- cases

    def prepare(self, on_case: Callable[[int, int], None]) -> None:
        """Check the data of the site, and warn of likely repeat scans of a patient.

        Raises:
            DataError: the datalist is wrong, no case is usable, or more are refused than the site's policy allows.
        """
        checked = self.check(on_case)
        if warning := warn_of_repeat_scans(item.case for item in checked):
            emit(Warned(f"site {self.config.name}: {warning}"))
        self._usable()

    def check(
        self, on_case: Callable[[int, int], None], on_scan: OnScan = lambda checked, scan, measures: None
    ) -> tuple[CheckedCase, ...]:
        """List the cases (a simulated site writes its phantoms first), check each, and store the results.

        Scans of withdrawn patients are left out, with a warning.

        Raises:
            DataError: the datalist or folder is wrong.
            SiteStateLost: the record of the withdrawn patients is damaged.
        """
        listed = self.config.data.list_cases(self.config.name, self.config.folder, on_case)
        gone = read_withdrawn(self.config.folder)
        cases = [case for case in listed if not any(one.is_patient(case.patient) for one in gone)]

        def look(item: CheckedCase, scan: Scan | None, measures: Measures | None) -> None:
            if not any(one.has(item) for one in gone):
                on_scan(item, scan, measures)

        found = check_cases(cases, on_case=on_case, on_scan=look)
        checked = tuple(item for item in found if not any(one.has(item) for one in gone))
        if left_out := len(listed) - len(checked):
            text = f"site {self.config.name}: {left_out} scans of withdrawn patients are left out"
            emit(Warned(f"{text}; take them out of the site's data too"))
        self._store(checked)
        return checked

    def known_cases(self) -> tuple[CheckedCase, ...]:
        """The cases of the last check; none before the first."""
        return self._checked() if (self.config.folder / MANIFEST).exists() else ()

    def remove_withdrawn(self) -> int:
        """Remove the withdrawn patients from the results of the last check and from the cache.

        What else was made from that check is removed as a whole: its page and the scan keys. Returns the number of
        files that were removed or written anew.

        Raises:
            StorageError: a file cannot be written.
        """
        known, gone = self.known_cases(), read_withdrawn(self.config.folder)
        made = [self.config.folder / name for name in ("checks.json", "checks.html", "scan_keys.json")]
        n_removed = sum(path.exists() for path in (*made, (self.config.folder / MANIFEST)))
        for path in made:
            path.unlink(missing_ok=True)
        with writing(self.config.folder / MANIFEST):
            return n_removed + self._store(item for item in known if not any(one.has(item) for one in gone))

    def _store(self, checked: Iterable[CheckedCase]) -> int:
        """Store the results of a check; returns the number of entries of the cache that belong to no case of it."""
        checked = tuple(checked)
        write_manifest(self.config.folder, checked)
        return self._cache.keep_only({item.content for item in checked})

    def cases(self, *, turn: int = 0) -> tuple[CheckedCase, ...]:
        """The usable cases, after a check that their files did not change since ``prepare``.

        Args:
            turn: selects the cases whose content is read and compared; see ``verify_unchanged``.

        Raises:
            DataError: the site was not prepared, or more cases are refused than its policy allows.
            DataChanged: a file changed since ``prepare``.
        """
        usable = self._usable()
        verify_unchanged(usable, turn=turn)
        return usable

    def describe(self, *, n_folds: int, seed: int) -> SiteDescription:
        """Counts of the site's cases, and a hash of its software."""
        checked, usable = self._checked(), self._usable()
        fold_of = self._folds(usable, n_folds, seed)
        folds = list(fold_of.values())
        bleeding = [fold_of[patient] for patient in {item.case.patient for item in usable if item.volume_ml > 0}]
        return SiteDescription(
            site=self.config.name,
            source=self.config.data.label(self.config.name),
            n_volumes=len(usable),
            n_patients=len(folds),
            n_positive=sum(item.volume_ml > 0 for item in usable),
            volume_ml=round(sum(item.volume_ml for item in usable), 1),
            fold_sizes=tuple(folds.count(fold) for fold in range(n_folds)),
            fold_positive=tuple(bleeding.count(fold) for fold in range(n_folds)),
            data=data_key(usable, salt=f"{seed} {self.config.name}"),
            software=software_hash(),
            batches=commitment(self.config),
            confirmations=self.config.policy.confirmations,
            n_refused=len(checked) - len(usable),
            findings={**count_findings(checked)},
        )

    def training_cases(
        self, *, fold: int, n_folds: int, seed: int, turn: int = 0, inner: bool = False, most: int | None = None
    ) -> tuple[CheckedCase, ...]:
        """Cases of all folds but ``fold``, and with ``inner`` the one after it; every case for fold -1 (pretraining).

        ``most`` is the largest number of patients; those of a smaller number are among those of a larger one.

        Raises:
            DataError: every patient of the site is held out.
        """
        chosen = self.cases_outside(fold=fold, n_folds=n_folds, seed=seed, turn=turn, inner=inner, most=most)
        if not chosen:
            raise DataError(f"site {self.config.name}: all patients are in fold {fold}, none is left to train on")
        return chosen

    def cases_outside(
        self, *, fold: int, n_folds: int, seed: int, turn: int = 0, inner: bool = False, most: int | None = None
    ) -> tuple[CheckedCase, ...]:
        """As ``training_cases``, but there may be none."""
        usable = self.cases(turn=turn)
        if fold < 0:
            return usable
        folds, left_out = self._folds(usable, n_folds, seed), held_out_folds(fold, n_folds, inner=inner)
        patients = [patient for patient in folds if folds[patient] not in left_out]
        drawn = set(ordered_by_chance(patients, salt=f"{seed} {self.config.name}")[:most])
        return tuple(item for item in usable if item.case.patient in drawn)

    def held_out_cases(self, *, fold: int, n_folds: int, seed: int) -> tuple[CheckedCase, ...]:
        """Cases of fold ``fold``, compared by content; may be empty at a small site."""
        held_out = self.cases_of_fold(fold=fold, n_folds=n_folds, seed=seed)
        verify_unchanged(held_out, whole=True)
        return held_out

    def cases_of_fold(self, *, fold: int, n_folds: int, seed: int) -> tuple[CheckedCase, ...]:
        """As ``held_out_cases``, without a look at their files."""
        usable = self._usable()
        folds = self._folds(usable, n_folds, seed)
        return tuple(item for item in usable if folds[item.case.patient] == fold)

    def patient_keys(self, seed: int) -> dict[str, str]:
        """Salted key per patient, for the bootstrap."""
        return patient_keys(self._usable(), salt=f"{seed} {self.config.name}")

    def scan_keys(self, study: str) -> tuple[str, ...]:
        """Salted key per scan, for a study that searches for scans shared by two sites.

        The salt is the study's fingerprint, which the server has. Someone who holds a scan can therefore find out
        whether a site has it, but nobody can get from a key to a scan or a person. ``scan_keys.json`` in the site's
        folder holds the case of each key, so that two data managers can settle a match by telephone.

        Raises:
            PolicyRefused: the site's policy does not allow it.
        """
        if not self.config.policy.share_scan_keys:
            raise PolicyRefused(
                f"site {self.config.name}: the study asks for scan keys; policy.share_scan_keys is false here"
            )
        keys = scan_keys(self._usable(), salt=study)
        write_atomic(self.config.folder / "scan_keys.json", json.dumps(keys, indent=1) + "\n")
        return tuple(keys.values())

    def load_views(self, items: Sequence[CheckedCase], views: ViewsConfig) -> list[CaseViews]:
        """Load cases as slices, from the site's cache.

        Raises:
            DataError: the files of a case changed, or cannot be read.
            StorageError: the cache cannot be written.
        """
        return self._cache.load(items, views)

    @property
    def _cache(self) -> SliceCache:
        return SliceCache(self.config.folder / CACHE)

    def _usable(self) -> tuple[CheckedCase, ...]:
        return usable_cases(self._checked(), max_refused_share=self.config.max_refused_share)

    def _checked(self) -> tuple[CheckedCase, ...]:
        return read_manifest(self.config.folder, self.config.name)

    def _folds(self, usable: Iterable[CheckedCase], n_folds: int, seed: int) -> dict[str, int]:
        usable = tuple(usable)
        if declared := declared_folds((item.case for item in usable), n_folds=n_folds):
            return declared
        volumes: dict[str, float] = {}
        for item in usable:
            volumes[item.case.patient] = volumes.get(item.case.patient, 0.0) + item.volume_ml
        return assign_folds(volumes, n_folds=n_folds, salt=f"{seed} {self.config.name}")

    # ------------------------------------------------------------------------------------------- base

    def install_base(self, state: AdapterState, sha256: str) -> None:
        """Store the base network of a study; raises AdapterError if its content does not match the hash."""
        if digest(state) != sha256:
            raise AdapterError(f"site {self.config.name}: the base's content does not match its hash {sha256[:12]}")
        save_tensors(self._base_file(sha256), state)

    def base(self, sha256: str) -> AdapterState:
        """Read an installed base network.

        Raises:
            AdapterError: the network was never installed at this site, or its file was changed.
        """
        path = self._base_file(sha256)
        state, found = _read_base(path, path.stat().st_mtime_ns if path.exists() else 0)
        if found != sha256:
            raise AdapterError(f"site {self.config.name}: the installed base {sha256[:12]} was changed on disk")
        return state

    def _base_file(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise AdapterError(
                f"site {self.config.name}: got a base hash of {len(sha256)} characters, expected 64 hex digits"
            )
        return self.config.folder / f"base-{sha256}.safetensors"


@lru_cache(maxsize=1)
def _read_base(path: Path, changed_ns: int) -> tuple[AdapterState, str]:
    """Read a base and its digest; cached, because every round uses the same base, until the file changes."""
    state, _ = load_tensors(path)
    for array in state.values():
        array.setflags(write=False)  # all callers share the cached array
    return state, digest(state)
