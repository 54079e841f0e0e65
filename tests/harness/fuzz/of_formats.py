"""Fuzzed scans in other programs' formats, what packs them, and the tables that list them."""

import json
import shutil
import stat
import zipfile
from pathlib import Path

import SimpleITK

from harness.contours import write_structures
from harness.dicom_files import write_series
from harness.fuzz.of_scans import AFFINE, mask, volume
from harness.fuzz.outcome import Reader
from harness.made_run import around, make_run, results_of
from sahfl.data.ct import read_scan
from sahfl.data.manifest import Case
from sahfl.data.sources.recognised import read_cases
from sahfl.pacs.login import read_login
from sahfl.pacs.mapping import Mapping
from sahfl.pacs.orders import read_orders
from sahfl.prediction.interval import read_calibration
from sahfl.prediction.networks import Trained
from sahfl.prediction.scan_list import list_scans
from sahfl.prediction.unlike import read_known
from sahfl.statistics.metrics import VOLUME_EDGES_ML, count_volumes


def formats(folder: Path) -> Reader:
    """NRRD and MetaImage, plain and packed, in one file and in two; segments of 3D Slicer."""
    image, label = (SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0)) for voxels in (volume(), mask()))
    for number, voxels in enumerate((image, label)):
        voxels.SetSpacing((4.0, 4.0, 5.0))
        for name in (f"{number}.nrrd", f"{number}.mha", f"{number}.mhd", f"{number}.nhdr"):
            SimpleITK.WriteImage(voxels, str(folder / name), useCompression=name.endswith("mha"))
    segments = {"Segment0_Name": "ICH", "Segment0_LabelValue": "1", "Segment0_Layer": "0", "Segment0_ID": "s"}
    for name, text in segments.items():
        label.SetMetaData(name, text)
    SimpleITK.WriteImage(label, str(folder / "1.seg.nrrd"))

    def read(name: str) -> None:
        ending = name.partition(".")[2].replace("zraw", "mhd").replace("raw", "mhd")
        image, label = folder / f"0.{ending.removeprefix('seg.')}", folder / f"1.{ending}"
        scan = read_scan(Case("bern-0000", image, label, "p"))
        assert scan.image.shape == scan.label.shape

    return Reader.of_folder(folder, read)


def structures(folder: Path) -> Reader:
    """Contours of radiotherapy on a series."""
    write_series(folder, volume(), AFFINE)
    corners = ((1.0, 2.0), (4.0, 2.0), (4.0, 6.0), (1.0, 6.0))
    write_structures(folder / "contours.dcm", [("ICH", 1, corners), ("skull", 2, corners)], AFFINE)
    case = Case("bern-0000", folder, folder, "p")
    return Reader.of_folder(folder, lambda name: read_scan(case), "contours.dcm")


def packed(folder: Path) -> Reader:
    """A zip of images and masks, a disc of two studies, and a table of cases."""
    disc, site = folder / "disc", folder / "site"
    for study in ("A", "B"):
        write_series(disc / study, volume()[:, :, :1], AFFINE, series=study)
    (disc / "DICOMDIR").write_bytes((disc / "A" / "A-000.dcm").read_bytes())
    with zipfile.ZipFile(folder / "cases.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x", "x_mask", "y", "y_mask"):
            archive.writestr(f"scans/{name}.nii", b"\0" * 400)
        link = zipfile.ZipInfo("scans/readme.txt")
        link.external_attr = stat.S_IFREG << 16
        archive.writestr(link, "ct/x")
    (folder / "x.nii").touch()
    (folder / "cases.csv").write_text('image;mask;patient;fold\nx.nii;x.nii;"p;1";0\nx.nii;x.nii;p2;\n')

    def read(name: str) -> None:
        try:
            read_cases(disc if name.startswith("disc") else folder / name, "bern", site)
        finally:
            shutil.rmtree(site, ignore_errors=True)
        assert {path.name for path in folder.iterdir()} == {"disc", "cases.zip", "cases.csv", "x.nii"}

    return Reader.of_folder(folder, read, "cases.zip", "cases.csv", "disc/DICOMDIR", "disc/A/A-000.dcm")


def wishes(folder: Path) -> Reader:
    """Lists of scans to segment and of studies to fetch, a login, what was fetched, and a run's held-out errors."""
    (folder / "scans.csv").write_text('case,image,why\na,x.nii,"first, again"\nb,y.nii,\n')
    (folder / "scans.json").write_text(json.dumps({"test": [{"image": "x.nii"}, "y.nii"], "training": []}))
    (folder / "studies.csv").write_text("pseudonym;study;accession;patient\nA1;1.2.3;;\nA2;;ACC 7;A1\n")
    (folder / "login").write_text("anna:secret\n")
    (folder / "login").chmod(0o600)
    mapping = Mapping(folder / "scans")
    mapping.secret()
    known = {"pseudonym": "A1", "patient": "A1", "study": "1.2.3", "uids": {"1.2": "1.3"}, "pushed": ["1.4"]}
    (known_file := mapping.folder / "A1.json").write_text(json.dumps(known))
    made, study = make_run(folder / "run", [], around(lambda id_, site, fold: 0.5 if "lora" in id_ else 0.4),
                           methods=({"method": "zero_shot"}, {"method": "cp_lora", "rank": 2}))  # fmt: skip
    results = results_of(made, study)
    counts = count_volumes([(25.0, 25.0)] * 40 + [(17.0, 25.0)] * 4)
    row = next(row for row in results["methods"] if row["id"] == "cp_lora-r2")
    row["volume"] = {"histogram": {"edges_ml": list(VOLUME_EDGES_ML), "counts": counts.tolist()}}
    made.write_json("results.json", results)
    trained = Trained((), study.views, 0.5, "", "", "cp_lora-r2", (0,), ("",), "whole")

    def read(name: str) -> None:
        match name.partition("/")[0]:
            case "scans.csv" | "scans.json":
                list_scans(folder / name)
            case "studies.csv":
                read_orders(folder / name)
            case "login":
                read_login(folder / name)
            case "scans-mapping":
                mapping.secret(), mapping.read("A1")
            case _:
                read_calibration(made.path, trained).interval(12.0, 0.5)
                read_known(made.path)

    names = ("scans.csv", "scans.json", "studies.csv", "login", "run/results.json")
    return Reader.of_folder(folder, read, *names, known_file.relative_to(folder).as_posix(), "scans-mapping/secret")
