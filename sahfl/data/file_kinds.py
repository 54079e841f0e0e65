"""What a file is by its first bytes, in words for a message; its name does not matter."""

from __future__ import annotations

_MARKS = (
    (b"\x89HDF", "an HDF5 file, such as MINC 2"),
    (b"CDF", "a netCDF file, such as MINC 1"),
    (b"NRRD", "an NRRD file"),
    (b"ObjectType", "a MetaImage (.mha, .mhd)"),
    (b"NDims", "a MetaImage (.mha, .mhd)"),
    (b"\0\0\0\1", "a FreeSurfer volume (.mgh)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"# === DATA DESCRIPTION FILE", "a Philips PAR file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"BZh", "a file packed with bzip2"),
    (b"\xfd7zXZ", "a file packed with xz"),
    (b"(\xb5/\xfd", "a file packed with Zstandard"),
    (b"version https://git-lfs", "a placeholder of Git LFS, without the content"),
    (b"<", "a web page or XML"),
    (b"{", "JSON"),
)
_ANALYZE = {(348).to_bytes(4, "little"), (348).to_bytes(4, "big")}
_NIFTI_MARK_AT = 344


def kind_of_content(start: bytes) -> str:
    """A file's kind from its first 500 bytes, such as ``a PNG picture``; empty if it is not known."""
    if not start:
        return "an empty file"
    if not any(start):
        return "a file of zeros"
    if start[128:132] == b"DICM":
        return "a DICOM file"
    if start[:4] in _ANALYZE:
        pair = start[_NIFTI_MARK_AT:][:3] == b"ni1"
        return "the header of a NIfTI pair (.hdr and .img)" if pair else "an Analyze header (.hdr), without orientation"
    return next((kind for mark, kind in _MARKS if start.startswith(mark)), "")
