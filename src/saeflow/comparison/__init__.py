"""Compare two or more dictionaries of one stream: seeds, widths, checkpoints, a base and its tuned model.

    compare(A, B)  ->  Comparison: tables (pandas), comparison.json with a sha256 of every file, a page with figures

`pairs` measures two dictionaries with the functions of `matching`, `chain` handles more than two, `run` opens the
dictionaries, `results` holds and reads the result (no torch), `page` draws it, and `transfer` copies labels between
releases.
"""
