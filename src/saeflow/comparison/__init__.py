"""Two or more dictionaries of one stream side by side: seeds, widths, checkpoints, a base and its tuned model.

    compare(A, B)  ->  Comparison: tables (pandas), comparison.json with a sha256 of every file, a page with figures

`pairs` measures two dictionaries with what `matching` has, `chain` more than two, `run` opens what is compared,
`results` holds and reads the answer (no torch), `page` draws it, and `transfer` carries words over.
"""
