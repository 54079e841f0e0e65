"""A hospital's archive (PACS): scans from it under pseudonyms, and segmentations back to it.

    list of studies ──> ``fetch`` ──> FOLDER/<pseudonym>/      what the rest of sahfl reads
                                      FOLDER-mapping/          who is who; only its owner reads it
    segmentation    ──> ``push``  ──> the archive, under the patient's own name again

Only this package talks to an archive, over DICOMweb (QIDO-RS, WADO-RS, STOW-RS). No message has a patient's
identifiers; the mapping does.
"""
