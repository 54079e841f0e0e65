"""Files that hold one volume: NIfTI, NRRD and MetaImage, each recognised by its content and opened without its voxels.

    path ──> volume.kind_of ──> nifti.load_nifti | nrrd_file.load_nrrd | metaimage.load_metaimage ──> a nibabel image

The image is in RAS mm whatever the file counts in. Its size is checked against ``volume_size`` before voxels are
unpacked, and unpacking stops at the size that the header claims.
"""
