"""Hospitals with a patient's name wherever a hospital may have one: it must not turn up anywhere else."""

import nibabel

CANARY = "Kanarienvogel"


def canary_hospitals(scans, folder):
    """The tiny study's scans as datalists, with a patient's name wherever a hospital may have one."""
    sites = {}
    for site in sorted(scans.iterdir()):
        home, entries = folder / "sites" / site.name / "scans", []
        home.mkdir(parents=True)
        for index, source in enumerate(sorted((site / "scans" / "images").iterdir())):
            entry = {"patient": f"{CANARY}^Hans{index}^{site.name}"}
            for part in ("image", "label"):
                volume = nibabel.load(source if part == "image" else site / "scans" / "labels" / source.name)
                volume.header["descrip"] = f"{CANARY}^Hans".encode()
                volume.header["db_name"] = CANARY.encode()[:17]
                path = home / f"{CANARY}_Hans_{part}{index}.nii.gz"
                nibabel.save(volume, path)
                entry[part] = f"sites/{site.name}/scans/{path.name}"
            entries.append(entry)
        broken_scan = home / f"{CANARY}_broken.nii.gz"
        broken_scan.write_bytes(CANARY.encode())
        wrong = {"image": f"sites/{site.name}/scans/{broken_scan.name}", "patient": f"{CANARY}^Broken^{site.name}"}
        sites[site.name] = [*entries, wrong | {"label": entries[0]["label"]}]
    return sites
