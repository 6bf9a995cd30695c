paper_equal = paper_extract = None
