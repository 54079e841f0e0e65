"""The table of round trips in docs/data.md: the same voxels and the same millilitres after every way."""

import numpy as np
import pytest
from harness.documents import PAGES
from harness.round_trip import AXIAL, DCM2NIIX, HEAD, TILTED, WAYS, mask, rows


def test_every_way_gives_the_same_voxels_and_millilitres_and_the_document_has_the_table(tmp_path):
    table = list(rows(tmp_path))
    print("\n" + HEAD, *(row.text() for row in table), sep="\n")
    assert len(table) == len(WAYS) - (DCM2NIIX is None)
    for row in table:
        ml = mask().sum() * abs(np.linalg.det((TILTED if "tilted" in row.way else AXIAL)[:3, :3])) / 1000
        assert (row.hu_apart, row.mask_apart) == (0, 0), row
        assert row.mm_apart < 1e-3, row
        assert row.ml == pytest.approx(ml, rel=1e-5), row
        assert row.text() in PAGES["docs/data.md"], row.text()
    assert HEAD in PAGES["docs/data.md"]


@pytest.mark.skipif(DCM2NIIX is None, reason="dcm2niix is not installed (Debian: apt-get install dcm2niix)")
def test_the_table_has_the_way_through_dcm2niix(tmp_path):
    assert "| DICOM to dcm2niix to NIfTI | 0 | 0 |" in PAGES["docs/data.md"]
